"""Choosing decoder layers, retiring them while training and removing them for good."""
