"""Training of an autoencoder: its batches, and the quality of its reconstructions."""
