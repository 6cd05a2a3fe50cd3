"""How jsonargparse is told to read what it is given."""
