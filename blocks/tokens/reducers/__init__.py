"""Methods that drop or merge image tokens before the decoder."""
