"""Batches of images, and of latents of them."""
