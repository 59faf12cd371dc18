"""Adapted linear layers: low-rank and singular-value updates of frozen kernels."""
