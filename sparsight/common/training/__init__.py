"""What both halves need while they train: processes, stages, precision, schedules."""
