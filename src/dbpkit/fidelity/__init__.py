"""How good a denoiser is as a generative model: distances of feature distributions."""
