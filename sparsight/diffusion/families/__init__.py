"""What differs between families of denoisers."""
