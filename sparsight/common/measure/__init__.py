"""Measuring time and memory on this machine."""
