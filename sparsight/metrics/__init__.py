"""Metrics of images: features and distances."""
