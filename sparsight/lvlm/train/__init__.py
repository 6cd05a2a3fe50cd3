"""What tuning and healing need: stages, what trains, what it costs, the unpruned model."""
