"""Checkpoints: whole or not there, found again, compared with the run that loads them."""
