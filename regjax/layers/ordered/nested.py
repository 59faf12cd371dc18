"""Nested dropout: features ordered by importance, kept up to a random length."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.types import Array, Key, Strength
from regjax.layers._noise import NoiseLayer

_DISTRIBUTIONS = ("gaussian", "geometric", "uniform")


def nested_dropout_probs(
    num_features: int,
    *,
    scale: Strength = None,
    mean: Strength = 0.0,
    distribution: str = "gaussian",
) -> Array:
    r"""The distribution of the number of features that nested dropout keeps.

    Formula:
      .. math::
        p_k \propto \exp\left(-\left(\frac{k - mean}{scale}\right)^2\right)
        \quad or \quad p_k \propto q^{k - 1},\ q = e^{-1 / scale}
        \quad or \quad p_k = \frac{1}{N}

      for k = 1, ..., N: gaussian (without a factor 1/2), geometric, uniform. Feature i survives with probability
      :math:`P(k \ge i)`.

    Args:
      num_features: N, at least 1.
      scale: above 0, a number or a traced scalar, for gaussian and geometric: how many features carry most of the
        information. The authors take 10 on CIFAR-10 (N = 512) and 100 on CIFAR-100 and Clothing1M.
      mean: the gaussian's centre, a number or a traced scalar; default 0.
      distribution: ``"gaussian"`` (default), ``"geometric"`` or ``"uniform"``.

    Returns:
      ``[N]``, summing to 1, in float32 or better.

    Raises:
      ValueError: if an argument is outside its range, ``distribution`` is misspelt, or ``scale`` or ``mean`` is given or
        missing against what it needs.

    Cost:
      A few passes over N numbers.
      XLA at [512]: at most 14 times the FLOPs and 3.4 times the bytes of a copy of its results, and 0.036 times its memory
      more.

    Use:
      Part of: `nested_dropout`.
      When: To set how long codes are: a gaussian ``scale`` of a few features for few classes, of a hundred for many, or
        ``uniform`` where every length shall serve.
      Not when: ``scale`` is near 1 or below: nearly all draws keep one feature, and the others hardly train.

    Example:
      >>> import regjax as rj
      >>> [round(float(p), 4) for p in rj.layers.nested_dropout_probs(4, scale=2.0)]
      [0.613, 0.2896, 0.083, 0.0144]

    References:
      Chen et al., Compressing Features for Learning with Noisy Labels, 2022, arXiv 2206.13140: the gaussian of the
      authors' code; the text has a half-normal, which is this with ``scale`` the standard deviation times sqrt(2).
      Geometric: Rippel et al., Learning Ordered Representations with Nested Dropout, 2014, arXiv 1402.0915.
    """
    name = "layers.nested_dropout_probs"
    n = checks.integer(name, "num_features", num_features, low=1)
    _check_distribution(name, scale, mean, distribution)
    if distribution == "uniform":
        return jnp.full((n,), 1 / n, trees.accumulator(1 / n))
    dtype = trees.accumulator(scale, mean)
    k = jnp.arange(1, n + 1, dtype=dtype)
    scale = jnp.maximum(jnp.asarray(scale, dtype), 1e-6)  # its powers are finite in float32
    if distribution == "geometric":
        return jax.nn.softmax(-(k - 1) / scale)
    # Relative to the nearest k, as a product: exactly 0 there however it is compiled, so that a tiny scale leaves all the
    # mass there; the difference of two squares would be a rounding error over the tiny scale.
    mean = jnp.asarray(mean, dtype)
    nearest = jnp.clip(jnp.round(mean), 1, n)
    return jax.nn.softmax(-(k - nearest) * (k + nearest - 2 * mean) / jnp.square(scale))


def truncate_features(x: Any, k: Any) -> Array:
    r"""Keeps the first features and sets the others to zero, without rescaling.

    Formula:
      .. math:: y_i = x_i \, [i \le k], \quad i = 1, \ldots, N

    Args:
      x: float ``[..., N]``.
      k: how many features to keep, 1 to N: an integer or a traced integer scalar, one for the whole batch.

    Returns:
      Shape and dtype of ``x``. The gradient of the dropped features is exactly 0.

    Raises:
      ValueError: if ``x`` is not floating, or ``k`` is no integer from 1 to N.

    Cost:
      One read and one write of ``x``.
      XLA at [1024, 512]: at most 1.2 times the FLOPs and 1.1 times the bytes of a copy of its arguments, and 0 times its memory
      more.

    Use:
      Part of: `nested_dropout`.
      When: At test, to keep the k of `select_truncation`, and in training wherever k was drawn elsewhere.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> rj.layers.truncate_features(jnp.array([1.0, 2.0, 3.0]), 2).tolist()
      [1.0, 2.0, 0.0]

    References:
      Chen et al., Compressing Features for Learning with Noisy Labels, 2022, arXiv 2206.13140. The
      deterministic part of `nested_dropout`.
    """
    name = "layers.truncate_features"
    x = checks.floating(name, "x", x, min_ndim=1)
    return _truncate(x, _check_k(name, k, x.shape[-1]))


def sample_truncations(key: Key, *probs: Any, alternate: bool = False) -> Array:
    r"""Draws how many features each of several layers keeps, for networks or layers that share or alternate them.

    Formula:
      .. math:: k_l \sim p_l

      With ``alternate`` one layer l is chosen uniformly, and the others keep all: :math:`k_j = N_j` for j other than l.

    Args:
      key: a random key; give the same to all devices.
      *probs: one float ``[N_l]`` per layer, as `nested_dropout_probs` makes them.
      alternate: whether one layer at a time is truncated; default False.

    Returns:
      int32 ``[layers]``, each from 1 to N_l, for `truncate_features`. Two networks that teach each other take the same.

    Raises:
      ValueError: if ``probs`` is empty or not of floating vectors, or ``key`` is no key.

    Cost:
      One draw from N classes per layer.
      XLA at 2 times [512]: at most 69 times the FLOPs and 8.5 times the bytes of a copy of its arguments, and 1.9 times its
      memory more.

    Use:
      Part of: `nested_dropout`.
      When: Two networks of `co_teaching` must take the same k in a step, or two layers are truncated, by turns with
        ``alternate=True``.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> p = jnp.array([0.0, 1.0, 0.0, 0.0])
      >>> rj.layers.sample_truncations(jax.random.key(0), p, p).tolist()
      [2, 2]
      >>> sorted(rj.layers.sample_truncations(jax.random.key(0), p, p, alternate=True).tolist())
      [2, 4]

    References:
      Chen et al., Compressing Features for Learning with Noisy Labels, 2022, arXiv 2206.13140.
    """
    name = "layers.sample_truncations"
    key = checks.key(name, key)
    if not probs:
        checks.fail(name, "probs", "one vector of probabilities per layer", probs)
    checked = [checks.floating(name, "probs", p, ndim=1) for p in probs]
    checks.boolean(name, "alternate", alternate)
    keys = jax.random.split(key, len(checked) + 1)
    drawn = jnp.stack([_draw(k, p) for k, p in zip(keys[1:], checked, strict=True)])
    if not alternate:
        return drawn
    chosen = jax.random.randint(keys[0], (), 0, len(checked))
    widths = jnp.array([p.shape[0] for p in checked], jnp.int32)
    return jnp.where(jnp.arange(len(checked)) == chosen, drawn, widths)


def nested_dropout(key: Key | None, x: Any, *, probs: Any, deterministic: bool = False) -> Array:
    r"""Keeps a random number of leading features, so that the first ones come to carry the most.

    Formula:
      .. math:: y_i = x_i \, [i \le k], \quad k \sim p

      one k for the whole batch and no rescaling. It stands on the last features before a classifier without bias, and
      replaces ordinary dropout. After training choose k on a validation set with `truncated_logits` and
      `select_truncation`, and keep it with `truncate_features`.

    Args:
      key: a random key, the same on all devices; None will do where ``deterministic``.
      x: float ``[..., N]``.
      probs: float ``[N]``: the probability of keeping 1, ..., N features, as `nested_dropout_probs` makes it.
      deterministic: True to keep all features.

    Returns:
      Shape and dtype of ``x``.

    Raises:
      ValueError: if ``x`` is not floating, ``probs`` has another length than its last axis, or ``key`` is no key.

    Cost:
      One read and one write of ``x``, and one draw from N classes.
      XLA at [1024, 512]: at most 1.2 times the FLOPs and 1.2 times the bytes of a copy of its arguments, and 0.01 times its
      memory more.

    Use:
      For: noisy labels, few labels.
      When: Wrong labels, a wide last feature layer, and a clean validation set to choose k on: in tests with that choice a
        short code beats the full width. It also serves codes that are cut to any length.
      Not when: No clean validation set, or all features are kept at test: so it lost to plain cross-entropy on the digits
        comparison and did not help in the label-noise study, though it memorised less.
      Badly with: `dropout` on the same features, which destroys their order. Normalisation after it, whose statistics change
        with k, as nothing is rescaled. Different keys on devices, which draw different k.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> rj.layers.nested_dropout(jax.random.key(0), jnp.ones((1, 3)), probs=jnp.array([0.0, 1.0, 0.0])).tolist()
      [[1.0, 1.0, 0.0]]

    References:
      Chen et al., Compressing Features for Learning with Noisy Labels, 2022, arXiv 2206.13140; Rippel et al., Learning
      Ordered Representations with Nested Dropout, 2014, arXiv 1402.0915.
    """
    name = "layers.nested_dropout"
    x = checks.floating(name, "x", x, min_ndim=1)
    probs = checks.floating(name, "probs", probs, shape=x.shape[-1:])
    if checks.boolean(name, "deterministic", deterministic):
        return x
    return _truncate(x, _draw(checks.key(name, key), probs))


class NestedDropout(NoiseLayer):
    r"""Nested dropout as a Flax NNX module.

    Formula:
      That of `nested_dropout` with the probabilities of `nested_dropout_probs`.

    Args:
      num_features: N, the length of the input's last axis.
      scale: the distribution's scale; the call's ``scale=`` overrides it, by the value of a schedule say.
      mean: the gaussian's centre, default 0.
      distribution: ``"gaussian"`` (default), ``"geometric"`` or ``"uniform"``.
      deterministic: True to keep all features; default False. See `Dropout`.
      rng_collection: the stream of an ``nnx.Rngs`` that keys are taken from, default "dropout".
      rngs: ``nnx.Rngs`` or ``nnx.RngStream`` to fork a stream from, or None where every call gives ``rngs=``, a key under
        ``jax.jit``, ``jax.vmap`` and ``jax.lax.scan``. See `Dropout`.

    Returns:
      A call ``layer(x, *, k=None, scale=None, deterministic=None, rngs=None)`` gives an array like ``x``. With ``k`` it
      keeps the first k features in either mode, and draws nothing: the k of `select_truncation` at test, or one that
      two layers or networks share (`sample_truncations`).

    Raises:
      ValueError: if an argument is outside its range, a mode is missing, or a key is needed and none is given.

    Cost:
      That of `nested_dropout`; no parameters.
      XLA at [1024, 512]: at most 1.2 times the FLOPs and 1.2 times the bytes of a copy of its arguments, and 0.01 times its
      memory more.

    Use:
      Part of: `nested_dropout`.
      When: In a Flax NNX model before the classifier: ``k=`` at the call is the validated length at test.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> layer = rj.layers.NestedDropout(3, scale=1e-3)
      >>> layer(jnp.ones((1, 3)), rngs=jax.random.key(0)).tolist()
      [[1.0, 0.0, 0.0]]
      >>> layer(jnp.ones((1, 3)), k=2).tolist()
      [[1.0, 1.0, 0.0]]

    References:
      Those of `nested_dropout`.
    """

    _name = "layers.NestedDropout"

    def __init__(
        self,
        num_features: int,
        *,
        scale: Strength = None,
        mean: Strength = 0.0,
        distribution: str = "gaussian",
        deterministic: bool | None = False,
        rng_collection: str = "dropout",
        rngs: Any = None,
    ):
        super().__init__(deterministic=deterministic, rng_collection=rng_collection, rngs=rngs)
        self.num_features = checks.integer(self._name, "num_features", num_features, low=1)
        _check_distribution(self._name, scale, mean, distribution)
        self.scale, self.mean, self.distribution = scale, mean, distribution

    def __call__(
        self,
        x: Any,
        *,
        k: Any = None,
        scale: Strength = None,
        deterministic: bool | None = None,
        rngs: Any = None,
    ) -> Array:
        """`nested_dropout` with the layer's settings, or those given here; with ``k`` `truncate_features`."""
        name, n = self._name, self.num_features
        x = checks.floating(name, "x", x, min_ndim=1)
        if x.shape[-1] != n:
            checks.fail(name, "x", f"an array [..., {n}]", x)
        if k is not None:
            return _truncate(x, _check_k(name, k, n))
        scale = self.scale if scale is None else scale
        _check_distribution(name, scale, self.mean, self.distribution)
        if self._is_deterministic(deterministic):
            return x
        probs = nested_dropout_probs(n, scale=scale, mean=self.mean, distribution=self.distribution)
        return nested_dropout(self._key(rngs), x, probs=probs)


def _check_distribution(function: str, scale: Any, mean: Any, distribution: str) -> None:
    checks.choice(function, "distribution", distribution, _DISTRIBUTIONS)
    if distribution == "uniform":
        if scale is not None:
            checks.fail(function, "scale", "left out for the uniform distribution", scale)
    else:
        checks.number(function, "scale", scale, low=0.0, open_low=True)
    checks.number(function, "mean", mean)
    if distribution != "gaussian" and (isinstance(mean, jax.Array) or mean != 0):
        checks.fail(function, "mean", "left out unless the distribution is gaussian", mean)


def _check_k(function: str, k: Any, num_features: int) -> Any:
    if isinstance(k, jax.Array):
        return checks.integers(function, "k", k, shape=())
    return checks.integer(function, "k", k, low=1, high=num_features)


def _draw(key: Key, probs: Array) -> Array:
    log_p = jnp.log(probs.astype(trees.accumulator(probs)))
    return 1 + jax.random.categorical(key, log_p).astype(jnp.int32)


def _truncate(x: Array, k: Any) -> Array:
    return jnp.where(jnp.arange(x.shape[-1]) < k, x, 0)
