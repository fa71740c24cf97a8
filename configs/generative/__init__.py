"""Configs of the generative systems."""
