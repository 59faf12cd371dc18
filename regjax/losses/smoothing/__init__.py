"""Soft targets, confidence and the size of logits."""
