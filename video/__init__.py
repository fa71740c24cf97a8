"""Systems that understand video."""
