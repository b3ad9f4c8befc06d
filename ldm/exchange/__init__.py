"""What the files of other tools look like; nothing here knows our models."""
