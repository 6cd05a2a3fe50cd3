"""Published methods at work in a model of transformers: where tokens are, what caches hold, and recipes of methods."""
