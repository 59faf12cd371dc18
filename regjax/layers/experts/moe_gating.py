"""Routing of tokens to their two likeliest experts, and the loss that keeps the experts' loads even."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks, sharding, trees
from regjax.core.types import Array


class Top2Gating(NamedTuple):
    """Weights and places ``[..., S, E, C]`` of tokens in the slots of experts, and the load-balancing loss."""

    combine: Array
    dispatch: Array
    load_balancing: Array


def load_balancing_loss(router_logits: Any, *, padding: Any = None) -> Array:
    r"""The load-balancing loss of a router: its gradient takes probability from the experts that get the most first choices.

    Formula:
      .. math:: E \sum_{e=1}^E \left( \frac{1}{T} \sum_t p_{t,e} \right)
        \left( \frac{1}{T} \sum_t 1[e = \arg\max_j p_{t,j}] \right), \quad p_t = softmax(z_t)

      The second factor, the share of tokens whose first choice is e, is constant for the gradient. It is 1
      for even loads, whatever the probabilities, and for even mean probabilities, E where one expert has all probability, and
      somewhat below 1 where the experts of the most first choices have the least mean probability.

    Args:
      router_logits: float ``[..., E]``; -inf rules an expert out.
      padding: boolean ``[...]``, True where a token is padding; default none.

    Returns:
      A scalar in float32 or better. The usual weight is 0.01, on the mean over layers. 0 without tokens.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      The softmax of the logits and a few passes over them more.
      XLA at [16, 128, 8]: at most 39 times the FLOPs and 13 times the bytes of a copy of its arguments, and 0.85 times its
      memory more.

    Use:
      For: unstable training, compute budget.
      When: Any layer with top-k routing, at about 0.01 on the mean over layers, from the first step: a router that has
        collapsed on one expert gives the others no gradient to come back by.
      Not when: Experts shall specialise on domains of very unequal size within a batch: evenness is then wrong, and above 0.01
        it competes with the task.
      Badly with: Losses summed over examples, beside which a mean is nothing. Small microbatches, in each of which the load
        must be even. `gating_dropout`, in whose steps it balances the local experts.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> round(float(rj.layers.load_balancing_loss(jnp.array([[1.0, 0.0], [1.0, 0.0]]))), 4)
      1.4621

    References:
      Lepikhin et al., GShard: Scaling Giant Models with Conditional Computation and Automatic Sharding, 2020, arXiv 2006.16668.
      Elbayad et al., Fixing MoE Over-Fitting on Low-Resource Languages in Multilingual Machine Translation, 2022, arXiv
      2212.07571, with weight 0.01 or 0.
    """
    name = "layers.load_balancing_loss"
    logits = _check_router_logits(name, router_logits, 1)
    real = _real(checks.example_mask(name, "padding", padding, logits.shape[:-1]), logits)
    probs = _probabilities(logits)
    return _balance(probs, _first(probs) & real[..., None], real)


def top2_gating(router_logits: Any, *, capacity: int, padding: Any = None) -> Top2Gating:
    r"""Sends each token to its two likeliest experts, each of which has a fixed number of slots.

    Formula:
      With p the softmax of the logits and a, b its largest and second entry:

      .. math:: w_a = \frac{p_a}{p_a + p_b}, \quad w_b = \frac{p_b}{p_a + p_b}

      First choices fill the slots of an expert in the order of the tokens, second choices come after all first ones; a
      choice beyond the capacity is lost, and its weight goes to no other.

    Args:
      router_logits: float ``[..., S, E]``: groups of S tokens with slots of their own. -inf rules an expert out; a token
        without experts is sent to none.
      capacity: C, the slots of an expert for each group; S loses no token.
      padding: boolean ``[..., S]``, True where a token is padding, which takes no slot; default none.

    Returns:
      ``Top2Gating(combine [..., S, E, C], dispatch [..., S, E, C], load_balancing)``: the weights in float32 or better,
      where they stand as booleans, and `load_balancing_loss`.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``capacity`` is no integer above 0.

    Cost:
      ``S E C`` weights for each group: keep groups small, some hundred tokens. Groups may be sharded over devices, then
      nothing is exchanged; tokens sharded inside a group are gathered to number them.
      XLA at 2 times [16, 128, 8, 32]: at most 8.9 times the FLOPs and 1.2 times the bytes of a copy of its results, and 0.051
      times its memory more.

    Use:
      Part of: `mixture_of_experts`.
      When: To build a layer of experts of another kind, such as convolutions or adapters: it gives who goes where and at which
        weight.
      Not when: Groups have thousands of tokens: the ``S E C`` arrays grow with their square. Split them.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> gating = rj.layers.top2_gating(jnp.array([[2.0, 1.0, 0.0]]), capacity=1)
      >>> [round(float(w), 4) for w in gating.combine[0, :, 0]]
      [0.7311, 0.2689, 0.0]

    References:
      Lepikhin et al., GShard: Scaling Giant Models with Conditional Computation and Automatic Sharding, 2020,
      arXiv 2006.16668, with normalisation before tokens are lost. Without its random choice of the second expert.
    """
    name = "layers.top2_gating"
    logits = _check_router_logits(name, router_logits, 2)
    capacity = checks.integer(name, "capacity", capacity, low=1)
    real = _real(checks.example_mask(name, "padding", padding, logits.shape[:-1]), logits)
    probs = _probabilities(logits)
    first = _first(probs) & real[..., None]
    rest = jnp.where(first, -1, probs)
    # A second choice of probability 0 is none: it would take a slot from another token.
    second = _first(rest) & (rest > 0) & real[..., None]
    top, next_ = (jnp.sum(jnp.where(choice, probs, 0), axis=-1) for choice in (first, second))
    total = top + next_
    total = jnp.where(total > 0, total, 1)
    numbered = [sharding.replicate(choice.astype(jnp.int32)) for choice in (first, second)]
    ahead = [jnp.cumsum(choice, axis=-2) - choice for choice in numbered]
    ahead[1] = ahead[1] + jnp.sum(numbered[0], axis=-2, keepdims=True)
    slots = [
        jax.nn.one_hot(place, capacity, dtype=bool) & choice[..., None]
        for place, choice in zip(ahead, (first, second), strict=True)
    ]
    weights = [(w / total)[..., None, None] for w in (top, next_)]
    combine = jnp.where(slots[0], weights[0], 0) + jnp.where(slots[1], weights[1], 0)
    return Top2Gating(combine, slots[0] | slots[1], _balance(probs, first, real))


def _check_router_logits(name: str, logits: Any, min_ndim: int) -> Array:
    logits = checks.floating(name, "router_logits", logits, min_ndim=min_ndim)
    return logits.astype(trees.accumulator(logits))


def _real(padding: Array | None, logits: Array) -> Array:
    """Where tokens are no padding."""
    return jnp.ones_like(logits[..., 0], bool) if padding is None else ~padding & jnp.ones_like(logits[..., 0], bool)


def _probabilities(logits: Array) -> Array:
    """The softmax over the experts that are not ruled out; 0 for all where none is left."""
    allowed = logits > -jnp.inf
    return jnp.where(allowed, jax.nn.softmax(jnp.where(jnp.any(allowed, axis=-1, keepdims=True), logits, 0), axis=-1), 0)


def _first(values: Array) -> Array:
    """The largest entry above 0 on the last axis as a mask, the first of equal ones."""
    return jax.nn.one_hot(jnp.argmax(values, axis=-1), values.shape[-1], dtype=bool) & (values > 0)


def _balance(probs: Array, first: Array, real: Array) -> Array:
    tokens = tuple(range(probs.ndim - 1))
    count = jnp.maximum(jnp.sum(real, dtype=probs.dtype), 1)
    mean = jnp.sum(jnp.where(real[..., None], probs, 0), axis=tokens) / count
    load = jnp.sum(first, axis=tokens, dtype=probs.dtype) / count
    return probs.shape[-1] * jnp.sum(mean * load)
