"""Tasks in ReForm-Eval's form, and the datamodule that puts them to a model."""
