"""Configs of the video systems."""
