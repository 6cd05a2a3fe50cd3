"""Questions answered by an image-text model: likelihoods, generated texts, scores by task."""
