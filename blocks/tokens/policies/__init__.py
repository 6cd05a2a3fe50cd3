"""Methods that choose what layers of the decoder compute."""
