"""Penalties made of derivatives of the loss or of the network, and gradients of sums of components."""
