"""Measures of the field, as functions of arrays."""
