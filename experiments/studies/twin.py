"""Co-teaching: two networks as one model, and its recipe."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import regjax as rj
from experiments.engine import Task
from experiments.models import Classifier
from experiments.recipes import Setting, sgd
from regjax.core.types import Strength


class Twin(nnx.Module):
    """Two classifiers side by side: in training the logits of both, [B, 2K], else the mean of the two, [B, K]."""

    def __init__(self, first: Classifier, second: Classifier):
        self.first, self.second = first, second

    def __call__(
        self, images: jax.Array, *, key: Any = None, hooks: rj.Hooks, training: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """The logits, and the features of both, [B, 2D]."""
        keys = jax.random.split(key) if training else (None, None)
        pairs = zip((self.first, self.second), keys, strict=True)
        outputs = [network(images, key=key, hooks=hooks, training=training) for network, key in pairs]
        (first, second), features = zip(*outputs, strict=True)
        logits = jnp.concatenate([first, second], axis=-1) if training else (first + second) / 2
        return logits, jnp.concatenate(features, axis=-1)


class TwinTask(Task):
    """A task whose model is a `Twin`."""

    def model(self, key: jax.Array) -> Any:
        """Two fresh networks that start from different weights, the first from those of the other methods."""
        return Twin(super().model(key), super().model(jax.random.fold_in(key, 1)))


def co_teaching(s: Setting, forget_rate: float, num_gradual: int = 10) -> rj.Recipe:
    """Two networks, each trained on the examples that the other finds easy; needs a `TwinTask`."""

    def loss(logits: Any, labels: Any, *, forget_rate: Strength) -> Any:
        first, second = jnp.split(logits, 2, axis=-1)
        return sum(rj.losses.co_teaching(first, second, labels, forget_rate=forget_rate))

    rate = lambda step: rj.schedules.forget_rate(step // s.steps_per_epoch, forget_rate=forget_rate, num_gradual=num_gradual)
    return rj.Recipe(loss=functools.partial(loss, forget_rate=rate), optimizer=sgd(s))
