"""Diffusion models: loading, noising, conditioning and sampling."""
