"""Weights: penalties ``f(params) -> scalar`` and proximal operators ``prox(params, step) -> params``.

Which leaves count is ``where=`` everywhere; `as_matrix` says how a kernel is a matrix.
"""

from regjax.weights.anchors.distances import SortedInit, l2_sp, sorted_init, wasserstein_to_init
from regjax.weights.anchors.mixout import apply_mixout, mixout
from regjax.weights.averaging.interpolation import fisher_interpolate, interpolate
from regjax.weights.averaging.running import EMAState, SWAState, ema, recompute_batch_stats, swa
from regjax.weights.averaging.soups import GreedySoup, LearnedSoup, SoupWeights, greedy_soup, learned_soup, uniform_soup
from regjax.weights.matrix import as_matrix, kernel_matrix
from regjax.weights.penalties.low_rank import fold_ranks, low_rank_group_lasso, rank_importance, shrink_ranks
from regjax.weights.penalties.norms import elastic_net, group_lasso, l1, l2, sparse_group_lasso
from regjax.weights.projections.equivariance import group_projector
from regjax.weights.projections.renormalize import renormalize
from regjax.weights.proximal.block_step import prox_block_step
from regjax.weights.proximal.norms import prox_elastic_net, prox_group_lasso, prox_l1, prox_l2, prox_sparse_group_lasso
from regjax.weights.reparameterisation.folding import fold_parallel_adapter
from regjax.weights.spectral.initial import spectral_small_init
from regjax.weights.spectral.penalty import SpectralState, spectral_penalty, stateful_spectral_penalty

__all__ = [
    "EMAState",
    "GreedySoup",
    "LearnedSoup",
    "SWAState",
    "SortedInit",
    "SoupWeights",
    "SpectralState",
    "apply_mixout",
    "as_matrix",
    "elastic_net",
    "ema",
    "fisher_interpolate",
    "fold_parallel_adapter",
    "fold_ranks",
    "greedy_soup",
    "group_lasso",
    "group_projector",
    "interpolate",
    "kernel_matrix",
    "l1",
    "l2",
    "l2_sp",
    "learned_soup",
    "low_rank_group_lasso",
    "mixout",
    "prox_block_step",
    "prox_elastic_net",
    "prox_group_lasso",
    "prox_l1",
    "prox_l2",
    "prox_sparse_group_lasso",
    "rank_importance",
    "recompute_batch_stats",
    "renormalize",
    "shrink_ranks",
    "sorted_init",
    "sparse_group_lasso",
    "spectral_penalty",
    "spectral_small_init",
    "stateful_spectral_penalty",
    "swa",
    "uniform_soup",
    "wasserstein_to_init",
]
