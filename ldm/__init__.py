"""Latent-diffusion text-to-image pipeline; nothing is imported here, so that a stage depends only on the modules it names."""
