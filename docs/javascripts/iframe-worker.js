/* Pages opened from a disk may start no worker, which the search box asks for: there a hidden frame does its work. */
if (location.protocol === "file:")
  window.Worker = class extends EventTarget {
    #frame = document.createElement("iframe")
    #before = [] // messages that came before the frame could read any

    constructor(address) {
      super()
      const answers = "window.postMessage = data => parent.postMessage(data, '*')"
      const script = Object.assign(document.createElement("script"), { src: new URL(address, location.href) })
      this.#frame.hidden = true
      this.#frame.srcdoc = `<script>${answers}</script>${script.outerHTML}`
      this.#frame.onload = () => {
        for (const data of this.#before.splice(0)) this.#send(data)
        this.postMessage = this.#send
      }
      window.addEventListener("message", event => {
        if (event.source === this.#frame.contentWindow)
          this.dispatchEvent(new MessageEvent("message", { data: event.data }))
      })
      document.body.append(this.#frame)
    }

    #send = data => this.#frame.contentWindow.dispatchEvent(new MessageEvent("message", { data }))

    postMessage(data) {
      this.#before.push(data)
    }

    terminate() {
      this.#frame.remove()
    }
  }
