"""CLIP: tokens, token states, image and text features."""
