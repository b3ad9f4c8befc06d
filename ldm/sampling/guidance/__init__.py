"""Guidance: params of its kinds, the rules that make one denoiser of several, and the models that guide another."""
