"""Distilling a student from its teacher."""
