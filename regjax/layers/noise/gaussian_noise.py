"""Gaussian noise on activations, added to them or multiplied with them."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from regjax.core import checks, sharding, trees
from regjax.core.types import Array, Key, Strength
from regjax.layers._noise import NoiseLayer, is_zero

_KINDS = ("additive", "multiplicative")


def apply_gaussian_noise(x: Any, noise: Any, *, std: Strength, kind: str = "additive") -> Array:
    r"""Gaussian noise with the normal numbers given.

    Formula:
      .. math:: y_i = x_i + std\, n_i \quad or \quad y_i = x_i (1 + std\, n_i)

    Args:
      x: float, any shape.
      noise: float of the shape of ``x``: standard normal numbers.
      std: the noise's standard deviation, at least 0, a number or a traced scalar.
      kind: ``"additive"`` (default) or ``"multiplicative"``.

    Returns:
      Shape and dtype of ``x``.

    Raises:
      ValueError: if a shape or dtype does not fit, ``std`` is negative or not finite, or ``kind`` is misspelt.

    Cost:
      One read of ``x`` and ``noise`` and one write.
      XLA at 2 times [1024, 512]: at most 1.1 times the FLOPs and 0.83 times the bytes of a copy of its arguments, and 0 times
      its memory more.

    Use:
      Part of: `gaussian_noise`.
      When: The normal numbers are given: antithetic pairs, noise correlated over positions or time, the same noise in two
        passes.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> x, noise = jnp.array([1.0, 4.0]), jnp.array([1.0, -1.0])
      >>> rj.layers.apply_gaussian_noise(x, noise, std=0.5).tolist()
      [1.5, 3.5]
      >>> rj.layers.apply_gaussian_noise(x, noise, std=0.5, kind="multiplicative").tolist()
      [1.5, 2.0]

    References:
      See `gaussian_noise`.
    """
    name = "layers.apply_gaussian_noise"
    x = checks.floating(name, "x", x)
    noise = checks.floating(name, "noise", noise, shape=x.shape)
    _check_std(name, std)
    return _perturb(x, noise, std, checks.choice(name, "kind", kind, _KINDS))


def gaussian_noise(key: Key | None, x: Any, *, std: Strength, kind: str = "additive", deterministic: bool = False) -> Array:
    r"""Adds Gaussian noise to every entry, or multiplies each by a Gaussian number of mean 1.

    Formula:
      .. math:: y_i = x_i + std\, n_i \quad or \quad y_i = x_i (1 + std\, n_i), \quad n_i \sim N(0, 1)

      independent for every entry; the expectation is ``x``. Multiplicative noise of ``std = sqrt(rate / (1 - rate))`` has
      the mean and the variance of dropout at that rate.

    Args:
      key: a random key; None will do where ``deterministic``. Inside ``jax.shard_map`` fold the device's index in first.
      x: float, any shape; after a layer's activation, say.
      std: the noise's standard deviation, at least 0, a number or a traced scalar such as the value of a schedule; 0 is the
        identity.
      kind: ``"additive"`` (default), or ``"multiplicative"`` for Gaussian dropout.
      deterministic: True for test mode, the identity.

    Returns:
      Shape, dtype and sharding of ``x``.

    Raises:
      ValueError: if ``x`` is not floating, ``std`` is negative or not finite, ``kind`` is misspelt, or ``key`` is no key.

    Cost:
      One normal number per entry, which outweighs the rest. The backward pass of multiplicative noise keeps them.
      XLA at [1024, 512]: at most 110 times the FLOPs and 8.9 times the bytes of a copy of its arguments, and 1.7 times its
      memory more.

    Use:
      For: few labels, noisy labels.
      When: Hidden activations of a network that memorises: additive noise after a normalised or bounded activation, where
        ``std`` has a fixed meaning, else multiplicative, which is dropout without zeros. On the digits comparison both helped
        about as `dropout` did.
      Not when: On the logits or just before them, where it only flattens probabilities, or at an additive ``std`` copied from
        another network: it means something beside the scale of the activations only.
      Badly with: Additive noise in ReLU networks without decay or normalisation: larger activations make it vanish. `dropout`
        on the same place. Batch normalisation after it, whose variance holds the noise.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> y = rj.layers.gaussian_noise(jax.random.key(0), jnp.zeros(10_000), std=0.5)
      >>> round(float(y.std()), 1)
      0.5

    References:
      Additive noise after an activation: He et al., Information-Theoretic Generalization Bounds for Deep Neural Networks, 2024,
      arXiv 2404.03176, and `regjax.diagnostics.sdpi_contraction`. Multiplicative: Srivastava et al., Dropout: A Simple Way to
      Prevent Neural Networks from Overfitting, 2014, Journal of Machine Learning Research 15, section 10.
    """
    name = "layers.gaussian_noise"
    x = checks.floating(name, "x", x)
    _check_std(name, std)
    checks.choice(name, "kind", kind, _KINDS)
    if checks.boolean(name, "deterministic", deterministic):
        return x
    key = checks.key(name, key)
    if is_zero(std):
        return x
    noise = jax.random.normal(key, x.shape, trees.accumulator(x), out_sharding=sharding.explicit_sharding(x))
    return _perturb(x, noise, std, kind)


class GaussianNoise(NoiseLayer):
    r"""Gaussian noise as a Flax NNX module, with a standard deviation that a call may override.

    Formula:
      That of `gaussian_noise`.

    Args:
      std: the noise's standard deviation, at least 0. At the call, ``std=`` overrides it, by the value of a schedule say;
        for all layers of a model at once, ``nnx.view(model, only=rj.layers.GaussianNoise, std=value)``.
      kind: ``"additive"`` (default) or ``"multiplicative"``.
      deterministic: True for test mode, the identity; default False. See `Dropout`.
      rng_collection: the stream of an ``nnx.Rngs`` that keys are taken from, default "dropout".
      rngs: ``nnx.Rngs`` or ``nnx.RngStream`` to fork a stream from, or None where every call gives ``rngs=``, a key under
        ``jax.jit``, ``jax.vmap`` and ``jax.lax.scan``. See `Dropout`.

    Returns:
      A call ``layer(x, *, std=None, deterministic=None, rngs=None)`` gives an array like ``x``.

    Raises:
      ValueError: if ``std`` is negative or not finite, ``kind`` is misspelt, a mode is missing, or a key is needed and none
        is given.

    Cost:
      That of `gaussian_noise`; no parameters.
      XLA at [1024, 512]: at most 110 times the FLOPs and 8.9 times the bytes of a copy of its arguments, and 1.7 times its
      memory more.

    Use:
      Part of: `gaussian_noise`.
      When: In a Flax NNX model, with ``nnx.view(model, only=rj.layers.GaussianNoise, std=...)`` for a schedule in all layers.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> layer = rj.layers.GaussianNoise(0.5)
      >>> round(float(layer(jnp.zeros(10_000), rngs=jax.random.key(0)).std()), 1)
      0.5
      >>> layer(jnp.ones(2), deterministic=True).tolist()
      [1.0, 1.0]

    References:
      Those of `gaussian_noise`.
    """

    _name = "layers.GaussianNoise"

    def __init__(
        self,
        std: Strength,
        *,
        kind: str = "additive",
        deterministic: bool | None = False,
        rng_collection: str = "dropout",
        rngs: Any = None,
    ):
        super().__init__(deterministic=deterministic, rng_collection=rng_collection, rngs=rngs)
        self.std = _check_std(self._name, std)
        self.kind = checks.choice(self._name, "kind", kind, _KINDS)

    def set_view(self, deterministic: bool | None = None, std: Strength = None) -> None:
        """Sets the mode and the standard deviation; `flax.nnx.view` calls it.

        Args:
          deterministic: if True, the layer adds no noise.
          std: the standard deviation, a number or a traced scalar: the value of a schedule, for all layers at once.
        """
        super().set_view(deterministic)
        if std is not None:
            _check_std(self._name, std)
            self.std = nnx.data(std) if isinstance(std, jax.Array) else nnx.static(std)

    def __call__(self, x: Any, *, std: Strength = None, deterministic: bool | None = None, rngs: Any = None) -> Array:
        """`gaussian_noise` with the layer's settings, or those given here."""
        x = checks.floating(self._name, "x", x)
        std = _check_std(self._name, self.std if std is None else std)
        off = self._is_deterministic(deterministic) or is_zero(std)
        return gaussian_noise(None if off else self._key(rngs), x, std=std, kind=self.kind, deterministic=off)


def _check_std(function: str, std: Any) -> Any:
    return checks.number(function, "std", std, low=0.0)


def _perturb(x: Array, noise: Array, std: Any, kind: str) -> Array:
    dtype = trees.accumulator(x)
    wide, shift = x.astype(dtype), jnp.asarray(std, dtype) * noise.astype(dtype)
    # x times (1 + shift), not x + x * shift: at an infinite x and a std of 0 the latter would be NaN.
    return (wide + shift if kind == "additive" else wide * (1 + shift)).astype(x.dtype)
