"""Which images are made, and what each was made from."""
