"""The model card: what somebody who gets a model folder should know about it."""
