"""Attention maps in bounded memory, what is measured of them, and the sums of that."""
