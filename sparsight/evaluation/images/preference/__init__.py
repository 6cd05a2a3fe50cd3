"""Models of what people prefer, as metrics of images and their captions."""
