"""Captions to token states, once, in shards."""
