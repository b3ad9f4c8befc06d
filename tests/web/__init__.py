"""Tests of the page in a real browser: `make test-web`. `make test` does not run them, since they need Chromium."""
