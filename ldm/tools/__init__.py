"""Checks, records and commands, over all stages."""
