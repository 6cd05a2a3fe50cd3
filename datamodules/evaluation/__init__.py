"""Evaluation of image-text models: suites of tasks, published or made here, put to a model."""
