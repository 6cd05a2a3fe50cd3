"""Standard benchmarks of image-text models, read from their published parquet files and scored by their own rules."""
