"""Distances between sets of images beside the Frechet and the kernel distance."""
