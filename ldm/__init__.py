"""Text to image by latent diffusion; nothing is imported here, so that a stage depends only on what it names."""
