"""What the mixing techniques draw, weights and partners, and their common options."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, sharding
from regjax.core.partners import take_partner
from regjax.core.types import Array, Key


def reverse_rows(x: Array, blocks: int) -> Array:
    """The rows of ``x [B, ...]`` reversed inside each of ``blocks`` contiguous blocks: without a gather, so that it fuses."""
    if blocks == 1:
        return jnp.flip(x, 0)
    size = x.shape[0] // blocks
    if blocks % sharding.row_shards(x):
        return take_partner(x, jnp.broadcast_to(jnp.arange(size)[::-1], (blocks, size)))
    return jnp.flip(x.reshape(blocks, size, *x.shape[1:]), 1).reshape(x.shape)


def sample_partner(key: Key, batch: int, pairing: str, within_shard: int | None) -> Array:
    """Partners as `take_partner` takes them: [B], or [G, B/G] inside blocks."""
    size = batch // (within_shard or 1)
    if pairing == "permutation":
        if within_shard is None:
            return jax.random.permutation(key, size)
        return jax.vmap(lambda k: jax.random.permutation(k, size))(jax.random.split(key, within_shard))
    partner = jnp.arange(size)
    partner = partner[::-1] if pairing == "reverse" else jnp.roll(partner, 1)
    return partner if within_shard is None else jnp.broadcast_to(partner, (within_shard, size))


def sample_lam(key: Key, alpha: Any, prob: Any, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Lam of Beta(alpha, alpha) in float32, exactly 1 where nothing is mixed; and where something is."""
    key, prob_key = jax.random.split(key)
    alpha = jnp.asarray(alpha, jnp.float32)
    mixes = (jax.random.uniform(prob_key, shape, jnp.float32) < prob) & (alpha > 0)
    return jnp.where(mixes, symmetric_beta(key, jnp.where(alpha > 0, alpha, 1), shape), 1), mixes


def symmetric_beta(key: Key, alpha: Array, shape: tuple[int, ...]) -> Array:
    """Draws of Beta(alpha, alpha) in float32, in closed form.

    A rejection sampler loops until every element is accepted: a host round trip for each turn on a GPU, and an all-reduce
    where the batch is sharded. In place of it: for a > 1/2, (1 + t) / 2 with t = cos(2 pi u) sqrt(1 - v^(2 / (2a - 1)))
    is Beta(a, a) (Ulrich, 1984). For small a, take gamma variables g(a) = g(a + 1) w^(1/a): the log-odds of Beta(a, a) are
    those of Beta(a + 1, a + 1) plus (log w - log w') / a, and log w - log w' is a Laplace variable.
    """
    u_key, v_key, w_key = jax.random.split(key, 3)
    u = jax.random.uniform(u_key, shape, jnp.float32)
    v = jax.random.uniform(v_key, shape, jnp.float32, minval=jnp.finfo(jnp.float32).tiny)
    t = jnp.cos(2 * jnp.pi * u) * jnp.sqrt(-jnp.expm1(2 / (2 * alpha + 1) * jnp.log(v)))
    t = jnp.clip(t, -1 + 2**-23, 1 - 2**-23)
    return jax.nn.sigmoid(2 * jnp.arctanh(t) + jax.random.laplace(w_key, shape, jnp.float32) / alpha)


def share(x: Array, partner: Array) -> Array:
    """Draws [B] of which both members of a pair take the one of the first member."""
    return take_partner(x, jnp.minimum(partner, jnp.arange(partner.shape[-1])))


def check_options(name: str, alpha: Any, prob: Any, per: Any, pairing: Any, within_shard: Any, batch: int) -> None:
    """Checks the options that the mixing techniques share."""
    checks.number(name, "alpha", alpha, low=0.0)
    checks.number(name, "prob", prob, low=0.0, high=1.0)
    checks.choice(name, "per", per, ("batch", "example", "pair"))
    checks.choice(name, "pairing", pairing, ("permutation", "reverse", "roll"))
    if per == "pair" and pairing != "reverse":
        checks.fail(name, "pairing", "'reverse' with per='pair' (partners must be each other's)", pairing)
    check_blocks(name, within_shard, batch)


def check_soft_labels(name: str, labels: Any, batch: int, ndim: int | None = None) -> Array:
    """Floating labels with one row for each of ``batch`` examples; class ids are told what to do."""
    labels = checks.array(name, "labels", labels)
    if not jnp.issubdtype(labels.dtype, jnp.floating):
        text = "floating one-hot or probability labels, jax.nn.one_hot(labels, num_classes), as mixed labels are no class ids"
        checks.fail(name, "labels", text, labels)
    if labels.ndim < 1 or labels.shape[0] != batch or (ndim is not None and labels.ndim != ndim):
        checks.fail(name, "labels", f"of shape [{batch}, {'K' if ndim else '...'}], one row for each image", labels)
    return labels


def check_blocks(name: str, within_shard: Any, batch: int) -> int:
    """The number of blocks inside which a batch is paired: 1 for None."""
    if within_shard is None:
        return 1
    blocks = checks.integer(name, "within_shard", within_shard, low=1)
    if batch % blocks:
        checks.fail(name, "within_shard", f"a number of blocks that divides the batch of {batch}", within_shard)
    return blocks


def check_minmax(name: str, argument: str, minmax: Any, shape: tuple[int, int]) -> list[tuple[int, int]]:
    """For height and width, the least side of a box and the side that is one too large."""
    if not (isinstance(minmax, (tuple, list)) and len(minmax) == 2 and not any(isinstance(x, jax.Array) for x in minmax)):
        checks.fail(name, argument, "two fractions (low, high)", minmax)
    low, high = (float(checks.number(name, argument, x, low=0.0, high=1.0)) for x in minmax)
    ranges = [(int(n * low), int(n * high)) for n in shape]
    if any(least >= most for least, most in ranges):
        checks.fail(name, argument, f"fractions low < high with a box between them for images {list(shape)}", minmax)
    return ranges
