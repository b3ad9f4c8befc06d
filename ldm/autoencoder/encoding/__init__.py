"""Images to latents, once, in shards; the scale of latents."""
