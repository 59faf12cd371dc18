"""Noise, masks and gates on activations."""
