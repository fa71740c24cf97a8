"""A kitchen drawn on the spot: people who cook by a stochastic grammar, filmed from above."""
