"""Methods that mix the logits of two passes."""
