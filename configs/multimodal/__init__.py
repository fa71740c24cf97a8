"""Configs of the systems that read pictures and write or judge text."""
