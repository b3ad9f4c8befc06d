"""One torch-free file of frozen models per section of `params.yaml`: a stage depends on its own section alone."""
