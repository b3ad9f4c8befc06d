"""Tests mirror `ldm` one to one; `test_pipeline` runs the stages by DVC and `test_rules` holds the rules of the repository."""
