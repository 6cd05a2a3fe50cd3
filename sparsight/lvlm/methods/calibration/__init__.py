"""What methods need to know of a model, found on prompts."""
