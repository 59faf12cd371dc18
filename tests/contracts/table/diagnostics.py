"""Examples of `regjax.diagnostics`."""

import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, ids, normal, probabilities

d = rj.diagnostics
X, Y = jnp.ones((4, 3)), jnp.zeros(4, int)
S, R = jnp.ones(4), jnp.ones(4, bool)
NAN = float("nan")
WHERE = np.array([True, False, True, True, True, False, True, True])
NONE = np.zeros(8, bool)
LOGITS = {"logits": normal(8, 5), "labels": ids(8, classes=5)}
EXTREME = ({"logits": np.zeros((8, 5))}, {"logits": 1e4 * np.sign(normal(8, 5))})
SCORES = {"scores": normal(8), "correct": normal(8, seed=4) > -0.3, "where": WHERE}


def mask_errors(fn) -> dict:
    """What every mask of examples refuses; ``fn(where)`` has four of them."""
    return {
        "where: not boolean": lambda: fn(jnp.ones(4)),
        "where: another number of examples": lambda: fn(jnp.ones(5, bool)),
    }


def logit_errors(fn) -> dict:
    """What every ``fn(logits, *, axis, where)`` per example refuses."""
    return {
        "logits: integers": lambda: fn(jnp.ones((4, 3), int)),
        "axis: out of range": lambda: fn(X, axis=2),
        "where: does not broadcast": lambda: fn(X, where=jnp.ones((4, 2), bool)),
    }


def label_errors(fn) -> dict:
    """What every ``fn(logits, labels)`` refuses."""
    return {
        "labels: rank": lambda: fn(X, jnp.zeros((4, 1), int)),
        "labels: probabilities of other classes": lambda: fn(X, jnp.ones((4, 2))),
    }


def held_out_errors(fn) -> dict:
    """What every ``fn(logits [N, K], labels [N], *, where)`` refuses."""
    return {
        **mask_errors(lambda where: fn(X, Y, where=where)),
        "logits: integers": lambda: fn(jnp.ones((4, 3), int), Y),
        "logits: rank": lambda: fn(jnp.ones((4, 3, 1)), jnp.zeros((4, 3), int)),
        "labels: another number of examples": lambda: fn(X, jnp.zeros(5, int)),
        "labels: probabilities": lambda: fn(X, X),
    }


def score_errors(fn, argument: str = "scores") -> dict:
    """What every ``fn(scores, correct, *, where)`` refuses."""
    return {
        **mask_errors(lambda where: fn(S, R, where=where)),
        f"{argument}: integers": lambda: fn(jnp.ones(4, int), R),
        f"{argument}: rank": lambda: fn(X, R),
        "correct: another number of examples": lambda: fn(S, jnp.ones(3, bool)),
        "correct: a text": lambda: fn(S, "right"),
    }


def per_example(name: str, labels: np.ndarray, *, wrt: tuple[str, ...]) -> Example:
    """The example of a proper score ``fn(logits, labels, *, axis, where) -> [...]``."""
    fn = getattr(d, name)
    return Example(
        name=f"diagnostics.{name}",
        call=lambda key, logits, labels: fn(logits, labels),
        arrays={"logits": normal(8, 5), "labels": labels},
        rows=("logits", "labels"),
        result="rows",
        wrt=wrt,
        singular=EXTREME,
        bad={**logit_errors(lambda logits, **options: fn(logits, Y, **options)), **label_errors(fn)},
    )


def ranking(name: str, call) -> Example:
    """The example of a function of scores and their success."""
    fn = getattr(d, name)
    return Example(
        name=f"diagnostics.{name}",
        call=call,
        arrays=SCORES,
        rows=("scores", "correct", "where"),
        result="scalar",
        frozen=("scores",),
        singular=({"where": NONE}, {"scores": np.zeros(8)}, {"correct": NONE}, {"where": np.arange(8) == 3}),
        bad={
            **score_errors(fn),
            **({"method: misspelt": lambda: d.aurc(S, R, method="means")} if name == "aurc" else {}),
        },
    )


