"""Flax modules that systems share."""
