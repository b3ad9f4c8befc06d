"""Measurements over several runs of the pipeline, which README.md quotes."""
