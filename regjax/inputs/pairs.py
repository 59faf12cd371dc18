"""Partners and weights of mixed examples: drawing, gathering and checking them. For the techniques of this stage."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regjax.core import checks, sharding
from regjax.core.types import Array, Key


def take_partner(x: Array, partner: Array) -> Array:
    """The partners' rows of ``x [B, ...]``, for ``partner`` of shape [B], or [G, B/G] with indices inside G blocks."""
    if partner.ndim == 1:
        return sharding.take_rows(x, partner)
    blocks, size = partner.shape
    if blocks % sharding.row_shards(x):
        # Blocks that span devices cannot be a dimension of their own on an Explicit mesh: number the rows globally.
        return sharding.take_rows(x, (partner + size * jnp.arange(blocks)[:, None]).reshape(-1))
    # A gather with the blocks as its batch dimension: the partitioner keeps it on the device that holds the block.
    index = partner.reshape(partner.shape + (1,) * (x.ndim - 1))
    return jnp.take_along_axis(x.reshape(partner.shape + x.shape[1:]), index, axis=1, mode="clip").reshape(x.shape)


def mix_partner(x: Array, lam: Array, partner: Array) -> Array:
    """``lam x + (1 - lam) x[partner]`` in float32 or better, in the dtype of ``x``."""
    dtype = jnp.promote_types(jnp.float32, x.dtype)
    lam = lam.astype(dtype).reshape(lam.shape + (1,) * (x.ndim - 1 if lam.ndim else 0))
    return (lam * x.astype(dtype) + (1 - lam) * take_partner(x, partner).astype(dtype)).astype(x.dtype)


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
    if within_shard is not None and batch % checks.integer(name, "within_shard", within_shard, low=1):
        checks.fail(name, "within_shard", f"a number of blocks that divides the batch of {batch}", within_shard)


def check_soft_labels(name: str, labels: Any, batch: int, ndim: int | None = None) -> Array:
    """Floating labels with one row for each of ``batch`` examples; class ids are told what to do."""
    labels = checks.array(name, "labels", labels)
    if not jnp.issubdtype(labels.dtype, jnp.floating):
        text = "floating one-hot or probability labels, jax.nn.one_hot(labels, num_classes), as mixed labels are no class ids"
        checks.fail(name, "labels", text, labels)
    if labels.ndim < 1 or labels.shape[0] != batch or (ndim is not None and labels.ndim != ndim):
        checks.fail(name, "labels", f"of shape [{batch}, {'K' if ndim else '...'}], one row for each image", labels)
    return labels


def check_lam(name: str, lam: Any, batch: int | None) -> Array:
    """A weight in [0, 1], or one for each of ``batch`` examples."""
    if np.ndim(lam) == 0:
        return jnp.asarray(checks.number(name, "lam", lam, low=0.0, high=1.0), float)
    return checks.floating(name, "lam", lam, shape=(batch,))


def check_partner(name: str, partner: Any, batch: int) -> Array:
    """Partners in one of the two forms that `take_partner` takes."""
    partner = checks.integers(name, "partner", partner)
    if partner.ndim not in (1, 2) or partner.size != batch:
        checks.fail(name, "partner", f"indices of shape [{batch}], or [G, {batch}/G] inside blocks", partner)
    return partner
