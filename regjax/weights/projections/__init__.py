"""Projections onto weights with a symmetry or a norm."""
