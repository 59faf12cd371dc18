"""Proximal operators and projections: the steps that reach a constraint exactly."""
