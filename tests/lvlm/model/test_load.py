"""Image-text models whose files are not whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsight.common.errors import ConfigurationError
from sparsight.lvlm.model.load import load_lvlm
from tests.tiny_lvlm import save_tiny_lvlm


def test_weights_that_are_cut_off_are_named(tmp_path: Path) -> None:
    folder = save_tiny_lvlm(tmp_path / "base")
    (weights,) = folder.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ConfigurationError, match=rf"^{weights} is cut off or damaged \(.*\): copy it again$"):
        load_lvlm(str(folder))
