"""Face anti-spoofing systems."""
