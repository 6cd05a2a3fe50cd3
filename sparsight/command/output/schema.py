"""The ``schema`` verb: a JSON schema of configs, by which editors complete, explain and check them."""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from jsonargparse._common import get_generic_origin
from jsonargparse._completions_jsonschema import ParserJsonschema, config_schema_key
from lightning.pytorch.cli import ArgsType, LightningArgumentParser

from sparsight.command.arguments import INCLUDE
from sparsight.command.cli import METHODS, SparsightCLI
from sparsight.common.disk.files import write_text
from sparsight.publish.shared_config import OURS as PACKAGES

FILE = "sparsight.schema.json"
ANY_CLASS = {"type": ["string", "object"]}
DESCRIBED = (*(f"{package}." for package in PACKAGES), "lightning.", "torch.optim.")  # classes with their options


def main(arguments: Sequence[str]) -> None:
    """Write the schema."""
    parser = argparse.ArgumentParser(
        prog="sparsight schema",
        description="A JSON schema of configs, with every module, source, mixer and callback and their options. "
        "Editors with a YAML language server use it where a config says `# yaml-language-server: $schema=FILE`.",
    )
    parser.add_argument("--output", default=FILE, help=f"file to write; {FILE} if not given")
    output = Path(parser.parse_args(arguments).output)
    before = list(sys.argv)
    sys.argv[1:] = ["fit"]
    try:
        schema = _FitSchema.made()
    finally:
        sys.argv[:] = before
    write_text(output, json.dumps(schema, indent=1) + "\n")
    print(f"Written to {output}. First line of a config: # yaml-language-server: $schema={output}")


class _Done(BaseException):
    """The parser is all that is wanted of the command."""


class _FitSchema(SparsightCLI):
    schema: dict[str, Any]

    @classmethod
    def made(cls) -> dict[str, Any]:
        with suppress(_Done):
            cls()
        return cls.schema

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        type(self).schema = config_schema(self._subcommand_parsers["fit"])
        raise _Done


def config_schema(parser: LightningArgumentParser) -> dict[str, Any]:
    """Schema of one layer of a configuration, in which anything may be left out.

    Args:
        parser: Of a verb.
    """
    schema = _Classes().generate(parser)
    for part in _objects(schema):
        part.pop("required", None)  # another layer may have it
        properties = part.get("properties", {})
        properties.pop(config_schema_key, None)
        if part.get("additionalProperties") is False:
            part["patternProperties"] = {r"\+$": {}}  # appended to what an earlier layer has
        path = properties.get("class_path", {})
        if "const" in path:
            properties["class_path"] = {"enum": sorted({path["const"], path["const"].rpartition(".")[2]})}
    for verb in SparsightCLI.subcommands():  # options of the others
        for name in inspect.signature(METHODS[verb]).parameters.keys() - {"self"}:
            schema["properties"].setdefault(name, {})
    schema["properties"][INCLUDE] = {
        "type": "array",
        "items": {"type": "string"},
        "description": "configs that this one is laid over, the later over the earlier",
    }
    return schema


class _Classes(ParserJsonschema):
    """Without the thousands of classes of libraries, of any of which a path may be given."""

    def class_ref(self, class_type: Any, action: Any, subclass: bool) -> dict[str, Any]:
        class_type = get_generic_origin(class_type)
        if not class_type.__module__.startswith(DESCRIBED) or issubclass(class_type, type):
            return dict(ANY_CLASS)
        return super().class_ref(class_type, action, subclass=subclass)

    def class_path_schema(self, class_path: str, action: Any) -> dict[str, Any]:
        try:
            return super().class_path_schema(class_path, action)
        except AttributeError:  # made while a run went on, as Lightning's optimisers are: no path leads there
            return {"not": {}}


def _objects(part: Any) -> Iterator[dict[str, Any]]:
    """Every mapping inside, the outer ones first."""
    if isinstance(part, dict):
        yield part
    for each in list(part.values()) if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from _objects(each)
