"""Multi-sample dropout: several masks for the head, one pass of the network below it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, sharding, trees
from regjax.core.types import Array, Key, PyTree, Strength
from regjax.layers._noise import RateLayer, check_mask, check_rate, drop, is_zero, keep_mask


def apply_multi_sample_dropout(
    head_fn: Callable[[Array], PyTree],
    features: Any,
    keep_masks: Any,
    *,
    rate: Strength,
    flip: bool = False,
    reduce: str | None = None,
) -> PyTree:
    r"""Multi-sample dropout with the masks given.

    Formula:
      .. math:: y_m = head\left(\frac{mask_m h}{1 - rate}\right), \quad m = 1, \ldots, M

    Args:
      head_fn: the head, from features ``[rows, ...]`` to outputs that keep the rows on axis 0; see `multi_sample_dropout`.
      features: float ``[B, ...]``.
      keep_masks: boolean ``[M, B, ...]``; True keeps a feature.
      rate: the drop rate in [0, 1], a number or a traced scalar.
      flip: whether every second sample sees feature maps ``[B, H, W, C]`` flipped along W; default False.
      reduce: None (default) to keep the samples apart, ``"logits"`` to average the outputs.

    Returns:
      The head's outputs ``[M, B, ...]``, or ``[B, ...]`` if reduced.

    Raises:
      ValueError: if a shape or dtype does not fit, ``rate`` is outside [0, 1] or not finite, ``flip`` is asked for other
        than images, ``reduce`` is misspelt, or the head loses the rows.

    Cost:
      That of `multi_sample_dropout`.
      XLA at [512, 1000]: at most 8.9 times the FLOPs and 9.8 times the bytes of one head with its gradient, and 3 times its
      memory more.

    Use:
      Part of: `multi_sample_dropout`.
      When: The M masks are given: complementary or balanced masks instead of independent ones.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> masks = jnp.array([[[True, False]], [[True, True]]])
      >>> rj.layers.apply_multi_sample_dropout(lambda h: h, jnp.array([[1.0, 2.0]]), masks, rate=0.5).tolist()
      [[[2.0, 0.0]], [[2.0, 4.0]]]

    References:
      Inoue, Multi-Sample Dropout for Accelerated Training and Better Generalization, 2019, arXiv 1905.09788.
    """
    name = "layers.apply_multi_sample_dropout"
    checks.function(name, "head_fn", head_fn)
    features = _check_features(name, features, flip)
    masks = checks.array(name, "keep_masks", keep_masks, min_ndim=1)
    check_mask(name, "keep_masks", masks, (masks.shape[0], *features.shape))
    if masks.shape[0] < 1:
        checks.fail(name, "keep_masks", "the masks of at least one sample", masks)
    check_rate(name, rate)
    checks.choice(name, "reduce", reduce, (None, "logits"))
    return _run_head(name, head_fn, features, masks, rate, flip, reduce)


def multi_sample_dropout(
    key: Key | None,
    head_fn: Callable[[Array], PyTree],
    features: Any,
    *,
    num_samples: int = 8,
    rate: Strength = 0.5,
    flip: bool = False,
    reduce: str | None = None,
    deterministic: bool = False,
) -> PyTree:
    r"""Runs a head on several dropout samples of features that are computed once.

    Formula:
      .. math:: y_m = head\left(\frac{mask_m h}{1 - rate}\right), \quad mask_m \sim Bernoulli(1 - rate)

      with one set of head weights. Train on the mean of the M losses, `multi_sample_loss`, whose gradient is the mean of
      the M gradients; the loss of averaged logits, which ``reduce="logits"`` leads to, is at most that (Jensen).

    Args:
      key: a random key; None will do where ``deterministic``. With one sample the mask is that of
        ``dropout(jax.random.split(key, 1)[0], features, rate=rate)``.
      head_fn: the head, from features ``[rows, ...]`` to outputs (an array or a tree) that keep the rows on axis 0. It
        runs once on ``B * num_samples`` rows, the samples of an example side by side: so dropout inside it has masks
        of its own for every sample, and batch statistics inside it would see all the rows.
      features: float ``[B, ...]``.
      num_samples: M, at least 1, default 8; the paper uses 2 to 64.
      rate: the drop rate in [0, 1], default 0.5, a number or a traced scalar; at 0 all samples are equal.
      flip: whether every second sample sees feature maps ``[B, H, W, C]`` flipped along W; default False.
      reduce: None (default) to keep the samples apart, ``"logits"`` to average the outputs.
      deterministic: True for test mode: one pass without noise.

    Returns:
      The head's outputs ``[num_samples, B, ...]``, ``[1, B, ...]`` if deterministic; ``[B, ...]`` if reduced.

    Raises:
      ValueError: if a shape or dtype does not fit, ``num_samples`` is below 1, ``rate`` is outside [0, 1] or not finite,
        ``flip`` is asked for other than images, ``reduce`` is misspelt, or the head loses the rows.

    Cost:
      The head's FLOPs and memory times ``num_samples``; what lies below the features runs once.
      XLA at [512, 1000]: at most 8.9 times the FLOPs and 16 times the bytes of one head with its gradient, and 3.1 times its
      memory more.

    Use:
      For: few labels, compute budget.
      When: A small head on an expensive body at a high dropout rate: the body runs once, and the gradient of the mask noise is
        averaged over M masks. Tests show a lower training loss in the same steps.
      Not when: The head is a large part of the cost, or the rate is low, where all samples are alike. On the digits comparison,
        with a cheap body, it was no more accurate than `dropout`, less well calibrated and slower.
      Badly with: Batch normalisation inside the head, which sees the M copies as examples. Averaged logits
        (``reduce="logits"``), whose loss is lower and rewards agreement less. Memories by example such as `elr`, which want one
        prediction.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> head = lambda h: h @ jnp.ones((4, 3))
      >>> rj.layers.multi_sample_dropout(jax.random.key(0), head, jnp.ones((2, 4)), num_samples=5).shape
      (5, 2, 3)

    References:
      Inoue, Multi-Sample Dropout for Accelerated Training and Better Generalization, 2019, arXiv 1905.09788. There is no
      code by the author; averaging logits is common in the code of others. Which half of the samples is flipped is
      taken to be m = 2, 4, ...
    """
    name = "layers.multi_sample_dropout"
    checks.function(name, "head_fn", head_fn)
    features = _check_features(name, features, flip)
    num_samples = checks.integer(name, "num_samples", num_samples, low=1)
    check_rate(name, rate)
    checks.choice(name, "reduce", reduce, (None, "logits"))
    if checks.boolean(name, "deterministic", deterministic):
        outputs = head_fn(features)
        return outputs if reduce else jax.tree.map(lambda y: y[None], outputs)
    key = checks.key(name, key)
    here = sharding.explicit_sharding(features)
    if is_zero(rate):
        masks = jnp.ones((num_samples,) + (1,) * features.ndim, bool)
    else:
        masks = jax.vmap(lambda k: keep_mask(k, rate, features.shape, here))(jax.random.split(key, num_samples))
    return _run_head(name, head_fn, features, masks, rate, flip, reduce)


def multi_sample_loss(loss_fn: Callable[..., Any]) -> Callable[..., Array]:
    r"""Lifts a loss to the outputs of `multi_sample_dropout`: the mean of the losses, not the loss of the mean.

    Formula:
      .. math:: loss_b = \frac{1}{M} \sum_m loss(y_{m b}, label_b)

    Args:
      loss_fn: ``loss_fn(outputs, *args, **kwargs)``, per example or a scalar: any of `regjax.losses` or of optax.

    Returns:
      A function of the outputs ``[M, ...]`` and the other arguments of ``loss_fn``, which all samples share: the mean over
      the samples, in the shape of ``loss_fn``, in float32 or better. M is read from the outputs, so that it serves in
      test mode too.

    Raises:
      ValueError: if ``loss_fn`` is not callable or the outputs have no axis of samples.

    Cost:
      That of ``loss_fn`` times the number of samples.
      XLA at [256, 1000]: at most 8.2 times the FLOPs and 8.8 times the bytes of the loss of one sample, and 0.013 times its
      memory more.

    Use:
      Part of: `multi_sample_dropout`.
      When: To train on outputs ``[M, B, ...]`` of any loss, and to evaluate on the single pass of test mode with the same code.
      Badly with: Losses that count ranks or sets within a batch of M times B rows: each sample is a batch of its own here.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> logits = jnp.array([[[2.0, 0.0]], [[0.0, 4.0]], [[2.0, 4.0]], [[2.0, 0.0]]])
      >>> loss = rj.layers.multi_sample_loss(rj.losses.label_smoothing)
      >>> round(float(loss(logits, jnp.array([0]), alpha=0.0)[0]), 4)
      1.5997

    References:
      Inoue, Multi-Sample Dropout for Accelerated Training and Better Generalization, 2019, arXiv 1905.09788.
    """
    name = "layers.multi_sample_loss"
    checks.function(name, "loss_fn", loss_fn)

    def mean_over_samples(outputs: PyTree, *args: Any, **kwargs: Any) -> Array:
        outputs = jax.tree.map(lambda y: checks.array(name, "outputs", y, min_ndim=1), outputs)
        losses = jax.vmap(lambda y: loss_fn(y, *args, **kwargs))(outputs)
        return jnp.mean(losses, axis=0, dtype=trees.accumulator(losses))

    return mean_over_samples


class MultiSampleDropout(RateLayer):
    r"""Multi-sample dropout around a head, as a Flax NNX module.

    Formula:
      That of `multi_sample_dropout`.

    Args:
      head: an ``nnx.Module`` or a function from features ``[rows, ...]`` to outputs with the rows on axis 0.
      num_samples: M, at least 1, default 8.
      rate: the drop rate in [0, 1], default 0.5; the call's ``rate=`` overrides it. See `Dropout`.
      flip: whether every second sample sees feature maps ``[B, H, W, C]`` flipped along W; default False.
      reduce: None (default) to keep the samples apart, ``"logits"`` to average the outputs.
      deterministic: True for test mode, one pass without noise; default False. See `Dropout`.
      rng_collection: the stream of an ``nnx.Rngs`` that keys are taken from, default "dropout".
      rngs: ``nnx.Rngs`` or ``nnx.RngStream`` to fork a stream from, or None where every call gives ``rngs=``, a key under
        ``jax.jit``, ``jax.vmap`` and ``jax.lax.scan``. See `Dropout`. They do not reach the head.

    Returns:
      A call ``layer(features, *, rate=None, deterministic=None, rngs=None)`` gives the head's outputs ``[num_samples, B,
      ...]``, ``[1, B, ...]`` if deterministic, ``[B, ...]`` if reduced.

    Raises:
      ValueError: if an argument is outside its range, a mode is missing, or a key is needed and none is given.

    Cost:
      That of `multi_sample_dropout`; no parameters but the head's.
      XLA at [512, 1000]: at most 8.9 times the FLOPs and 16 times the bytes of one head with its gradient, and 3.1 times its
      memory more.

    Use:
      Part of: `multi_sample_dropout`.
      When: Around the head of a Flax NNX model. The head itself gets no keys from it: dropout inside needs its own stream.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> from flax import nnx
      >>> rngs = nnx.Rngs(0)
      >>> layer = rj.layers.MultiSampleDropout(nnx.Linear(4, 3, rngs=rngs), num_samples=5, rngs=rngs)
      >>> layer(jnp.ones((2, 4))).shape
      (5, 2, 3)

    References:
      Those of `multi_sample_dropout`.
    """

    _name = "layers.MultiSampleDropout"

    def __init__(
        self,
        head: Callable[[Array], PyTree],
        num_samples: int = 8,
        rate: Strength = 0.5,
        *,
        flip: bool = False,
        reduce: str | None = None,
        deterministic: bool | None = False,
        rng_collection: str = "dropout",
        rngs: Any = None,
    ):
        super().__init__(rate, deterministic=deterministic, rng_collection=rng_collection, rngs=rngs)
        name = self._name
        self.head = checks.function(name, "head", head)
        self.num_samples = checks.integer(name, "num_samples", num_samples, low=1)
        self.flip = checks.boolean(name, "flip", flip)
        self.reduce = checks.choice(name, "reduce", reduce, (None, "logits"))

    def __call__(self, features: Any, *, rate: Strength = None, deterministic: bool | None = None, rngs: Any = None) -> PyTree:
        """`multi_sample_dropout` with the layer's settings, or those given here."""
        name = self._name
        features = _check_features(name, features, self.flip)
        rate = check_rate(name, self.rate if rate is None else rate)
        off = self._is_deterministic(deterministic)
        return multi_sample_dropout(
            None if off else self._key(rngs),
            self.head,
            features,
            num_samples=self.num_samples,
            rate=rate,
            flip=self.flip,
            reduce=self.reduce,
            deterministic=off,
        )


