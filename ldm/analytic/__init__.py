"""Diffusion of data whose every answer is known: the bench that rules, objectives, figures and studies are held to."""
