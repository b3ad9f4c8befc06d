"""Oracles, which check images of a corpus against claims, and feature spaces for such images."""
