"""The diagnostics: most beside one pass over their arguments, those of networks beside passes through one."""

from functools import partial

import jax
import jax.numpy as jnp

import regjax as rj
from experiments.bench.cards import case as c
from experiments.bench.cards import diagnostics_curvature, passes

d = rj.diagnostics
BATCH, CLASSES = 1024, 1000
EXAMPLES = 50_000
RUNS = 27


def _logits(call, seeds=(0,)):
    """``f(logits, ..., labels)`` with logits for each seed."""
    return c.case(call, *(c.normal(BATCH, CLASSES, seed=seed) for seed in seeds), c.ids(BATCH, below=CLASSES))


def _scores(call):
    """``f(scores, correct)``."""
    return c.case(call, c.uniform(EXAMPLES), c.uniform(EXAMPLES, seed=1) < 0.7)


def _collapse(call, *, weight: bool = False, logits: bool = False):
    """``f(features, labels, ...)`` of a hundred classes."""
    more = ([c.normal(100, 512, seed=1)] if weight else []) + ([c.normal(BATCH, 100, seed=2)] if logits else [])
    return c.case(call, c.normal(BATCH, 512), c.ids(BATCH, below=100), *more)


def _states(call, *seeds: int):
    """``f(states, ...)`` of 12 blocks, 8 sequences of 64 tokens, width 256."""
    return c.case(call, *(c.normal(12, 8, 64, 256, seed=seed) for seed in seeds))


def _runs():
    """The sparsity, size and data of a study of sparse networks, and its losses."""
    axes = jnp.linspace(0.0, 0.75, 3), jnp.geomspace(1e6, 1e8, 3), jnp.geomspace(1e9, 1e11, 3)
    runs = [axis.ravel() for axis in jnp.meshgrid(*axes)]
    return *runs, d.sparse_scaling_law(*runs, d.SPARSE_SCALING_T5)


def _equivariance_error() -> c.Case:
    flip = lambda x: jnp.flip(x, -1)
    return passes.forward(lambda params, x, y: d.equivariance_error(partial(passes.logits, params), x, flip, flip))


def _pruning_output_error() -> c.Case:
    masks = jax.tree.map(lambda leaf: leaf > 0, c.step().args[0])
    return passes.forward(lambda params, x, y, masks: d.pruning_output_error(passes.logits, params, masks, x), masks)


def _mc_predict() -> c.Case:
    apply_fn = lambda params: lambda key, x: passes.logits(params, rj.layers.dropout(key, x, rate=0.5))
    return passes.forward(lambda params, x, y, key: d.mc_predict(key, apply_fn(params), x, passes=10), c.key())


def _knn_transfer() -> c.Case:
    train, test = c.normal(4096, 128), c.normal(512, 128, seed=1)
    labels = c.ids(4096, below=10), c.ids(512, below=10, seed=1)
    product = lambda test, train: test @ train.T
    return c.beside(product, (test, train), "a product of the two", d.knn_transfer, train, labels[0], test, labels[1])


def _iou_history() -> c.Case:
    memory = d.iou_history(num_classes=21, num_points=64)
    labels = c.ids(8, 64, 64, below=21), c.ids(8, 64, 64, below=21, seed=1)
    return c.case(partial(memory.apply, close=True), memory.init(), *labels, donate=0)


def _track_group_losses() -> c.Case:
    memory = d.track_group_losses(num_groups=10, num_steps=1000)
    return c.case(memory.apply, memory.init(), c.uniform(BATCH), c.ids(BATCH, below=10), donate=0)


