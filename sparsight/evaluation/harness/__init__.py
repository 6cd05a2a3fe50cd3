"""lmms-eval in an environment of its own: started, and read back into a report of ours."""
