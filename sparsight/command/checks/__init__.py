"""What arguments and configuration alone can tell to be wrong."""