CASES = {
    # Calibration and proper scores.
    "expected_calibration_error": lambda: _scores(d.expected_calibration_error),
    "adaptive_calibration_error": lambda: _scores(d.adaptive_calibration_error),
    "reliability_bins": lambda: _scores(d.reliability_bins),
    "classwise_calibration_error": lambda: c.case(
        d.classwise_calibration_error, c.probabilities(BATCH, CLASSES), c.ids(BATCH, below=CLASSES)
    ),
    "brier_score": lambda: _logits(d.brier_score),
    "negative_log_likelihood": lambda: _logits(d.negative_log_likelihood),
    "fit_temperature": lambda: _logits(d.fit_temperature),
    "adjust_logits": lambda: c.case(d.adjust_logits, c.normal(BATCH, CLASSES), c.ids(CLASSES, below=500)),
    "label_smoothing_decomposition": lambda: _logits(d.label_smoothing_decomposition),
    # Which predictions to trust.
    "risk_coverage": lambda: _scores(d.risk_coverage),
    "aurc": lambda: _scores(d.aurc),
    "excess_aurc": lambda: _scores(d.excess_aurc),
    "normalized_max_logit": lambda: c.case(partial(d.normalized_max_logit, p=4), c.normal(BATCH, CLASSES)),
    "search_logit_norm": lambda: _logits(d.search_logit_norm),
    "confidence_balance": lambda: c.case(d.confidence_balance, c.normal(BATCH, CLASSES), c.normal(BATCH, CLASSES, seed=1)),
    "mc_predict": _mc_predict,
    "mc_dropout_statistics": lambda: c.case(d.mc_dropout_statistics, c.normal(10, BATCH, 100)),
    "sequence_uncertainty": lambda: c.case(d.sequence_uncertainty, c.normal(4, 8, 32, 1000), c.ids(8, 32, below=1000)),
    "star_uncertainty": lambda: c.case(
        partial(d.star_uncertainty, iteration=3), c.uniform(EXAMPLES), c.uniform(EXAMPLES, seed=1)
    ),
    "normalize_scores": lambda: c.case(d.normalize_scores, c.normal(EXAMPLES)),
    "select_top": lambda: c.case(partial(d.select_top, num=500), c.normal(EXAMPLES)),
    # Collapse and geometry.
    "nc1": lambda: _collapse(lambda h, y: d.nc1(h, y, 100)),
    "nc2_norm_cv": lambda: _collapse(lambda h, y: d.nc2_norm_cv(h, y, 100)),
    "nc2_equiangularity": lambda: _collapse(lambda h, y: d.nc2_equiangularity(h, y, 100)),
    "nc2_etf": lambda: c.case(d.nc2_etf, c.normal(100, 512)),
    "nc3_alignment": lambda: _collapse(lambda h, y, weight: d.nc3_alignment(h, y, 100, weight), weight=True),
    "nc3_duality": lambda: _collapse(lambda h, y, weight: d.nc3_duality(h, y, 100, weight), weight=True),
    "nc4_mismatch": lambda: _collapse(lambda h, y, logits: d.nc4_mismatch(h, y, 100, logits), logits=True),
    "nc_metrics": lambda: _collapse(
        lambda h, y, weight, logits: d.nc_metrics(h, y, 100, weight=weight, logits=logits), weight=True, logits=True
    ),
    "softmax_collapse": lambda: c.case(d.softmax_collapse, c.normal(BATCH, CLASSES)),
    "zero_loss_fraction": lambda: c.case(d.zero_loss_fraction, c.uniform(EXAMPLES)),
    "equivariance_error": _equivariance_error,
    "knn_transfer": _knn_transfer,
    # Memory of examples.
    "memorization_curves": lambda: c.case(
        d.memorization_curves, *(c.ids(*shape, below=10, seed=i) for i, shape in enumerate([(50, 10_000), (10_000,), (10_000,)]))
    ),
    "iou_history": _iou_history,
    "relative_signal_strength": lambda: c.case(
        d.relative_signal_strength, c.probabilities(BATCH, CLASSES), c.probabilities(BATCH, CLASSES, seed=1)
    ),
    "unlearning_metrics": lambda: c.case(
        d.unlearning_metrics, *((c.normal(BATCH, CLASSES, seed=i), c.ids(BATCH, below=CLASSES, seed=i)) for i in range(3))
    ),
    "total_variation": lambda: c.case(d.total_variation, c.uniform(256, 32, 32, 3)),
    "reconstruction_mse": lambda: c.case(d.reconstruction_mse, c.uniform(256, 32, 32, 3), c.uniform(256, 32, 32, 3, seed=1)),
    # Curvature, gradients, and single examples in training.
    **diagnostics_curvature.CASES,
    "opposing_examples": lambda: c.case(partial(d.opposing_examples, top_k=10), c.uniform(EXAMPLES), c.uniform(EXAMPLES, seed=1)),
    "opposing_signals_toy": lambda: c.case(partial(d.opposing_signals_toy, n=10_000, d=64), c.key(), like="results"),
    "track_group_losses": _track_group_losses,
    # Redundant parts of networks.
    "block_importance": lambda: _states(d.block_importance, 0),
    "gap_similarity": lambda: _states(d.gap_similarity, 0),
    "layer_importance": lambda: _states(d.layer_importance, 0, 1),
    "best_gap": lambda: c.case(partial(d.best_gap, num=8), c.normal(33, 33)),
    "drop_plan": lambda: c.case(partial(d.drop_plan, num=8), c.uniform(32), c.uniform(32, seed=1)),
    "find_super_weights": lambda: c.case(d.find_super_weights, c.normal(12, 512, 512), c.normal(12, 512, 256)),
    "sketched_parameter_count": lambda: c.case(d.sketched_parameter_count, jax.tree.map(lambda leaf: leaf > 0.03, c.kernels())),
    "pruning_output_error": _pruning_output_error,
    # The scaling law of sparse networks.
    "sparse_scaling_law": lambda: c.case(lambda *runs: d.sparse_scaling_law(*runs, d.SPARSE_SCALING_T5), *_runs()[:3]),
    "fit_sparse_scaling_law": lambda: c.case(d.fit_sparse_scaling_law, *_runs()),
    "optimal_sparsity": lambda: c.case(
        lambda size, compute: d.optimal_sparsity(size, compute, d.SPARSE_SCALING_T5),
        jnp.full(100, 1e8),
        jnp.geomspace(1e16, 1e20, 100),
    ),
}
UNCOUNTED = {
    "ausuc": "NumPy on the host",
    "compression_bound": "a formula of single numbers",
    "fit_stacking_gamma": "NumPy on the host",
    "forgetting_score": "a formula of single numbers",
    "membership_inference_efficacy": "trains a support vector machine on the host",
    "memorization_epoch": "a least-squares fit of three numbers on the host",
    "predicted_equilibrium_norm": "a formula of single numbers",
    "sdpi_contraction": "a formula of single numbers",
    "seen_unseen_curve": "NumPy on the host",
    "tree_distances": "NumPy on the host",
}
