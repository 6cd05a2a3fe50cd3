"""Code that travels in exports."""
