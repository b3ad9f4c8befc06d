"""What a denoiser is trained on, and how good it is."""
