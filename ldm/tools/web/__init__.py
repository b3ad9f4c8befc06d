"""`ldm web`: the model as a page in a browser."""
