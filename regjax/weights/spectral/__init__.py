"""Singular values: penalties on them, bounds of them, normalisation by them."""
