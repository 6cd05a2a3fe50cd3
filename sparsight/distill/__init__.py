"""Distillation: losses, stages, and reading what a teacher does."""
