"""Weights of methods: made for a model, written and read."""
