"""Corpora of captioned images."""
