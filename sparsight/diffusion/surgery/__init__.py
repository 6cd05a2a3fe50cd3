"""Finding self-attentions, putting token mixers in their place, and recording what was changed."""
