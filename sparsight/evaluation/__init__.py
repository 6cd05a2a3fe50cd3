"""Metrics of images and texts, and ReForm-Eval."""
