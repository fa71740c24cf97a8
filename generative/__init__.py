"""Generative models: protection against personalisation, restoration on a diffusion prior."""
