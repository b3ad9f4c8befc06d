"""CLIP: tokens, token states, image features and text features."""
