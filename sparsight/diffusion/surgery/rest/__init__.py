"""What may train beside mixers: parts of the denoiser by name, and low-rank adapters on its linear layers."""
