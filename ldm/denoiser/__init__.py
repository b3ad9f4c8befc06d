"""The denoiser: networks, forward process, loss and training."""
