"""Where attention falls on the images of a prompt, patch by patch, drawn over what the model saw of them."""
