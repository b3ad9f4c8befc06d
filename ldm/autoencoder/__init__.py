"""The autoencoder: images to latents and back."""
