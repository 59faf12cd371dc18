"""Losses: ``f(logits[..., K], labels, *, axis=-1, where=None) -> [...]``, per example and unreduced."""

from regjax.losses.smoothing import label_smoothing, max_suppression, maxsup

__all__ = ["label_smoothing", "max_suppression", "maxsup"]