def _check_features(function: str, features: Any, flip: bool) -> Array:
    features = checks.floating(function, "features", features, min_ndim=1)
    if checks.boolean(function, "flip", flip) and features.ndim != 4:
        checks.fail(function, "features", "feature maps of shape [B, H, W, C] where flip is True", features)
    return features


def _run_head(
    function: str,
    head_fn: Callable[[Array], PyTree],
    features: Array,
    masks: Array,
    rate: Any,
    flip: bool,
    reduce: str | None,
) -> PyTree:
    batch, num_samples = features.shape[0], masks.shape[0]
    samples = features[:, None]
    if flip:
        odd = (jnp.arange(num_samples) % 2 == 1)[:, None, None, None]
        samples = jnp.where(odd, jnp.flip(samples, -2), samples)
    # Examples before samples: so the rows fold into one axis within each device's part of a sharded batch.
    samples = drop(samples, jnp.moveaxis(masks, 0, 1), rate)
    samples = jnp.broadcast_to(samples, (batch, num_samples, *features.shape[1:]))
    outputs = head_fn(samples.reshape(batch * num_samples, *features.shape[1:]))

    def unfold(y: Any) -> Array:
        y = checks.array(function, "head_fn", y)
        if y.shape[:1] != (batch * num_samples,):
            checks.fail(function, "head_fn", f"a function whose outputs keep the {batch * num_samples} rows on axis 0", y)
        y = y.reshape(batch, num_samples, *y.shape[1:])
        if reduce is None:
            return jnp.moveaxis(y, 1, 0)
        return jnp.mean(y, axis=1, dtype=trees.accumulator(y)).astype(y.dtype)

    return jax.tree.map(unfold, outputs)
