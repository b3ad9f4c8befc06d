"""A model as a folder of its own, which needs no repository."""
