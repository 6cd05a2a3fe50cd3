"""Large vision-language models: their parts, selections and scores of decoder layers, tuning, pruning and export."""
