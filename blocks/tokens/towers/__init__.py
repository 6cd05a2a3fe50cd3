"""Methods that work inside the vision tower."""
