"""Examples of `regjax.inputs`: dropout of modalities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, normal

KEY, X = jax.random.key(0), jnp.ones((4, 3))
SET = {"text": X, "video": jnp.ones((4, 2))}
KEEP = np.array([True, False, False, True, False, True, True, False])
EMBEDDINGS = {"text": normal(8, 3), "video": normal(8, 2, 2, seed=1)}
KEEPS = {"text": KEEP, "video": np.roll(KEEP, 3)}
NULL = normal(3, seed=2)

dropout, apply = rj.inputs.modality_dropout, rj.inputs.apply_modality_dropout
dropout_set, apply_set = rj.inputs.modality_dropout_set, rj.inputs.apply_modality_dropout_set


def rate_errors(argument: str, call) -> dict:
    values = {"above 1": 1.5, "negative": -0.1, "NaN": float("nan"), "a string": "half", "a schedule": lambda step: 0.1}
    return {f"{argument}: {what}": functools.partial(call, **{argument: v}) for what, v in (*values.items(), ("a vector", X[0]))}


def set_errors(fn) -> dict:
    """The errors of ``fn(embeddings, nulls=None)``."""
    return {
        "embeddings: an array": lambda: fn(X),
        "embeddings: empty": lambda: fn({}),
        "embeddings: integers": lambda: fn({**SET, "text": jnp.ones((4, 3), int)}),
        "embeddings: of other examples": lambda: fn({**SET, "text": jnp.ones((5, 3))}),
        "nulls: an unknown name": lambda: fn(SET, nulls={"texts": jnp.zeros(3)}),
        "nulls: shape": lambda: fn(SET, nulls={"text": jnp.zeros(2)}),
        "nulls: an array": lambda: fn(SET, nulls=jnp.zeros(3)),
    }


def given_set(key, text, video, null, keep_text, keep_video, fallback):
    keep = {"text": keep_text, "video": keep_video}
    return apply_set({"text": text, "video": video}, keep, fallback=fallback, nulls={"text": null})


EXAMPLES = (
    Example(
        name="inputs.modality_dropout",
        call=lambda key, embedding, null: dropout(key, embedding, rate=0.5, null=null),
        arrays={"embedding": normal(8, 3), "null": NULL},
        rows=("embedding",),
        result="other",
        dtype="input",
        wrt=("embedding", "null"),
        random=True,
        identity=lambda key, embedding, null: (dropout(key, embedding, rate=jnp.zeros(()), null=null), embedding),
        singular=({"embedding": np.zeros((8, 3))}, {"embedding": 1e4 * normal(8, 3)}),
        bad={
            **rate_errors("rate", functools.partial(dropout, KEY, X)),
            "embedding: integers": lambda: dropout(KEY, jnp.ones((4, 3), int), rate=0.5),
            "embedding: a scalar": lambda: dropout(KEY, jnp.ones(()), rate=0.5),
            "key: a number": lambda: dropout(0, X, rate=0.5),
            "key: missing": lambda: dropout(None, X, rate=0.5),
            "null: shape": lambda: dropout(KEY, X, rate=0.5, null=jnp.zeros(2)),
            "null: integers": lambda: dropout(KEY, X, rate=0.5, null=jnp.zeros(3, int)),
            "deterministic: a string": lambda: dropout(KEY, X, rate=0.5, deterministic="no"),
        },
    ),
    Example(
        name="inputs.apply_modality_dropout",
        call=lambda key, embedding, keep, null: apply(embedding, keep, null=null),
        arrays={"embedding": normal(8, 3), "keep": KEEP, "null": NULL},
        rows=("embedding", "keep"),
        result="rows",
        dtype="input",
        wrt=("embedding", "null"),
        identity=lambda key, embedding, keep, null: (apply(embedding, jnp.ones(8, bool), null=null), embedding),
        singular=({"embedding": np.zeros((8, 3))}, {"keep": np.zeros(8, bool)}),
        bad={
            "embedding: integers": lambda: apply(jnp.ones((4, 3), int), KEEP[:4]),
            "keep: shape": lambda: apply(X, KEEP[:3]),
            "keep: floats": lambda: apply(X, jnp.ones(4)),
            "keep: None": lambda: apply(X, None),
            "null: shape": lambda: apply(X, KEEP[:4], null=jnp.zeros(2)),
        },
    ),
    Example(
        name="inputs.modality_dropout_set",
        call=lambda key, text, video: dropout_set(key, {"video": video, "text": text}, rates={"text": 0.5, "video": 0.7}),
        arrays=EMBEDDINGS,
        rows=("text", "video"),
        result="other",
        dtype="input",
        wrt=("text", "video"),
        random=True,
        identity=lambda key, text, video: (
            dropout_set(key, {"text": text, "video": video}, rates=0.0),
            dropout_set(None, {"text": text, "video": video}, rates=0.5, deterministic=True),
        ),
        singular=({"text": np.zeros((8, 3))},),
        bad={
            **rate_errors("rates", functools.partial(dropout_set, KEY, SET)),
            "rates: of other names": lambda: dropout_set(KEY, SET, rates={"text": 0.5}),
            "rates: one above 1": lambda: dropout_set(KEY, SET, rates={"text": 0.5, "video": 1.5}),
            "key: a number": lambda: dropout_set(0, SET, rates=0.5),
            "keep_at_least_one: a number": lambda: dropout_set(KEY, SET, rates=0.5, keep_at_least_one=1),
            "deterministic: a string": lambda: dropout_set(KEY, SET, rates=0.5, deterministic="no"),
            **set_errors(functools.partial(dropout_set, KEY, rates=0.5)),
        },
    ),
    Example(
        name="inputs.apply_modality_dropout_set",
        call=given_set,
        arrays={
            **EMBEDDINGS,
            "null": NULL,
            **{f"keep_{name}": mask for name, mask in KEEPS.items()},
            "fallback": np.arange(8, dtype=np.int32) % 2,
        },
        rows=("text", "video", "keep_text", "keep_video", "fallback"),
        result="rows",
        dtype="input",
        wrt=("text", "video", "null"),
        singular=({"keep_text": np.zeros(8, bool), "keep_video": np.zeros(8, bool)},),
        bad={
            **set_errors(functools.partial(apply_set, keep={"text": KEEP[:4], "video": KEEP[:4]})),
            "keep: of other names": lambda: apply_set(SET, {"text": KEEP[:4]}),
            "keep: shape": lambda: apply_set(SET, {"text": KEEP[:4], "video": KEEP[:3]}),
            "keep: floats": lambda: apply_set(SET, {"text": KEEP[:4], "video": jnp.ones(4)}),
            "fallback: floats": lambda: apply_set(SET, {"text": KEEP[:4], "video": KEEP[:4]}, fallback=jnp.ones(4)),
            "fallback: shape": lambda: apply_set(SET, {"text": KEEP[:4], "video": KEEP[:4]}, fallback=jnp.zeros(3, int)),
        },
    ),
)
