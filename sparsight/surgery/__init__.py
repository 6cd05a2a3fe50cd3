"""Surgery: finding self-attentions, replacing them, and recording what was changed."""
