"""Standard benchmarks by name."""
