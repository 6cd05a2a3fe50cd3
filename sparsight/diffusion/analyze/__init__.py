"""Looking at the self-attentions of a denoiser on real batches: where what goes, and which mixer could stand there."""
