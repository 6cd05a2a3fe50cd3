"""What folders of images hold, told before any image is decoded."""
