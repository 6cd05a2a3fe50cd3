"""What an exported class does when it is saved and read; this file's text travels inside the exports."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar


class SavedWithCode:
    """First base of an exported class: whoever saves the object saves its file of code beside its configuration."""

    code: ClassVar[tuple[str, bytes]]
    """Name and content of the file of code, kept since it was run: its place in a cache may be gone."""

    def save_config(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Write the configuration, and the file of code."""
        super().save_config(save_directory, *args, **kwargs)  # type: ignore[misc]
        name, content = self.code
        Path(save_directory, name).write_bytes(content)

    @classmethod
    def extract_init_dict(cls, config_dict: Mapping[str, Any], **kwargs: Any) -> Any:
        """Read a configuration; the address of the file of code is no option, and none to warn about."""
        options = {key: value for key, value in config_dict.items() if key != "auto_map"}
        return super().extract_init_dict(options, **kwargs)  # type: ignore[misc]


class ExportedPipeline(SavedWithCode):
    """Mixed into a pipeline class that diffusers does not have."""

    def to_json_string(self) -> str:
        """The pipeline's index; it names the file of code, and where ``AutoModel`` finds that of a student in it."""
        index = json.loads(super().to_json_string())  # type: ignore[misc]
        index["_class_name"] = [Path(self.code[0]).stem, type(self).__name__]
        for part in self.components.values():  # type: ignore[attr-defined]
            if getattr(part, "_auto_class", None) is not None:  # of a file of its own, or a part of any library
                index["auto_map"] = {"AutoModel": f"{type(part).__module__}.{type(part).__name__}"}
        return json.dumps(index, indent=2, sort_keys=True) + "\n"
