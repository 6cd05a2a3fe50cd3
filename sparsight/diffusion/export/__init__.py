"""Students as diffusers folders: deltas, cards, and the check in a fresh process."""
