"""Examples of `regjax.inputs`: patches, and sampling by importance."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, ids, normal, probabilities

KEY = jax.random.key(0)
RANKS = np.argsort(normal(8, 6, seed=5), axis=1).astype(np.int32)
KEEP = np.argsort(RANKS, axis=1)[:, :3].astype(np.int32)
TOKENS, IMAGES = jnp.ones((4, 6, 2)), jnp.ones((4, 4, 6, 1))


def ratio_errors(call):
    """What every ``call(mask_ratio=...)`` on 6 patches refuses."""
    return {
        "mask_ratio: negative": lambda: call(mask_ratio=-0.1),
        "mask_ratio: NaN": lambda: call(mask_ratio=float("nan")),
        "mask_ratio: above 1": lambda: call(mask_ratio=1.5),
        "mask_ratio: leaves no patch": lambda: call(mask_ratio=0.9),
        "mask_ratio: an array": lambda: call(mask_ratio=jnp.array(0.5)),
        "mask_ratio: a schedule": lambda: call(mask_ratio=lambda step: 0.5),
    }


def random_mask(key, tokens):
    """A random mask and the tokens that it leaves, on whatever mesh they are."""
    mask = rj.inputs.random_patch_mask(key, 8, 6, mask_ratio=0.5)
    return mask, rj.inputs.keep_tokens(tokens, mask.ids_keep)


def restored(key, tokens):
    """With nothing hidden, the tokens come back as they were."""
    mask = rj.inputs.random_patch_mask(key, 8, 6, mask_ratio=0.0)
    kept = rj.inputs.keep_tokens(tokens, mask.ids_keep)
    return rj.inputs.restore_tokens(kept, mask.ids_restore, jnp.full(2, 7.0)), tokens


SCORES = np.array([0.5, 0.0, 1.25, 0.25, 0.0, 0.75, 1.0, 0.1])
INDICES = np.array([3, 0, 3, 12, 1, 3, 0, 7], np.int32)
memory = rj.inputs.importance_sampling(16)
LOGITS, LABELS = jnp.ones((4, 3)), jnp.zeros(4, int)


def remember(logits, labels, indices, past, mask, **options):
    """A batch on a memory that has seen the even examples."""
    state = rj.inputs.ImportanceState(past.astype(jnp.float32), (jnp.arange(16) % 2 == 0).astype(jnp.int32))
    return memory.apply(state, logits, labels, indices, mask=mask, **options)


def step(state=None, logits=LOGITS, labels=LABELS, indices=LABELS, **options):
    """One call of a memory of 16 examples."""
    return memory.apply(memory.init() if state is None else state, logits, labels, indices, **options)


def mix_errors(call):
    """What every ``call(mix=...)`` refuses."""
    return {
        "mix: negative": lambda: call(mix=-0.1),
        "mix: above 1": lambda: call(mix=1.1),
        "mix: NaN": lambda: call(mix=float("nan")),
        "mix: a vector": lambda: call(mix=jnp.ones(3)),
        "mix: a schedule": lambda: call(mix=lambda step: 0.5),
    }


probabilities_of, paths, update = (
    rj.inputs.importance_probabilities,
    rj.inputs.path_probabilities,
    rj.inputs.importance_update,
)
weights, sample, norm = rj.inputs.importance_weights, rj.inputs.sample_indices, rj.inputs.last_layer_gradient_norm
patchify, unpatchify, keep, restore = (
    rj.inputs.patchify,
    rj.inputs.unpatchify,
    rj.inputs.keep_tokens,
    rj.inputs.restore_tokens,
)
DRAW = functools.partial(rj.inputs.random_patch_mask, KEY)

EXAMPLES = (
    Example(
        name="inputs.random_patch_mask",
        call=random_mask,
        arrays={"tokens": normal(8, 6, 2)},
        rows=("tokens",),
        result="other",
        dtype="input",
        wrt=("tokens",),
        random=True,
        identity=restored,
        bad={
            **ratio_errors(functools.partial(DRAW, 2, 6)),
            "key: a number": lambda: rj.inputs.random_patch_mask(0, 2, 6),
            "batch: none": lambda: DRAW(0, 6),
            "batch: a fraction": lambda: DRAW(2.0, 6),
            "num_patches: none": lambda: DRAW(2, 0),
        },
    ),
    Example(
        name="inputs.apply_patch_mask",
        call=lambda key, noise: rj.inputs.apply_patch_mask(noise, mask_ratio=0.5),
        arrays={"noise": normal(8, 6)},
        rows=("noise",),
        result="rows",
        singular=({"noise": np.zeros((8, 6))},),
        bad={
            **ratio_errors(functools.partial(rj.inputs.apply_patch_mask, jnp.ones((2, 6)))),
            "noise: integers": lambda: rj.inputs.apply_patch_mask(jnp.ones((2, 6), int)),
            "noise: rank": lambda: rj.inputs.apply_patch_mask(jnp.ones(6)),
            "noise: no patch": lambda: rj.inputs.apply_patch_mask(jnp.ones((2, 0))),
        },
    ),
    Example(
        name="inputs.keep_tokens",
        call=lambda key, tokens, ids_keep: keep(tokens, ids_keep),
        arrays={"tokens": normal(8, 6, 2), "ids_keep": KEEP},
        rows=("tokens", "ids_keep"),
        result="rows",
        dtype="input",
        wrt=("tokens",),
        bad={
            "tokens: rank": lambda: keep(jnp.ones(4), jnp.zeros((4, 1), int)),
            "ids_keep: floats": lambda: keep(TOKENS, jnp.ones((4, 2))),
            "ids_keep: of other images": lambda: keep(TOKENS, jnp.zeros((3, 2), int)),
        },
    ),
    Example(
        name="inputs.restore_tokens",
        call=lambda key, kept, ids_restore, mask_token: restore(kept, ids_restore, mask_token),
        arrays={"kept": normal(8, 3, 2), "ids_restore": RANKS, "mask_token": normal(2, seed=6)},
        rows=("kept", "ids_restore"),
        result="rows",
        dtype="input",
        wrt=("kept", "mask_token"),
        bad={
            "kept: rank": lambda: restore(jnp.ones((4, 6)), jnp.zeros((4, 6), int), jnp.ones(2)),
            "kept: integers": lambda: restore(jnp.ones((4, 6, 2), int), jnp.zeros((4, 6), int), jnp.ones(2)),
            "ids_restore: of other images": lambda: restore(TOKENS, jnp.zeros((3, 6), int), jnp.ones(2)),
            "mask_token: another dimension": lambda: restore(TOKENS, jnp.zeros((4, 6), int), jnp.ones(3)),
        },
    ),
    Example(
        name="inputs.patchify",
        call=lambda key, images: patchify(images, 2),
        arrays={"images": normal(8, 4, 6, 2)},
        rows=("images",),
        result="rows",
        dtype="input",
        wrt=("images",),
        bad={
            "images: integers": lambda: patchify(IMAGES.astype(int), 2),
            "images: rank": lambda: patchify(TOKENS, 2),
            "patch_size: no divisor": lambda: patchify(IMAGES, 4),
            "patch_size: zero": lambda: patchify(IMAGES, 0),
            "patch_size: a fraction": lambda: patchify(IMAGES, 2.0),
        },
    ),
    Example(
        name="inputs.unpatchify",
        call=lambda key, patches: unpatchify(patches, 2, shape=(4, 6)),
        arrays={"patches": normal(8, 6, 8)},
        rows=("patches",),
        result="rows",
        dtype="input",
        wrt=("patches",),
        bad={
            "patches: rank": lambda: unpatchify(IMAGES, 2),
            "patches: of another size": lambda: unpatchify(jnp.ones((4, 4, 6)), 2),
            "patch_size: zero": lambda: unpatchify(jnp.ones((4, 4, 4)), 0),
            "shape: missing": lambda: unpatchify(jnp.ones((4, 6, 4)), 2),
            "shape: too large": lambda: unpatchify(jnp.ones((4, 6, 4)), 2, shape=(6, 6)),
            "shape: not of whole patches": lambda: unpatchify(jnp.ones((4, 6, 4)), 2, shape=(3, 8)),
            "shape: a number": lambda: unpatchify(jnp.ones((4, 6, 4)), 2, shape=4),
        },
    ),
    Example(
        name="inputs.last_layer_gradient_norm",
        call=lambda key, logits, labels: norm(logits, labels),
        arrays={"logits": normal(8, 5), "labels": ids(8, classes=5)},
        rows=("logits", "labels"),
        result="rows",
        wrt=("logits",),
        singular=({"logits": np.zeros((8, 5))}, {"logits": 1e4 * np.eye(5)[ids(8, classes=5)]}),
        bad={
            "logits: integers": lambda: norm(jnp.ones((4, 3), int), LABELS),
            "labels: of other examples": lambda: norm(LOGITS, jnp.zeros(3, int)),
            "axis: out of range": lambda: norm(LOGITS, LABELS, axis=2),
            "where: floats": lambda: norm(LOGITS, LABELS, where=jnp.ones(3)),
        },
    ),
    Example(
        name="inputs.last_layer_gradient_norm",
        call=lambda key, logits, labels, where: norm(logits, labels, where=where),
        arrays={"logits": normal(8, 5), "labels": probabilities(8, 5), "where": np.array([1, 1, 0, 1, 1], bool)},
        rows=("logits", "labels"),
        result="rows",
        wrt=("logits", "labels"),
        singular=({"where": np.zeros(5, bool)}, {"labels": np.zeros((8, 5))}),
    ),
    Example(
        name="inputs.importance_probabilities",
        call=lambda key, scores: probabilities_of(scores, mix=0.7),
        arrays={"scores": SCORES},
        rows=("scores",),
        result="other",  # the sum is over all: no device has it of its own scores
        wrt=("scores",),
        identity=lambda key, scores: (probabilities_of(scores, mix=0.0), jnp.full(8, 1 / 8)),
        singular=({"scores": np.zeros(8)}, {"scores": np.full(8, 1e30)}),
        bad={
            **mix_errors(functools.partial(probabilities_of, jnp.ones(3))),
            "scores: integers": lambda: probabilities_of(jnp.ones(3, int), mix=0.5),
            "scores: rank": lambda: probabilities_of(LOGITS, mix=0.5),
            "scores: none": lambda: probabilities_of(jnp.ones(0), mix=0.5),
        },
    ),
    Example(
        name="inputs.path_probabilities",
        call=lambda key, grad_norms, where: paths(grad_norms, mix=0.7, where=where),
        arrays={"grad_norms": np.abs(normal(8, 5)), "where": normal(8, 5, seed=7) > -0.5},
        rows=("grad_norms", "where"),
        result="scalar",
        wrt=("grad_norms",),
        identity=lambda key, grad_norms, where: (paths(grad_norms, mix=0.0, where=where), jnp.full(5, 1 / 5)),
        singular=({"grad_norms": np.zeros((8, 5))}, {"where": np.zeros((8, 5), bool)}),
        bad={
            **mix_errors(functools.partial(paths, jnp.ones(3))),
            "grad_norms: integers": lambda: paths(jnp.ones(3, int), mix=0.5),
            "grad_norms: rank": lambda: paths(TOKENS, mix=0.5),
            "grad_norms: none": lambda: paths(jnp.ones((3, 0)), mix=0.5),
            "where: of another shape": lambda: paths(LOGITS, mix=0.5, where=jnp.ones(3, bool)),
        },
    ),
    Example(
        name="inputs.importance_update",
        call=lambda key, scores, indices, values, seen, where: update(scores, indices, values, seen=seen, where=where),
        arrays={
            "scores": np.abs(normal(16, seed=8)) * (np.arange(16) % 3 > 0),
            "indices": INDICES,
            "values": np.abs(normal(8, seed=9)),
            "seen": np.arange(16) % 3 > 0,
            "where": np.arange(8) != 3,
        },
        rows=("indices", "values", "where"),
        result="other",
        dtype="input",
        wrt=("scores",),
        frozen=("values",),
        singular=({"where": np.zeros(8, bool)}, {"indices": np.full(8, 5, np.int32)}, {"scores": np.zeros(16)}),
        bad={
            "scores: integers": lambda: update(jnp.ones(3, int), LABELS, jnp.ones(4)),
            "scores: rank": lambda: update(LOGITS, LABELS, jnp.ones(4)),
            "indices: floats": lambda: update(jnp.ones(3), jnp.ones(4), jnp.ones(4)),
            "indices: outside": lambda: update(jnp.ones(3), np.array([0, 3]), jnp.ones(2)),
            "values: integers": lambda: update(jnp.ones(3), LABELS, LABELS),
            "seen: of another length": lambda: update(jnp.ones(3), LABELS, jnp.ones(4), seen=jnp.ones(4, bool)),
            "where: floats": lambda: update(jnp.ones(3), LABELS, jnp.ones(4), where=jnp.ones(4)),
        },
    ),
    Example(
        name="inputs.importance_weights",
        call=lambda key, p, indices: weights(p, indices),
        arrays={"p": probabilities(8), "indices": INDICES % 8},
        rows=("indices",),
        result="rows",
        wrt=("p",),
        singular=({"p": np.zeros(8)},),
        bad={
            "p: integers": lambda: weights(jnp.ones(3, int), LABELS),
            "p: none": lambda: weights(jnp.ones(0), LABELS),
            "indices: floats": lambda: weights(jnp.ones(3), jnp.ones(4)),
            "indices: rank": lambda: weights(jnp.ones(3), jnp.zeros((4, 1), int)),
        },
    ),
    Example(
        name="inputs.sample_indices",
        call=lambda key, p: sample(key, p, 8),
        arrays={"p": probabilities(8)},
        rows=("p",),
        result="other",
        random=True,
        singular=({"p": np.zeros(8)}, {"p": np.full(8, 1e30)}),
        bad={
            "key: a number": lambda: sample(0, jnp.ones(3), 2),
            "p: integers": lambda: sample(KEY, jnp.ones(3, int), 2),
            "p: rank": lambda: sample(KEY, LOGITS, 2),
            "p: none": lambda: sample(KEY, jnp.ones(0), 2),
            "num: zero": lambda: sample(KEY, jnp.ones(3), 0),
            "num: a fraction": lambda: sample(KEY, jnp.ones(3), 2.0),
        },
    ),
    Example(
        name="inputs.importance_sampling",
        call=lambda key, **arrays: remember(**arrays),
        arrays={
            "logits": normal(8, 5),
            "labels": ids(8, classes=5),
            "indices": INDICES,
            "past": np.abs(normal(16, seed=8)) * (np.arange(16) % 2 == 0),
            "mask": np.arange(8) != 2,
        },
        rows=("logits", "labels", "indices", "mask"),
        result="other",
        wrt=("past",),
        frozen=("logits",),
        # The past is remembered in float32 whatever the rest is in.
        surrogate=True,
        singular=({"mask": np.zeros(8, bool)}, {"logits": 1e4 * normal(8, 5)}, {"past": np.zeros(16)}),
        memory=lambda: (
            memory.init(),
            lambda s, key, past, logits, labels, indices, mask: memory.apply(s, logits, labels, indices, mask=mask),
        ),
        bad={
            "num_examples: none": lambda: rj.inputs.importance_sampling(0),
            "num_examples: a fraction": lambda: rj.inputs.importance_sampling(2.0),
            "state: a tuple": lambda: step(state=(jnp.zeros(16), jnp.zeros(16, int))),
            "state: of another size": lambda: step(state=rj.inputs.importance_sampling(8).init()),
            "logits: rank": lambda: step(logits=jnp.ones(4)),
            "labels: of other examples": lambda: step(labels=jnp.zeros(3, int)),
            "indices: floats": lambda: step(indices=jnp.ones(4)),
            "indices: outside": lambda: step(indices=np.array([0, 1, 2, 16])),
            "mask: floats": lambda: step(mask=jnp.ones(4)),
            "where: does not broadcast": lambda: step(where=jnp.ones((4, 2), bool)),
        },
    ),
)
