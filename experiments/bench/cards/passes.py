"""What works on a network as a whole, beside a pass through it: the network of `case.step` in parts."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from experiments.bench.cards import case as c

CLASSES = c.MLP[-1]

entropy = optax.softmax_cross_entropy_with_integer_labels
mean_entropy = lambda logits, labels: entropy(logits, labels).mean()
head = lambda layer, h: h @ layer["kernel"] + layer["bias"]


def features(params: Any, x: jax.Array) -> jax.Array:
    """What the last layer sees."""
    for layer in params[:-1]:
        x = jax.nn.relu(head(layer, x))
    return x


logits = lambda params, x: head(params[-1], features(params, x))
each = lambda params, x, y: entropy(logits(params, x), y)
mean = lambda params, x, y: each(params, x, y).mean()


def gradient(call: Callable[..., Any], *extra: Any) -> c.Case:
    """``f(params, x, y, *extra)`` beside the value and gradient of the loss."""
    return _beside(jax.value_and_grad(mean), "a forward and backward pass", call, extra)


def forward(call: Callable[..., Any], *extra: Any) -> c.Case:
    """``f(params, x, y, *extra)`` beside the logits alone."""
    return _beside(lambda params, x, y: logits(params, x), "a forward pass", call, extra)


def _beside(plain: Callable[..., Any], of: str, call: Callable[..., Any], extra: tuple[Any, ...]) -> c.Case:
    step = c.step()
    params, _, x, y = step.args
    return c.Case(call, (params, x, y, *extra), plain, (params, x, y), of, step.at)
