"""Scores that show what layers do with images, rather than which of them to keep."""
