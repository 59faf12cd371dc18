"""Examples of `regjax.losses.diffusion`."""

import functools

import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, normal

align, denoise, subject = rj.losses.embedding_alignment, rj.losses.masked_denoising, rj.losses.subject_derived
P, M = jnp.ones((2, 3, 3, 2)), jnp.ones((2, 3, 3, 1))
S, V = jnp.ones((2, 3)), jnp.ones(2)
MASK = (normal(8, 2, 2, 1, seed=2) > -0.5).astype(float)


def of_variance(**arrays):
    """Variances in log scale, so that they stay positive."""
    log_variance = arrays.pop("log_variance")
    return {**arrays, "variance": jnp.exp(log_variance)}


BATCH = {
    "subject_mean": normal(8, 3),
    "class_reference": normal(8, 3, seed=1),
    "class_mean": normal(8, 3, seed=2),
    "unconditional_mean": normal(8, 3, seed=3),
    "log_variance": normal(8, seed=4),
}
whole = functools.partial(subject, batch_mean=True)

EXAMPLES = (
    Example(
        name="losses.embedding_alignment",
        call=lambda key, embedding, targets: align(embedding, targets),
        arrays={"embedding": normal(4), "targets": normal(8, 4, seed=1)},
        rows=("targets",),
        result="scalar",
        wrt=("embedding",),
        frozen=("targets",),
        singular=({"embedding": np.zeros(4)}, {"targets": np.zeros((8, 4))}, {"embedding": 1e4 * normal(4)}),
        bad={
            "embedding: integers": lambda: align(jnp.ones(3, int), S),
            "embedding: rank": lambda: align(S, S),
            "targets: another width": lambda: align(jnp.ones(4), S),
            "targets: one vector": lambda: align(jnp.ones(3), jnp.ones(3)),
            "targets: none": lambda: align(jnp.ones(3), jnp.ones((0, 3))),
            "targets: integers": lambda: align(jnp.ones(3), jnp.ones((2, 3), int)),
        },
    ),
    Example(
        name="losses.masked_denoising",
        call=lambda key, prediction, target, mask: denoise(prediction, target, mask),
        arrays={"prediction": normal(8, 2, 2, 2), "target": normal(8, 2, 2, 2, seed=1), "mask": MASK},
        rows=("prediction", "target", "mask"),
        result="rows",
        wrt=("prediction",),
        frozen=("target", "mask"),
        singular=({"mask": np.zeros((8, 2, 2, 1))}, {"prediction": np.full((8, 2, 2, 2), 1e4)}),
        bad={
            "prediction: integers": lambda: denoise(jnp.ones((2, 3, 3, 2), int), P, M),
            "prediction: rank": lambda: denoise(V, V, V),
            "target: shape": lambda: denoise(P, P[:1], M),
            "target: integers": lambda: denoise(P, jnp.ones((2, 3, 3, 2), int), M),
            "mask: channels": lambda: denoise(P, P, P),
            "mask: rank": lambda: denoise(P, P, M[..., 0]),
        },
    ),
    Example(
        name="losses.subject_derived",
        call=lambda key, **arrays: subject(**of_variance(**arrays)),
        mapped=lambda axis_name, key, **arrays: subject(**of_variance(**arrays)),
        arrays=BATCH,
        rows=tuple(BATCH),
        result="rows",
        wrt=("subject_mean",),
        frozen=tuple(BATCH)[1:],
        singular=(
            {"log_variance": np.full(8, -1e4)},
            {"unconditional_mean": normal(8, 3, seed=2)},
            {"class_reference": normal(8, 3)},
        ),
        bad={
            "subject_mean: rank": lambda: subject(V, V, V, V, V),
            "subject_mean: integers": lambda: subject(S.astype(int), S, S, S, V),
            "class_reference: shape": lambda: subject(S, S[:1], S, S, V),
            "class_mean: integers": lambda: subject(S, S, S.astype(int), S, V),
            "unconditional_mean: shape": lambda: subject(S, S, S, S[:, :1], V),
            "variance: length": lambda: subject(S, S, S, S, jnp.ones(3)),
            "variance: a number": lambda: subject(S, S, S, S, 0.1),
            "batch_mean: a number": lambda: subject(S, S, S, S, V, batch_mean=1),
            "axis_name: a number": lambda: subject(S, S, S, S, V, axis_name=0),
        },
    ),
    Example(
        name="losses.subject_derived",
        call=lambda key, **arrays: whole(**of_variance(**arrays)),
        mapped=lambda axis_name, key, **arrays: whole(**of_variance(**arrays), axis_name=axis_name),
        arrays=BATCH,
        rows=tuple(BATCH),
        result="rows",
        wrt=("subject_mean",),
        frozen=tuple(BATCH)[1:],
    ),
)
