"""Tasks of an evaluation: questions in one form, made of the records of any source."""
