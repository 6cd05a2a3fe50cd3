# Completion of sparsight for {{ shell }}; written by `sparsight completion {{ shell }}`.
{%- if shell == "zsh" %}
autoload -Uz +X compinit bashcompinit
(( $+functions[compdef] )) || compinit
bashcompinit
{%- endif %}

_sparsight_classes() {  # of the shipped config $1, after a colon the data's
  case "$1" in
{%- for name, (model, data) in configs.items() %}
    {{ name }}) echo "{{ model }}:{{ data }}" ;;
{%- endfor %}
  esac
}

_sparsight_options() {  # of the class $1
  case "$1" in
{%- for (part, name), options in of_class.items() %}
    {{ part }}:{{ name }}) echo "{{ options | words }}" ;;
{%- endfor %}
  esac
}

_sparsight_verb_options() {
  case "$1" in
{%- for verb, options in options.items() %}
    {{ verb }}) echo "{{ options | words }}" ;;
{%- endfor %}
  esac
}

_sparsight_class_in() {  # part $1 of the config file $2, or of the first shipped config that it includes
  local known found name
  case "$1" in
    model) known='{{ classes["model"] | join("|") }}' ;;
    data) known='{{ classes["data"] | join("|") }}' ;;
  esac
  found=$(grep -oE "class_path: *([A-Za-z_]+[.])?($known) *$" "$2" 2>/dev/null | head -n 1 | sed 's/.*[ .]//')
  if [ -z "$found" ]; then
    name=$(grep -oE '(experiment|shared)/[A-Za-z0-9_]+' "$2" 2>/dev/null | head -n 1)
    found=$(_sparsight_classes "$name")
    case "$1" in model) found=${found%%:*} ;; data) found=${found##*:} ;; esac
  fi
  echo "$found"
}

_sparsight() {
  local cur="${COMP_WORDS[COMP_CWORD]}" prev="${COMP_WORDS[COMP_CWORD-1]}" verb="${COMP_WORDS[1]}"
  local model="" data="" words="" found word last="" before=""
  COMPREPLY=()
  case "$cur" in  # bash parts words at an equals sign, zsh does not
    =) cur="" ;;
    --*=*) prev=${cur%%=*} before="${cur%%=*}=" cur=${cur#*=} ;;
    *) [ "$prev" = "=" ] && prev="${COMP_WORDS[COMP_CWORD-2]}" ;;
  esac
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{{ verbs | words }} --help --version" -- "$cur"))
    return
  fi
  for word in "${COMP_WORDS[@]}"; do
    case "$word" in
      =) continue ;;
      --*=*) last=${word%%=*} word=${word#*=} ;;
    esac
    case "$last" in
      -c|--config)
        found=$(_sparsight_classes "$word")
        if [ -z "$found" ] && [ -f "$word" ]; then
          found="$(_sparsight_class_in model "$word"):$(_sparsight_class_in data "$word")"
        fi
        [ -n "${found%%:*}" ] && model=${found%%:*}
        [ -n "${found##*:}" ] && data=${found##*:}
        ;;
      --model|--data)
        case "$last" in --model) model=${word##*.} ;; --data) data=${word##*.} ;; esac
        ;;
    esac
    last="$word"
  done
  case "$prev" in
    -c|--config) words="{{ configs | words }}" ;;
    --ckpt_path) words="{{ checkpoints | words }}" ;;
    --model|--model.help) words="{{ classes["model"] | words }}" ;;
    --data|--data.help) words="{{ classes["data"] | words }}" ;;
{%- for option, names in values.items() %}
    {{ option }}|{{ option }}+) words="{{ names | words }}" ;;
{%- endfor %}
    *)
      case "$verb:$cur" in
        list:*) words="{{ groups | words }} --json" ;;
        completion:*) words="{{ shells | words }}" ;;
        *:-*)
          words="$(_sparsight_verb_options "$verb")"
          case "$words" in
            *--trainer*)
              words="$words --model.help --data.help {{ trainer | words }}"
              words="$words $(_sparsight_options "model:$model") $(_sparsight_options "data:$data")"
              ;;
          esac
          ;;
      esac
      ;;
  esac
  [ -n "$words" ] && COMPREPLY=($(compgen -P "$before" -W "$words" -- "$cur"))
  case "$prev:$cur" in
    -c:*|--config:*|--ckpt_path:*|--output:*) COMPREPLY=("${COMPREPLY[@]}" $(compgen -P "$before" -f -- "$cur")) ;;
  esac
}

complete -o default -F _sparsight sparsight
