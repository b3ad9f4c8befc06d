"""The text encoder: CLIP, from captions to token states."""
