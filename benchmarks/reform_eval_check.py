"""Scores of `sparsight test` against a plain script that uses transformers alone, question by question.

    python -m benchmarks.reform_eval_check --model runs/demo_lvlm --output runs/reform_eval_check

240 hand-made questions (colours of squares, words to read) are written in ReForm-Eval's format and put to a model by
`sparsight test`, in batches with shared caches, twice (the second time with shuffled options), and here: one at a time,
every option with a forward pass of its own over image, question and option. Both must choose the same. Of Sparsight,
the plain part uses the words of the prompt (instruction, order and marks of the options, as the report says them) and
nothing else.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from transformers import AutoModelForImageTextToText, AutoProcessor

from sparsight.command.cli import main as sparsight
from sparsight.common.disk.files import write_text
from sparsight.common.measure.environment import environment
from sparsight.common.tables import json_text
from sparsight.evaluation.reform_eval.prompt import CUE, own_instructions
from sparsight.evaluation.reform_eval.report import read_report

COLOURS = {
    "red": (220, 20, 20),
    "green": (20, 150, 20),
    "blue": (30, 60, 230),
    "yellow": (250, 220, 0),
    "light grey": (190, 190, 190),
    "black": (0, 0, 0),
    "dark brown": (90, 50, 10),
    "pink": (250, 130, 190),
}
WORDS = [
    "apple",
    "bread",
    "chair",
    "dream",
    "earth",
    "flame",
    "grass",
    "house",
    "island",
    "jacket",
    "kitchen",
    "letter",
]
MARKS = {"upper": "ABCD", "lower": "abcd", "number": "1234"}
METHODS = ("likelihood", "generation")
COUNT, NEW_TOKENS = 120, 12  # questions of each kind; tokens of a written answer
EXAMPLE = ("Is it possible to talk about pictures?", ("yes", "no", "perhaps", "never"))


def write_questions(path: Path) -> None:
    """Write the questions, which depend on nothing but this file."""
    rng = np.random.default_rng(0)
    entries: list[dict[str, Any]] = []
    for number in range(2 * COUNT):
        names = list(COLOURS) if number < COUNT else WORDS
        options = [names[place] for place in rng.permutation(len(names))[:4]]
        answer = int(rng.integers(4))
        canvas = Image.new("RGB", (224, 224), "white")
        draw = ImageDraw.Draw(canvas)
        if number < COUNT:
            left, top = (int(value) for value in rng.integers(10, 110, 2))
            draw.rectangle((left, top, left + 100, top + 100), fill=COLOURS[options[answer]])
            question = ["Which colour has the square?", "The square is of which colour?"][number % 2]
        else:
            draw.text((20, int(rng.integers(20, 170))), options[answer], "black", font=ImageFont.load_default(40))
            question = "Which word is written here?"
        stream = io.BytesIO()
        canvas.save(stream, "PNG")
        image = base64.b64encode(stream.getvalue()).decode()
        entries.append({"question_id": f"q{number}", "image": image, "question": question})
        entries[-1] |= {"answer_options": options, "answer": answer}
    write_text(path, json.dumps({"data": entries}))


def evaluate(model: Path, questions: Path, output: Path, batch_size: int) -> dict[str, Any]:
    """What `sparsight test` reports."""
    task = {"file": str(questions), "dimension": "fine_perception", "formulation": "SingleChoice", "name": "check"}
    data = {
        "tasks": [{"class_path": "datamodules.PublishedTask", "init_args": task}],
        "protocol": {"methods": METHODS, "new_tokens": NEW_TOKENS, "marks": "random", "runs": 2},
        "batch_size": batch_size,
    }
    report = {"class_path": "callbacks.ReformEvalReport", "init_args": {"folder": str(output / "report")}}
    sparsight(
        ["test", "--model", "LVLMEvaluation", "--model.base", str(model), "--data", "ReformEvalDataModule"]
        + [f"--data.{name}={json.dumps(value)}" for name, value in data.items()]
        + ["--trainer.callbacks+", json.dumps(report), "--trainer.logger=false", "--trainer.accelerator=cpu"]
    )
    return read_report(output / "report")


class Plain:
    """A model as transformers' documentation uses it."""

    def __init__(self, model: Path) -> None:
        self.model = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(model)

    def text(self, turns: list[tuple[str, str]], *, cue: bool) -> str:
        """A conversation in the model's form; the last user turn has the image."""
        messages: list[dict[str, Any]] = [{"role": role, "content": [{"type": "text", "text": t}]} for role, t in turns]
        last = max(number for number, (role, _) in enumerate(turns) if role == "user")
        messages[last]["content"].insert(0, {"type": "image"})
        return str(self.processor.apply_chat_template(messages, add_generation_prompt=cue, tokenize=False))

    def inputs(self, text: str, image: Image.Image) -> Any:
        """Model inputs of one text with one image."""
        return self.processor(text=text, images=image, return_tensors="pt")

    @torch.no_grad()
    def log_likelihood(self, question: str, option: str, image: Image.Image) -> float:
        """Of an option, with the token that ends an answer, as the reply to a question."""
        before = self.inputs(self.text([("user", question)], cue=True), image)
        text = self.text([("user", question), ("assistant", option)], cue=False)
        end = self.processor.tokenizer.eos_token
        inputs = self.inputs(text[: text.rindex(end) + len(end)], image)
        begin = before["input_ids"].shape[1]
        assert torch.equal(inputs["input_ids"][:, :begin], before["input_ids"])
        logs = self.model(**inputs).logits[0].float().log_softmax(-1)
        ids = inputs["input_ids"][0]
        return sum(float(logs[place - 1, ids[place]]) for place in range(begin, len(ids)))

    @torch.no_grad()
    def write(self, turns: list[tuple[str, str]], begun: str, image: Image.Image) -> str:
        """The likeliest continuation of an answer that was begun."""
        inputs = self.inputs(self.text(turns, cue=True) + begun, image)
        options: dict[str, Any] = {"do_sample": False, "max_new_tokens": NEW_TOKENS}
        ids = self.model.generate(**inputs, **options, pad_token_id=self.processor.tokenizer.pad_token_id)
        return str(self.processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def listed(options: list[str], marks: str) -> str:
    """Options with their marks."""
    return "Options: " + "; ".join(f"({mark}) {text}" for mark, text in zip(marks, options, strict=False)) + "."


def differences(plain: Plain, report: dict[str, Any], questions: Path) -> dict[str, Any]:
    """Where the two disagree, over all answers."""
    entries = {entry["question_id"]: entry for entry in json.loads(questions.read_text())["data"]}
    found: dict[str, Any] = {"likelihood": [], "generation": [], "largest_gap": 0.0}
    for answer in report["answers"]:
        entry = entries[answer["sample"]]
        image = Image.open(io.BytesIO(base64.b64decode(entry["image"])))
        options, method = entry["answer_options"], answer["method"]
        instruction = own_instructions("SingleChoice", method, with_images=True)[answer["instruction"]]
        choice: int | None
        if method == "likelihood":
            question = f"{instruction}\n{entry['question']}"
            logs = [plain.log_likelihood(question, option, image) for option in options]
            gaps = [abs(a - b) for a, b in zip(logs, answer["log_likelihoods"], strict=True)]
            found["largest_gap"] = max(found["largest_gap"], *gaps)
            choice = logs.index(max(logs))
        else:
            marks = MARKS[answer["marks"]]
            shown = [options[place] for place in answer["order"]]
            asked = instruction.replace("{form}", f"({marks[0]})") + f"\n{entry['question']} {listed(shown, marks)}"
            example = (f"{EXAMPLE[0]} {listed(list(EXAMPLE[1]), marks)}", f"{CUE} ({marks[0]}) {EXAMPLE[1][0]}")
            turns = [("user", example[0]), ("assistant", example[1]), ("user", asked)]
            choice = chosen(plain.write(turns, CUE, image), shown, marks, options)
        if choice != answer["choice"]:
            found[method].append(answer["sample"])
    return found


def chosen(written: str, shown: list[str], marks: str, options: list[str]) -> int | None:
    """The option that a text means: its mark in brackets, or its own text, or its mark alone at the beginning."""
    plain = re.sub(r"\W+", " ", written).strip().lower()
    mark = re.search(r"\(([A-Za-z0-9])\)", written)
    if mark is None and plain in options:
        return options.index(plain)
    mark = mark or re.match(r"\s*([A-Za-z0-9])\s*(?:[.):,;]|$)", written)
    place = -1 if mark is None else marks.lower().find(mark[1].lower())
    return None if place < 0 else options.index(shown[place])


def main() -> None:
    """Compare, and write and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder whose answers end with eos")
    parser.add_argument("--output", type=Path, default=Path("runs/reform_eval_check"))
    parser.add_argument("--batch_size", type=int, default=8)
    arguments = parser.parse_args()
    questions = arguments.output / "questions.json"
    write_questions(questions)
    report = evaluate(arguments.model, questions, arguments.output, arguments.batch_size)
    found = differences(Plain(arguments.model), report, questions)
    answered = {method: sum(a["method"] == method for a in report["answers"]) for method in METHODS}
    right = {m: sum(a["choice"] == a["answer"] for a in report["answers"] if a["method"] == m) for m in answered}
    result = {"environment": environment(torch.device("cpu")), "answered": answered, "right": right} | found
    write_text(arguments.output / "check.json", json_text(result))
    for method, count in answered.items():
        print(f"{method}: {count - len(found[method])} of {count} choices equal, {right[method]} right")
    print(f"largest difference of a log-likelihood: {found['largest_gap']:.1e} nats")


if __name__ == "__main__":
    main()
