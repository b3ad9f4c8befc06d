"""What an autoencoder is trained on, and how good it is."""
