"""The autoencoder network, its loss, and the layers that it shares with the UNet."""
