"""Noise and token states to images."""
