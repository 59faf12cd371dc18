"""Consolidation: distances to earlier weights, for fine-tuning and continual learning."""
