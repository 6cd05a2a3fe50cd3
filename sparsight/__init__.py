"""Sparsight: replace the self-attention of pretrained diffusion models by cheaper token mixers, and distil.

Everything that is not a plug-in lives here; the plug-ins are the top-level packages `blocks`, `datamodules`,
`lightning_modules` and `callbacks`. Importing this package imports none of them, so `sparsight --version` is instant.
"""

from __future__ import annotations

from sparsight.common.moved import lead_old_names

__version__ = "0.1.0"
__all__ = ["__version__"]

lead_old_names()
