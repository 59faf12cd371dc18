"""What the contract tests share: casting, comparing and mapping the arrays of an example."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.contracts.example import Example


def is_float(leaf) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def on_host(example: Example, dtype=jnp.float32, replacements=None):
    """The arguments as NumPy arrays, floats cast to ``dtype``: what tests do to them on the host compiles nothing."""
    values = {**example.arrays, **(replacements or {})}
    return jax.tree.map(lambda x: np.asarray(x).astype(dtype) if is_float(x) else _array(x), values)


def _array(x):
    return x if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else np.asarray(x)


def arrays(example: Example, dtype=jnp.float32, replacements=None):
    """The arguments on the device, floats cast to ``dtype``."""
    return jax.tree.map(jnp.asarray, on_host(example, dtype, replacements))


KEY = jax.random.key(0)


class Compiled:
    """A technique as one program, and how often it was traced."""

    def __init__(self, example: Example) -> None:
        self.traces = 0
        self._call = jax.jit(self._traced)
        self._example = example
        self._on_one_device: object = None

    def _traced(self, key, values):
        self.traces += 1
        return self._example.call(key, **values)

    def __call__(self, key, values):
        return self._call(key, values)

    @property
    def on_one_device(self):
        """The result that others are compared with; a test of its own holds it equal to that without jit."""
        if self._on_one_device is None:
            self._on_one_device = self(KEY, arrays(self._example))
        return self._on_one_device


_COMPILED: dict[int, Compiled] = {}


def compiled(example: Example) -> Compiled:
    """The one program of an example that its tests share: compiling takes far longer than running."""
    return _COMPILED.setdefault(id(example), Compiled(example))


def leaves(tree) -> list[np.ndarray]:
    """The arrays of an output, keys as their bits, low precision as float32, so that NumPy can compare them."""
    out = []
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if leaf.dtype in (jnp.bfloat16, jnp.float16):
            leaf = leaf.astype(jnp.float32)
        out.append(np.asarray(leaf))
    return out


def assert_close(got, want, tolerance: float, what: str) -> None:
    """Equal up to a tolerance relative to the largest entry of each leaf."""
    got, want = leaves(got), leaves(want)
    assert len(got) == len(want), what
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape, f"{what}: {a.shape} and {b.shape}"
        finite = np.abs(b[np.isfinite(b)]) if b.dtype.kind == "f" else np.abs(b)
        scale = max(1.0, float(finite.max())) if finite.size else 1.0
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale, err_msg=what)


def assert_same(got, want, what: str) -> None:
    """Equal bit for bit."""
    got, want = leaves(got), leaves(want)
    assert len(got) == len(want), what
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=what)


def assert_finite(tree, what: str) -> None:
    for leaf in leaves(tree):
        if leaf.dtype.kind == "f":
            assert np.all(np.isfinite(leaf)), f"{what}: {leaf}"


def weighted_sum(tree):
    """A scalar with a generic gradient: every floating output times fixed numbers, summed."""
    total = 0.0
    for i, leaf in enumerate(jax.tree.leaves(tree)):
        if is_float(leaf):
            wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
            # Irrational steps: no two entries weigh alike, so errors cannot cancel.
            weights = jnp.cos(1.0 + i + 0.7 * jnp.arange(leaf.size, dtype=wide.dtype)).reshape(leaf.shape)
            total = total + jnp.sum(jnp.where(jnp.isfinite(wide), wide, 0) * weights)
    return total


def variant(example: Example, index: int, dtype=jnp.float32):
    """The arguments of a second and third problem of the same shapes: rows reversed, floats of the rows shrunk a little."""
    values = on_host(example, dtype)
    for name in example.rows:
        factor = 1.0 - 0.01 * index
        turned = jax.tree.map(lambda x: np.flip(x, 0) if index % 2 else x, values[name])
        shrink = example.result == "rows" and name in example.wrt
        values[name] = jax.tree.map(lambda x, s=shrink, f=factor: (x * f).astype(x.dtype) if s and is_float(x) else x, turned)
    return values
