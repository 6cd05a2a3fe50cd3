"""The ``completion`` verb: a script by which a shell completes verbs, configs, options and classes.

Everything is in the script, read from source when it is written, so that no Python runs at a press of the tab key.
jsonargparse's own (shtab) is not used: it knows one verb's options at a time, none of the classes that a config names,
and imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined

from sparsight.command.arguments import NAMED, VERBS, config_folders, read_config
from sparsight.command.benchmarks.evaluate import TASKS
from sparsight.command.options import options_of_trainer, options_of_verb
from sparsight.command.plugins import GROUPS, known_plugins, known_sources
from sparsight.command.sources import Sources
from sparsight.common.errors import ConfigurationError
from sparsight.common.near import did_you_mean

SHELLS = ("bash", "zsh")
USAGE = f"""\
usage: sparsight completion {{{",".join(SHELLS)}}}

Prints a script that completes verbs, names of configs, options and classes, those of the config on the line as well.

  bash: sparsight completion bash > ~/.local/share/bash-completion/completions/sparsight
  zsh:  sparsight completion zsh > ~/.sparsight.zsh; echo 'source ~/.sparsight.zsh' >> ~/.zshrc
"""


def main(arguments: Sequence[str]) -> None:
    """Print the script.

    Raises:
        ConfigurationError: There is no such shell.
    """
    if "--help" in arguments or "-h" in arguments:
        print(USAGE, end="")
        return
    if len(arguments) != 1 or arguments[0] not in SHELLS:
        given = " ".join(arguments)
        if not given:
            raise ConfigurationError(f"completion: name a shell: {', '.join(SHELLS)}")
        raise ConfigurationError(
            f"completion: there is no shell {given!r}{did_you_mean(given, SHELLS)}; shells are {', '.join(SHELLS)}"
        )

    print(script(arguments[0]), end="")


def script(shell: str) -> str:
    """What a shell is told."""
    sources = known_sources()
    plugins = known_plugins({*_PARTS.values(), *_VALUES.values()})
    environment = Environment(loader=PackageLoader("sparsight.command.output", "."), undefined=StrictUndefined)
    environment.filters["words"] = " ".join
    return environment.get_template("completion.sh").render(
        shell=shell,
        verbs=VERBS,
        groups=list(GROUPS),
        shells=SHELLS,
        checkpoints=NAMED,
        options={verb: _dashed(options_of_verb(verb)) for verb in VERBS},
        trainer=_dashed(f"trainer.{name}" for name in options_of_trainer()),
        classes={part: [each.name for each in plugins[group]] for part, group in _PARTS.items()},
        values={
            **{option: [each.name for each in plugins[group]] for option, group in _VALUES.items()},
            "--tasks": list(TASKS),
        },
        of_class={
            (part, each.name): _dashed(f"{part}.{name}" for name in _nested(each.options, sources))
            for part, group in _PARTS.items()
            for each in plugins[group]
        },
        configs=dict(_configs()),
    )


_PARTS = {"model": "modules", "data": "datamodules"}
_VALUES = {  # options whose values are classes, with their kind
    "--mixers": "mixers",
    "--model.layers": "selections",
    "--model.mixer": "mixers",
    "--scores": "scores",
    "--trainer.callbacks": "callbacks",
}


def _dashed(names: Iterable[str]) -> list[str]:
    return [f"--{name}" for name in names]


def _nested(options: Iterable[str], sources: Sources) -> Iterator[str]:
    """Options, and those of a dataclass that one is by default."""
    for option in options:
        name, _, default = option.partition("=")
        yield name
        kind = default.partition("(")[0] if default.endswith(")") else ""
        paths = [path for path in sources.classes if kind and path.rpartition(".")[2] == kind]
        for path in paths[:1]:
            yield from (f"{name}.{inner.partition('=')[0]}" for inner in sources.options(path))


def _configs() -> Iterator[tuple[str, tuple[str, str]]]:
    """Shipped configs by name, with the classes that they are for."""
    for folder in dict.fromkeys(each.resolve() for each in config_folders()[2:] if each.is_dir()):
        for file in sorted(folder.rglob("*.yaml")):
            name = file.relative_to(folder).with_suffix("").as_posix()
            content = read_config(str(file))
            yield name, (_class(content, "model"), _class(content, "data"))


def _class(content: Mapping[str, object], part: str) -> str:
    found = content.get(part)
    return str(found.get("class_path", "")).rpartition(".")[2] if isinstance(found, Mapping) else ""
