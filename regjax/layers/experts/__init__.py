"""Mixtures of experts, their gates, and what keeps them apart."""
