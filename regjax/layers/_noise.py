"""What the noise layers share: masks at a rate that may be traced, inverted scaling, and the base of their modules."""

import numbers
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from regjax.core import checks, trees
from regjax.core.types import Array, Key, Strength


def check_rate(function: str, rate: Any) -> Any:
    """A drop rate: a number in [0, 1] or a scalar array."""
    return checks.number(function, "rate", rate, low=0.0, high=1.0)


def is_zero(rate: Any) -> bool:
    """Whether a rate is known to be 0 at trace time, so that no random bits need drawing."""
    return isinstance(rate, numbers.Real) and float(rate) == 0.0


def check_mask(function: str, argument: str, mask: Any, shape: tuple[int, ...]) -> Array:
    """A boolean mask of exactly ``shape``; None is no mask."""
    checked = checks.example_mask(function, argument, mask, shape)
    if checked is None:
        checks.fail(function, argument, f"a boolean mask of shape {list(shape)}", mask)
    return checked


def keep_mask(key: Key, rate: Any, shape: tuple[int, ...], sharding: Any = None) -> Array:
    """True with probability ``1 - rate``, from float32 uniforms: those of bfloat16 have 256 levels.

    "Not below the rate" rather than "at least the rate": at a rate of NaN everything is kept, divided by NaN and seen.
    """
    return ~(jax.random.uniform(key, shape, jnp.float32, out_sharding=sharding) < jnp.asarray(rate, jnp.float32))


def drop(x: Array, keep: Array, rate: Any, rescale: bool = True) -> Array:
    """``x / (1 - rate)`` where kept and 0 elsewhere, computed in float32 or better; 0 everywhere at rate 1."""
    dtype = trees.accumulator(x)
    kept = x.astype(dtype)
    if rescale:
        keep_rate = 1 - jnp.asarray(rate, dtype)
        none = keep_rate <= 0
        kept = jnp.where(none, 0, kept / jnp.where(none, 1, keep_rate))
    return jnp.where(keep, kept, 0).astype(x.dtype)


class NoiseLayer(nnx.Module):
    """Mode and randomness of a noise layer, with the conventions of `flax.nnx.Dropout`.

    ``deterministic`` is an attribute, so that ``train()``, ``eval()``, ``set_attributes`` and ``nnx.view`` set it, and an
    argument of the call that overrides it. Keys come from the call's ``rngs``, else from a stream forked at construction.
    """

    _name: ClassVar[str] = "layers.NoiseLayer"

    def __init__(self, *, deterministic: bool | None, rng_collection: str, rngs: Any):
        name = self._name
        if deterministic is not None:
            checks.boolean(name, "deterministic", deterministic)
        if not isinstance(rng_collection, str):
            checks.fail(name, "rng_collection", "the name of a random stream", rng_collection)
        self.deterministic = deterministic
        self.rng_collection = rng_collection
        if isinstance(rngs, nnx.Rngs):
            self.rngs = self._stream(rngs).fork()
        elif isinstance(rngs, nnx.RngStream):
            self.rngs = rngs.fork()
        elif rngs is None:
            self.rngs = nnx.data(None)
        else:
            checks.fail(name, "rngs", "nnx.Rngs, an nnx.RngStream or None (a key is given at the call)", rngs)

    def set_view(self, deterministic: bool | None = None) -> None:
        """Sets the mode; `flax.nnx.view` calls it.

        Args:
          deterministic: if True, the layer adds no noise.
        """
        if deterministic is not None:
            self.deterministic = checks.boolean(self._name, "deterministic", deterministic)

    def _is_deterministic(self, deterministic: bool | None) -> bool:
        chosen = self.deterministic if deterministic is None else deterministic
        return checks.boolean(self._name, "deterministic", chosen)

    def _stream(self, rngs: nnx.Rngs) -> nnx.RngStream:
        if self.rng_collection not in rngs and "default" not in rngs:
            checks.fail(self._name, "rngs", f"an nnx.Rngs with a stream {self.rng_collection!r} or 'default'", rngs)
        return rngs[self.rng_collection]

    def _key(self, rngs: Any) -> Key:
        source = self.rngs if rngs is None else rngs
        if source is None:
            checks.fail(self._name, "rngs", "given at the call or at construction unless deterministic", rngs)
        if isinstance(source, nnx.Rngs):
            source = self._stream(source)
        return source() if isinstance(source, nnx.RngStream) else checks.key(self._name, source, "rngs")


class RateLayer(NoiseLayer):
    """A noise layer with a drop rate, which the call may override."""

    def __init__(self, rate: Strength, *, deterministic: bool | None, rng_collection: str, rngs: Any):
        super().__init__(deterministic=deterministic, rng_collection=rng_collection, rngs=rngs)
        self.rate = check_rate(self._name, rate)

    def set_view(self, deterministic: bool | None = None, rate: Strength = None) -> None:
        """Sets the mode and the rate; `flax.nnx.view` calls it.

        Args:
          deterministic: if True, the layer adds no noise.
          rate: the drop rate, a number or a traced scalar: the value of a schedule, for all layers of a model at once.
        """
        super().set_view(deterministic)
        if rate is not None:
            check_rate(self._name, rate)
            self.rate = nnx.data(rate) if isinstance(rate, jax.Array) else nnx.static(rate)

    def _settings(self, rate: Strength, deterministic: bool | None, rngs: Any) -> tuple[Key | None, Any, bool]:
        """Key, rate and mode of a call; no key is drawn where none is needed."""
        rate = check_rate(self._name, self.rate if rate is None else rate)
        off = self._is_deterministic(deterministic) or is_zero(rate)
        return (None if off else self._key(rngs)), rate, off
