"""Image-text models: loading, their parts, their images and processors."""
