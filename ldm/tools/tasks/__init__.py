"""What a trained model does besides text to image: each task is a function of a denoiser, a sampler and latents."""