def collapse(name: str, call, *, more: tuple[str, ...] = (), bad=None) -> Example:
    """The example of a measure of neural collapse; ``fn(features, labels, num_classes, ..., where)``."""
    fn = getattr(d, name)
    arrays = {
        "features": normal(8, 5),
        "labels": np.array([0, 1, 2, 0, 1, 2, 0, 1], np.int32),
        "where": WHERE,
        "weight": normal(3, 5, seed=5),
        "logits": normal(8, 3, seed=6),
    }
    third = {"weight": (jnp.ones((2, 3)),), "logits": (jnp.ones((4, 2)),)}.get(more[0], ()) if name in _POSITIONAL else ()
    run = lambda features=X, labels=Y, num_classes=2, **options: fn(features, labels, num_classes, *third, **options)
    errors = {
        **mask_errors(lambda where: run(where=where)),
        "features: integers": lambda: run(jnp.ones((4, 3), int)),
        "features: rank": lambda: run(jnp.ones((4, 3, 1))),
        "labels: another number of examples": lambda: run(labels=jnp.zeros(5, int)),
        "labels: probabilities": lambda: run(labels=jnp.ones((4, 2))),
        "num_classes: one": lambda: run(num_classes=1),
        "num_classes: no integer": lambda: run(num_classes=2.0),
    }
    if name in ("nc1", "nc2_norm_cv", "nc2_equiangularity", "nc3_alignment", "nc3_duality"):
        errors["global_mean: misspelt"] = lambda: run(global_mean="classes")
    return Example(
        name=f"diagnostics.{name}",
        call=call,
        arrays={n: arrays[n] for n in ("features", "labels", "where", *more)},
        rows=tuple(n for n in ("features", "labels", "where", "logits") if n in ("features", "labels", "where", *more)),
        result="scalar",
        frozen=("features", *more),
        singular=(
            {"features": np.zeros((8, 5))},
            {"features": 1e4 * normal(8, 5)},
            {"labels": np.full(8, 2, np.int32)},
            {"where": NONE},
            {"where": np.arange(8) == 3},
            *({n: np.zeros_like(arrays[n])} for n in more),
        ),
        bad={**errors, **(bad or {})},
        tolerance=1e-4,
    )


_POSITIONAL = ("nc3_alignment", "nc3_duality", "nc4_mismatch")
F2, Y2 = jnp.ones((4, 3)), jnp.array([0, 0, 1, 1])

