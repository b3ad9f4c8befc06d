"""Denoising networks, noise schedules, and the loss."""
