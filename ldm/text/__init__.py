"""Captions to token states: CLIP."""
