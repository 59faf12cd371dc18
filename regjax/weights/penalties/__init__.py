"""Penalties on the size and the distribution of weights."""
