"""The autoencoder, and layers that the UNet shares with it."""