EXAMPLES = (
    Example(
        name="diagnostics.expected_calibration_error",
        call=lambda key, confidences, correct, where: d.expected_calibration_error(confidences, correct, where=where),
        arrays={"confidences": probabilities(8, 3)[:, 0], "correct": normal(8, seed=4) > 0, "where": WHERE},
        rows=("confidences", "correct", "where"),
        result="scalar",
        wrt=("confidences",),
        singular=({"where": NONE}, {"confidences": np.zeros(8)}, {"confidences": np.ones(8)}),
        bad={
            **score_errors(d.expected_calibration_error, "confidences"),
            "num_bins: none": lambda: d.expected_calibration_error(S, R, num_bins=0),
            "num_bins: a fraction": lambda: d.expected_calibration_error(S, R, num_bins=1.5),
        },
    ),
    per_example("brier_score", ids(8, classes=5), wrt=("logits",)),
    per_example("brier_score", probabilities(8, 5), wrt=("logits", "labels")),
    per_example("negative_log_likelihood", ids(8, classes=5), wrt=("logits",)),
    per_example("negative_log_likelihood", probabilities(8, 5), wrt=("logits", "labels")),
    Example(
        name="diagnostics.fit_temperature",
        call=lambda key, logits, labels, where: d.fit_temperature(logits, labels, where=where),
        arrays={**LOGITS, "labels": np.array([4, 0, 3, 1, 0, 2, 3, 3], np.int32), "where": WHERE},
        rows=("logits", "labels", "where"),
        result="scalar",
        frozen=("logits",),
        singular=(*EXTREME, {"where": NONE}, {"labels": normal(8, 5).argmax(1).astype(np.int32)}),
        bad=held_out_errors(d.fit_temperature),
        tolerance=1e-4,
    ),
    ranking("risk_coverage", lambda key, scores, correct, where: d.risk_coverage(scores, correct, where=where)),
    ranking("aurc", lambda key, scores, correct, where: d.aurc(scores, correct, where=where)),
    ranking("aurc", lambda key, scores, correct, where: d.aurc(scores, correct, method="normalized_trapezoid", where=where)),
    ranking("excess_aurc", lambda key, scores, correct, where: d.excess_aurc(scores, correct, where=where)),
    Example(
        name="diagnostics.normalized_max_logit",
        call=lambda key, logits: d.normalized_max_logit(logits, p=3),
        arrays={"logits": normal(8, 5)},
        rows=("logits",),
        result="rows",
        wrt=("logits",),
        singular=(*EXTREME, {"logits": 1e-30 * normal(8, 5)}),
        bad={
            **logit_errors(lambda logits, **options: d.normalized_max_logit(logits, p=2, **options)),
            "p: zero": lambda: d.normalized_max_logit(X, p=0),
            "p: NaN": lambda: d.normalized_max_logit(X, p=NAN),
            "p: infinite": lambda: d.normalized_max_logit(X, p=float("inf")),
            "center: a text": lambda: d.normalized_max_logit(X, p=2, center="yes"),
        },
    ),
    Example(
        name="diagnostics.search_logit_norm",
        call=lambda key, logits, labels, where: d.search_logit_norm(logits, labels, p_values=(1, 3), where=where),
        arrays={**LOGITS, "where": WHERE},
        rows=("logits", "labels", "where"),
        result="scalar",
        frozen=("logits",),
        singular=(*EXTREME, {"where": NONE}),
        bad={
            **held_out_errors(d.search_logit_norm),
            "p_values: none": lambda: d.search_logit_norm(X, Y, p_values=()),
            "p_values: a number": lambda: d.search_logit_norm(X, Y, p_values=2),
            "p_values: zero among them": lambda: d.search_logit_norm(X, Y, p_values=(0, 1)),
            "p_values: a text among them": lambda: d.search_logit_norm(X, Y, p_values=(1, "2")),
            "method: misspelt": lambda: d.search_logit_norm(X, Y, method="trapezium"),
        },
    ),
    Example(
        name="diagnostics.softmax_collapse",
        call=lambda key, logits, where: d.softmax_collapse(logits, dtype="float16", where=where),
        arrays={"logits": 12 * normal(8, 5), "where": WHERE},
        rows=("logits", "where"),
        result="scalar",
        frozen=("logits",),
        singular=(*EXTREME, {"where": NONE}),
        bad={
            **mask_errors(lambda where: d.softmax_collapse(X, where=where)),
            "logits: integers": lambda: d.softmax_collapse(jnp.ones((4, 3), int)),
            "axis: out of range": lambda: d.softmax_collapse(X, axis=2),
            "dtype: integers": lambda: d.softmax_collapse(X, dtype=jnp.int32),
            "dtype: no dtype": lambda: d.softmax_collapse(X, dtype="half float"),
            "dtype: float64 without x64": lambda: d.softmax_collapse(X, dtype="float64"),
        },
    ),
    Example(
        name="diagnostics.zero_loss_fraction",
        call=lambda key, losses, where: d.zero_loss_fraction(losses, where=where),
        arrays={"losses": np.maximum(normal(8), 0), "where": WHERE},
        rows=("losses", "where"),
        result="scalar",
        singular=({"losses": np.zeros(8)}, {"where": NONE}),
        bad={
            **mask_errors(lambda where: d.zero_loss_fraction(S, where=where)),
            "losses: integers": lambda: d.zero_loss_fraction(jnp.ones(4, int)),
        },
    ),
    Example(
        name="diagnostics.label_smoothing_decomposition",
        call=lambda key, logits, labels: d.label_smoothing_decomposition(logits, labels, alpha=0.3),
        arrays=LOGITS,
        rows=("logits", "labels"),
        result="rows",
        wrt=("logits",),
        identity=lambda key, logits, labels: (
            d.label_smoothing_decomposition(logits, labels, alpha=0.0),
            d.LabelSmoothingParts(jnp.zeros(8), jnp.zeros(8)),
        ),
        singular=EXTREME,
        bad={
            **logit_errors(lambda logits, **options: d.label_smoothing_decomposition(logits, Y, **options)),
            "labels: rank": lambda: d.label_smoothing_decomposition(X, jnp.zeros((4, 1), int)),
            "labels: probabilities": lambda: d.label_smoothing_decomposition(X, X),
            "alpha: above 1": lambda: d.label_smoothing_decomposition(X, Y, alpha=1.5),
            "alpha: NaN": lambda: d.label_smoothing_decomposition(X, Y, alpha=NAN),
            "alpha: a schedule": lambda: d.label_smoothing_decomposition(X, Y, alpha=lambda step: 0.1),
        },
    ),
    collapse(
        "nc1",
        lambda key, features, labels, where: d.nc1(features, labels, 3, where=where),
        bad={"metric: misspelt": lambda: d.nc1(F2, Y2, 2, metric="quotients")},
    ),
    collapse("nc1", lambda key, features, labels, where: d.nc1(features, labels, 3, metric="quotient", where=where)),
    collapse("nc2_norm_cv", lambda key, features, labels, where: d.nc2_norm_cv(features, labels, 3, where=where)),
    collapse("nc2_equiangularity", lambda key, features, labels, where: d.nc2_equiangularity(features, labels, 3, where=where)),
    Example(
        name="diagnostics.nc2_etf",
        call=lambda key, vectors, where: d.nc2_etf(vectors, where=where),
        arrays={"vectors": normal(8, 5), "where": WHERE},
        rows=("vectors", "where"),
        result="scalar",
        frozen=("vectors",),
        singular=({"vectors": np.zeros((8, 5))}, {"vectors": np.ones((8, 5))}, {"where": NONE}, {"where": np.arange(8) == 3}),
        bad={
            **mask_errors(lambda where: d.nc2_etf(X, where=where)),
            "vectors: integers": lambda: d.nc2_etf(jnp.ones((4, 3), int)),
            "vectors: rank": lambda: d.nc2_etf(S),
            "vectors: one class": lambda: d.nc2_etf(jnp.ones((1, 3))),
        },
    ),
    collapse(
        "nc3_alignment",
        lambda key, features, labels, where, weight: d.nc3_alignment(features, labels, 3, weight, where=where),
        more=("weight",),
        bad={
            "weight: another dimension": lambda: d.nc3_alignment(F2, Y2, 2, jnp.ones((2, 4))),
            "weight: a kernel [D, K]": lambda: d.nc3_alignment(F2, Y2, 2, jnp.ones((3, 2))),
            "weight: integers": lambda: d.nc3_alignment(F2, Y2, 2, jnp.ones((2, 3), int)),
        },
    ),
    collapse(
        "nc3_duality",
        lambda key, features, labels, where, weight: d.nc3_duality(features, labels, 3, weight, where=where),
        more=("weight",),
        bad={
            "weight: a kernel [D, K]": lambda: d.nc3_duality(F2, Y2, 2, jnp.ones((3, 2))),
            "weight: integers": lambda: d.nc3_duality(F2, Y2, 2, jnp.ones((2, 3), int)),
        },
    ),
    collapse(
        "nc4_mismatch",
        lambda key, features, labels, where, logits: d.nc4_mismatch(features, labels, 3, logits, where=where),
        more=("logits",),
        bad={
            "logits: another number of classes": lambda: d.nc4_mismatch(F2, Y2, 2, jnp.ones((4, 3))),
            "logits: integers": lambda: d.nc4_mismatch(F2, Y2, 2, jnp.ones((4, 2), int)),
        },
    ),
    collapse(
        "nc_metrics",
        lambda key, features, labels, where, weight, logits: d.nc_metrics(
            features, labels, 3, weight=weight, logits=logits, where=where
        ),
        more=("weight", "logits"),
        bad={
            "weight: a kernel [D, K]": lambda: d.nc_metrics(F2, Y2, 2, weight=jnp.ones((3, 2))),
            "logits: another number of classes": lambda: d.nc_metrics(F2, Y2, 2, logits=jnp.ones((4, 3))),
        },
    ),
)
