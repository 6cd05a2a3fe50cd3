"""Options of ``analyze`` that belong to one kind of model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsight.common.datamodule import Wing
from sparsight.common.errors import ConfigurationError
from sparsight.diffusion.analyze.run import Settings
from sparsight.diffusion.analyze.verb import check_numbers

NUMBERS = ("buckets", "queries", "prediction_batches")
OF_WING: Mapping[Wing, tuple[str, ...]] = {
    "image-text": ("scores", "maps"),
    "diffusion": (*NUMBERS, "mixers", "budget"),
}
OF_WHAT = {"image-text": "the decoder layers of image-text models", "diffusion": "the attentions of denoisers"}


def analysis_settings(options: Mapping[str, Any]) -> Settings:
    """The options that are numbers, with defaults for what is not given.

    Raises:
        ConfigurationError: One is out of range.
    """
    return Settings(**{name: options[name] for name in NUMBERS if options.get(name) is not None})


def check_analysis(options: Mapping[str, Any], *, wing: Wing, module: str) -> None:
    """Refuse what the kind of model has no use for, and numbers out of range.

    Args:
        options: Of the verb, by name.
        wing: Of the model.
        module: What holds it is called.

    Raises:
        ConfigurationError: There is one, and the message names it.
    """
    for other, names in OF_WING.items():
        wrong = [name for name in names if options.get(name) is not None and other != wing]
        if wrong:
            raise ConfigurationError(
                f"{wrong[0]} looks at {OF_WHAT[other]}, and {module} has none of those: leave it out, or give a module "
                "that has"
            )
    if wing == "diffusion":
        check_numbers(analysis_settings(options), batches=options["batches"], budget=options.get("budget"))
