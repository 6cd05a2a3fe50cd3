"""Conversations about images, and batches of them in the form of one model."""
