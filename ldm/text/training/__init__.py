"""Obtain the CLIP for a corpus: train it, load it by name, or read it from a file or folder."""
