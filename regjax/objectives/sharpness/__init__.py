"""Losses at perturbed weights, and what stands in for them."""
