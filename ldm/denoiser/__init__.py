"""Latents and token states to a denoiser: networks, noise, loss."""
