"""Conversations as the token ids that a model sees, and which of them carry the loss."""
