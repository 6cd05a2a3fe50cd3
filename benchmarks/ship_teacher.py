"""Make a model to ship of an exported teacher: weights in half precision, and no text encoder that a package carries.

    python -m benchmarks.ship_teacher runs/emoji_joint_teacher/teacher sparsight/assets/emoji_sd3

What is written is loaded again and compared. The card follows that of the export, and says how plain diffusers loads
the folder.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path

import torch

from sparsight.common.disk.files import write_text
from sparsight.diffusion.export.standalone import reference_output
from sparsight.diffusion.model.diffusion_model import DiffusionModel
from sparsight.diffusion.pipelines.text_encoders import LEFT_OUT
from sparsight.publish.secrets import hide_places

ENCODER, ON_HUB = "all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"
ROUNDING = 2e-3  # relative L2 of outputs, of weights in half precision
PARTS = ("tokenizer", "text_encoder")
VARIANT = re.compile(
    r" With the weights rounded to half precision \(.*?\) and fp32 arithmetic it differs by \S+\.(?= )"
)


def ship(export: Path, output: Path) -> float:
    """Write the folder.

    Args:
        export: A pipeline folder of captions, whose text encoder is ``ENCODER``.
        output: Must not be there.

    Returns:
        Relative L2 difference of its denoiser's outputs to those of the export.

    Raises:
        RuntimeError: The folder does not draw what the export draws.
    """
    teacher = DiffusionModel.from_pretrained(str(export))
    inputs, expected = reference_output(teacher.denoiser)
    captions = ["red apple", ""]
    embedded = teacher.pipeline.conditions(captions)
    tokens = teacher.pipeline.tokenizer.model_max_length
    shutil.copytree(export, output, ignore=shutil.ignore_patterns(*PARTS, "*.fp16.*"))
    teacher.denoiser.half().save_pretrained(output / teacher.component)
    hide_places(output)
    path = output / "model_index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    index = {key: value for key, value in index.items() if key not in PARTS}
    index[LEFT_OUT] = {"name": ENCODER, "tokens": tokens}
    write_text(path, json.dumps(index, indent=2, sort_keys=True) + "\n")
    shipped = DiffusionModel.from_pretrained(str(output))
    with torch.no_grad():
        found = shipped.denoiser(**inputs, return_dict=False)[0]
    apart = float((found - expected).norm() / expected.norm())
    again = shipped.pipeline.conditions(captions)
    if apart > ROUNDING or not all(torch.equal(again[name], value) for name, value in embedded.items()):
        shutil.rmtree(output)
        raise RuntimeError(f"{output} does not draw what {export} draws (relative L2 {apart:.1e}): nothing was kept")
    card = output / "README.md"
    names = {"before": export.name, "now": output.name}
    write_text(card, _card(card.read_text(encoding="utf-8"), **names, tokens=tokens, apart=apart))
    return apart


def _card(text: str, *, before: str, now: str, tokens: int, apart: float) -> str:
    call = f'DiffusionPipeline.from_pretrained("{before}", trust_remote_code=True)'
    loaded = (
        f'name = "{ON_HUB}"\n'
        f'parts = {{"tokenizer": AutoTokenizer.from_pretrained(name, model_max_length={tokens}), '
        '"text_encoder": AutoModel.from_pretrained(name)}\n'
        f'pipeline = DiffusionPipeline.from_pretrained("{now}", trust_remote_code=True, **parts)'
    )
    if call not in text:
        raise RuntimeError(f"the card of the export does not say {call}")
    text = text.replace(f"pipeline = {call}", loaded)
    text = text.replace(
        "from diffusers import AutoModel, DiffusionPipeline\n",
        "from diffusers import DiffusionPipeline, SD3Transformer2DModel\n"
        "from transformers import AutoModel, AutoTokenizer\n",
    )
    changes = {
        "denoiser = AutoModel.from": "denoiser = SD3Transformer2DModel.from",
        f'"{before}"': f'"{now}"',
        f"\n# {before}\n": f"\n# {now}\n",
        "This needs nothing but what the pipeline needs anyway.": (
            "The text encoder is not repeated here: Sparsight takes it from a Python package of its demo extra."
        ),
        "Weights are in fp32. Loaded": (
            f"Weights are in fp16, and loaded in fp32, by which the denoiser differs by {apart:.1e} (relative L2) from "
            "the one that was trained. In fp32, and loaded"
        ),
    }
    for old, new in changes.items():
        text = text.replace(old, new)
    return re.sub(
        r" With the weights rounded to half precision \(.*?\) and fp32 arithmetic it differs by \S+\.(?= )", "", text
    )


def main() -> None:
    """Ship one teacher."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path, help="folder that ExportAtEnd or `sparsight export` wrote")
    parser.add_argument("output", type=Path, help="folder to write")
    arguments = parser.parse_args()
    apart = ship(arguments.export, arguments.output)
    print(f"{arguments.output}: relative L2 {apart:.1e} to {arguments.export}")


if __name__ == "__main__":
    main()
