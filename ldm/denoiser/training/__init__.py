"""Training of a denoiser: inputs, batches, initial weights and validation."""
