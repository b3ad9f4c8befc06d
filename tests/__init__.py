"""Tests mirror `ldm` one to one; `test_pipeline` runs the stages by DVC, `test_rules` holds the repository's rules."""
