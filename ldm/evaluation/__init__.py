"""Evaluation of samples: measurements, metrics and reports."""
