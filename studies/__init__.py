"""Measurements over several runs of the pipeline, which docs/ quotes."""
