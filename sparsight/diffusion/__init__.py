"""The diffusion wing: self-attention becomes token mixers."""
