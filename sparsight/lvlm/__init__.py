"""The image-text wing: few decoder layers are tuned, others removed."""
