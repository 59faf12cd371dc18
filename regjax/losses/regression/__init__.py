"""Likelihoods of real-valued targets."""
