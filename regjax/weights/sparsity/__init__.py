"""Masks by magnitude or score, and the penalties that prepare weights for them."""
