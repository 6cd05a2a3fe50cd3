"""Diffusers pipelines: our own for models in pixel space, untrained ones, and what a folder may name."""
