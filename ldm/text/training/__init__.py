"""A CLIP for a corpus: trained, loaded by name, or read from a file."""
