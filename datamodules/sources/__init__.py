"""Record sources: one interface over files, folders, shards and Hugging Face data sets."""
