"""Methods that change where tokens are said to stand."""
