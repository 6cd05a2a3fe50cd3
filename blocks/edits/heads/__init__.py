"""Methods that change what heads answer, and feed-forward parts."""
