"""What a recipe costs and saves."""
