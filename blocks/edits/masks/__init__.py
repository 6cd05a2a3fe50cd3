"""Methods that change who may look at whom."""
