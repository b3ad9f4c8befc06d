"""Pictures that explain diffusion: from toys whose answer is exact, and from the trained artefacts."""
