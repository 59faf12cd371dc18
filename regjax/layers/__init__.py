"""Layers: noise inside a network, as pure functions and as thin Flax NNX modules over them."""

from regjax.layers.drop_path import DropPath, apply_drop_path, drop_path, drop_path_rates
from regjax.layers.dropout import Dropout, apply_dropout, dropout
from regjax.layers.multi_sample import (
    MultiSampleDropout,
    apply_multi_sample_dropout,
    multi_sample_dropout,
    multi_sample_loss,
)
from regjax.layers.nested import (
    NestedDropout,
    nested_dropout,
    nested_dropout_probs,
    sample_truncations,
    truncate_features,
)
from regjax.layers.truncation import select_truncation, truncated_logits

__all__ = [
    "DropPath",
    "Dropout",
    "MultiSampleDropout",
    "NestedDropout",
    "apply_drop_path",
    "apply_dropout",
    "apply_multi_sample_dropout",
    "drop_path",
    "drop_path_rates",
    "dropout",
    "multi_sample_dropout",
    "multi_sample_loss",
    "nested_dropout",
    "nested_dropout_probs",
    "sample_truncations",
    "select_truncation",
    "truncate_features",
    "truncated_logits",
]
