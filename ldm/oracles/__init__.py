"""What judges the images of a corpus: checks of claims, feature spaces."""
