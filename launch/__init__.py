"""Command line entry points: parse, build, call."""
