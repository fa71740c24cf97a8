"""Systems that read pictures and write or judge text."""
