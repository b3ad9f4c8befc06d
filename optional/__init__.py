"""Stages that the default pipeline does without, in a pipeline of their own: `dvc repro optional/dvc.yaml`."""
