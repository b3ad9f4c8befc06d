"""Every image encoded to a latent once and stored in shards, and the scale of latents."""
