"""Examples of `regjax.weights.repair`: reconstructed channels, rounding, and what must not be rounded."""

import functools

import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, normal
from tests.contracts.table.weights import refused

reconstruct, rtn, restore = rj.weights.reconstruct_channels, rj.weights.round_to_nearest, rj.weights.restore_super
activation = rj.weights.quantize_super_activation
BN = (1 + 0.1 * normal(3, seed=4), normal(3, seed=5), normal(3, seed=6), 1 + 0.1 * normal(3, seed=7) ** 2)
KERNEL, NEXT = normal(8, 3), normal(8, 3, 2, seed=1)
K, X, DAMAGED = jnp.ones((4, 3)), jnp.ones((3, 2)), jnp.array([True, False, False])
wrong = lambda kernel=K, bn=None, following=X, damaged=DAMAGED, **given: reconstruct(kernel, bn, following, damaged, **given)


def both(kernel, bn, following, damaged):
    pruned = reconstruct(kernel, bn, following, damaged)
    rounded = reconstruct(kernel, bn, following, damaged, mode="quantize", quantized=0.9 * kernel, bias_weight=0.5)
    return *pruned, *rounded


EXAMPLES = (
    Example(
        name="weights.reconstruct_channels",
        call=lambda key, **arrays: both(**arrays),
        arrays={"kernel": KERNEL, "bn": BN, "following": NEXT, "damaged": np.array([False, True, False])},
        rows=("kernel", "following"),
        result="other",
        dtype=None,
        wrt=("kernel", "bn", "following"),
        singular=({"kernel": np.zeros((8, 3))}, {"kernel": np.ones((8, 3))}, {"damaged": np.ones(3, bool)}),
        identity=lambda key, kernel, bn, following, damaged: (
            reconstruct(kernel, bn, following, damaged & False).kernel_next,
            following,
        ),
        bad={
            "kernel_l: a vector": lambda: wrong(jnp.ones(3)),
            "kernel_l: integers": lambda: wrong(jnp.ones((4, 3), int)),
            "bn_l: three": lambda: wrong(bn=BN[:3]),
            "bn_l: shape": lambda: wrong(bn=(jnp.ones(2),) * 4),
            "kernel_next: other inputs": lambda: wrong(following=jnp.ones((4, 2))),
            "kernel_next: integers": lambda: wrong(following=jnp.ones((3, 2), int)),
            "damaged: shape": lambda: wrong(damaged=jnp.ones(2, bool)),
            "damaged: numbers": lambda: wrong(damaged=jnp.ones(3)),
            "mode: misspelt": lambda: wrong(mode="pruned"),
            "bias: shape": lambda: wrong(bias=jnp.ones(4)),
            "quantized: missing": lambda: wrong(mode="quantize"),
            "quantized: not wanted": lambda: wrong(quantized=K),
            "quantized: shape": lambda: wrong(mode="quantize", quantized=X),
            "ridge: zero": lambda: wrong(ridge=0.0),
            **refused(wrong, "bias_weight", "ridge", "epsilon"),
        },
    ),
    Example(
        name="weights.round_to_nearest",
        call=lambda key, w: (rtn(w), rtn(w, block_size=4, clip="zscore", clip_threshold=0.5)),
        arrays={"w": normal(8, 3)},
        rows=("w",),
        result="other",
        dtype="input",
        frozen=("w",),
        singular=({"w": np.zeros((8, 3))}, {"w": 1e4 * np.ones((8, 3))}, {"w": np.eye(8, 3)}),
        bad={
            "w: integers": lambda: rtn(jnp.ones(3, int)),
            "bits: zero": lambda: rtn(K, bits=0),
            "bits: a fraction": lambda: rtn(K, bits=2.5),
            "block_size: zero": lambda: rtn(K, block_size=0),
            "clip: misspelt": lambda: rtn(K, clip="z_score"),
            "clip_threshold: above 1": lambda: rtn(K, clip="tensor_percentage", clip_threshold=2.0),
            **refused(functools.partial(rtn, K, clip="iqr"), "clip_threshold"),
        },
    ),
    Example(
        name="weights.restore_super",
        call=lambda key, w_hat, w, coords: restore(w_hat, w, coords),
        arrays={"w_hat": normal(8, 3), "w": normal(8, 3, seed=1), "coords": np.array([[1, 2], [7, 0]])},
        rows=("w_hat", "w"),
        result="other",
        dtype="input",
        wrt=("w_hat", "w"),
        bad={
            "w_hat: a scalar": lambda: restore(1.0, 1.0, [0]),
            "w: shape": lambda: restore(K, X, [(0, 0)]),
            "coords: outside": lambda: restore(K, K, [(0, 3)]),
            "coords: negative": lambda: restore(K, K, [(-1, 0)]),
            "coords: of one axis": lambda: restore(K, K, [(1,)]),
            "coords: floats": lambda: restore(K, K, [(0.0, 1.0)]),
        },
    ),
    Example(
        name="weights.quantize_super_activation",
        call=lambda key, x: activation(x, (3, 1), bits=4),
        arrays={"x": normal(8, 3)},
        rows=("x",),
        result="other",
        dtype="input",
        singular=({"x": np.zeros((8, 3))}, {"x": 1e4 * np.eye(8, 3)}),
        bad={
            "x: integers": lambda: activation(jnp.ones(3, int), [0]),
            "coord: outside": lambda: activation(K, (4, 0)),
            "coord: of one axis": lambda: activation(K, (1,)),
            "bits: zero": lambda: activation(K, (0, 0), bits=0),
        },
    ),
)
