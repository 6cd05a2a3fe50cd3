"""Where a run is, as it is told while it runs."""
