"""Methods that take the place of a whole layer."""
