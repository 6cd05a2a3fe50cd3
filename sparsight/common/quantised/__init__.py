"""Frozen weights held as codes of fewer bits."""
