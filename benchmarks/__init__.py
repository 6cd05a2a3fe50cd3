"""Drivers whose printed figures stand in README and docs."""
