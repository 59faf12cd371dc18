"""Examples of the weights of adapters: singular factors of a kernel, and penalties on adapters."""

from functools import partial

import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, normal

w = rj.weights
K, U, S, VT = jnp.ones((4, 3)), jnp.ones((4, 2)), jnp.ones(2), jnp.ones((2, 3))
VECTORS = {
    "q": {"u": normal(8, 2), "vt": normal(2, 3, seed=1), "s": normal(2, seed=2)},
    "v": {"u": normal(8, 2, seed=3), "vt": normal(2, 3, seed=4)},
}
GROUP = {
    "q": {"kernel": normal(8, 3, seed=1), "a": normal(2, 8, 1, seed=2), "b": normal(2, 1, 3, seed=3)},
    "norm": {"scale": normal(3)},
}


def kernel_errors(call) -> dict:
    """What the splits of a kernel refuse."""
    return {
        "kernel: a convolution": lambda: call(jnp.ones((3, 3, 2, 2))),
        "kernel: integers": lambda: call(jnp.ones((4, 3), int)),
        "rank: zero": lambda: call(rank=0),
        "rank: above min(in, out)": lambda: call(rank=4),
        "rank: a float": lambda: call(rank=1.0),
        "scale: NaN": lambda: call(scale=float("nan")),
        "scale: a string": lambda: call(scale="large"),
    }


def split(fn, kernel=K, **options):
    return fn(kernel, **{"rank": 2, **options})


def merged(residual=K, u=U, s=S, vt=VT, **options):
    return w.sorsa_merge(residual, u, s, vt, **options)


def again(factors):
    """What does not depend on the signs of singular vectors."""
    return factors.residual, factors[1] @ jnp.swapaxes(factors[1], 0, 1)


EXAMPLES = (
    *(
        Example(
            name=f"weights.{fn.__name__}",
            call=lambda key, kernel, fn=fn: again(fn(kernel, rank=2, scale=0.5)),
            arrays={"kernel": normal(4, 3)},
            result="other",
            dtype=None,
            frozen=("kernel",),
            singular=({"kernel": np.zeros((4, 3))}, {"kernel": np.ones((4, 3))}),
            tolerance=1e-4,
            bad=kernel_errors(partial(split, fn)),
        )
        for fn in (w.sorsa_init, w.pissa_init)
    ),
    Example(
        name="weights.sorsa_merge",
        call=lambda key, **factors: w.sorsa_merge(**factors, scale=0.5),
        arrays={"residual": normal(4, 3), "u": normal(4, 2, seed=1), "s": normal(2, seed=2), "vt": normal(2, 3, seed=3)},
        result="other",
        dtype="input",
        wrt=("residual", "u", "s", "vt"),
        identity=lambda key, **factors: (w.sorsa_merge(**factors, scale=0.0), factors["residual"]),
        bad={
            "residual: a vector": lambda: merged(jnp.ones(3)),
            "u: shape": lambda: merged(u=jnp.ones((3, 2))),
            "s: shape": lambda: merged(s=jnp.ones(3)),
            "vt: shape": lambda: merged(vt=jnp.ones((2, 4))),
            "scale: NaN": lambda: merged(scale=float("nan")),
            "scale: a string": lambda: merged(scale="large"),
        },
    ),
    Example(
        name="weights.sorsa_orthonormality",
        call=lambda key, adapters: w.sorsa_orthonormality(adapters),
        arrays={"adapters": VECTORS},
        result="scalar",
        wrt=("adapters",),
        tree="adapters",
        singular=(
            {"adapters": {k: {n: np.zeros_like(x) for n, x in v.items()} for k, v in VECTORS.items()}},
            {"adapters": {k: {n: np.eye(*x.shape) if x.ndim == 2 else x for n, x in v.items()} for k, v in VECTORS.items()}},
        ),
        bad={
            "squared: a number": lambda: w.sorsa_orthonormality([{"u": U, "vt": VT}], squared=2),
            "adapters: none": lambda: w.sorsa_orthonormality({"kernel": K}),
            "adapters: of other ranks": lambda: w.sorsa_orthonormality([{"u": K, "vt": VT}]),
            "adapters: vectors": lambda: w.sorsa_orthonormality([{"u": S, "vt": VT}]),
        },
    ),
    *(
        Example(
            name="weights.orthogonal_group_penalty",
            call=lambda key, adapters, contract=contract: w.orthogonal_group_penalty(adapters, contract=contract),
            arrays={"adapters": GROUP},
            result="scalar",
            # The kernel's gradient is none: finite differences are by `a` and `b` in the unit tests.
            surrogate=True,
            wrt=("adapters",),
            tree="adapters",
            singular=({"adapters": {k: {n: np.zeros_like(x) for n, x in v.items()} for k, v in GROUP.items()}},),
            bad={
                "contract: misspelt": lambda: w.orthogonal_group_penalty(GROUP, contract="inputs"),
                "adapters: none": lambda: w.orthogonal_group_penalty({"kernel": K}),
                "adapters: no kernel": lambda: w.orthogonal_group_penalty([{"a": U, "b": VT}]),
                "adapters: another kernel": lambda: w.orthogonal_group_penalty([{"kernel": VT, "a": U, "b": VT}]),
                "adapters: of other ranks": lambda: w.orthogonal_group_penalty([{"kernel": K, "a": K, "b": VT}]),
                "adapters: four dimensions": lambda: w.orthogonal_group_penalty([{"kernel": K, "a": U[None, None], "b": VT}]),
                "adapters: members of two shapes": lambda: w.orthogonal_group_penalty(
                    [{"kernel": K, "a": [U, K], "b": [VT, VT]}]
                ),
            },
        )
        for contract in ("input", "output")
    ),
)
