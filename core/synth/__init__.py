"""Procedural worlds that several systems use."""
