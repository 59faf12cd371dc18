"""Slow float64 NumPy pieces that several references use."""

import numpy as np


def log_softmax(logits, where=None):
    """Log-softmax of one vector; masked entries get -inf."""
    z = np.asarray(logits, np.float64)
    present = np.ones(len(z), bool) if where is None else np.asarray(where)
    top = max(z[present])
    total = sum(np.exp(v - top) for v in z[present])
    return np.array([v - top - np.log(total) if here else -np.inf for v, here in zip(z, present, strict=True)])


def soft_labels(rng, *shape):
    """Random probability vectors on the last axis."""
    x = np.exp(rng.normal(size=shape))
    return x / x.sum(-1, keepdims=True)
