"""Weights: penalties ``f(params) -> scalar`` and proximal operators ``prox(params, step) -> params``.

Which leaves count is ``where=`` everywhere; `as_matrix` says how a kernel is a matrix.
"""

from regjax.weights.anchors import SortedInit, sorted_init, wasserstein_to_init
from regjax.weights.averaging import EMAState, ema
from regjax.weights.folding import fold_parallel_adapter
from regjax.weights.low_rank import fold_ranks, low_rank_group_lasso, rank_importance, shrink_ranks
from regjax.weights.matrix import as_matrix, kernel_matrix
from regjax.weights.penalties import elastic_net, group_lasso, l1, l2, sparse_group_lasso
from regjax.weights.proximal import prox_elastic_net, prox_group_lasso, prox_l1, prox_l2, prox_sparse_group_lasso
from regjax.weights.spectral import SpectralState, spectral_penalty, stateful_spectral_penalty

__all__ = [
    "EMAState",
    "SortedInit",
    "SpectralState",
    "as_matrix",
    "elastic_net",
    "ema",
    "fold_parallel_adapter",
    "fold_ranks",
    "group_lasso",
    "kernel_matrix",
    "l1",
    "l2",
    "low_rank_group_lasso",
    "prox_elastic_net",
    "prox_group_lasso",
    "prox_l1",
    "prox_l2",
    "prox_sparse_group_lasso",
    "rank_importance",
    "shrink_ranks",
    "sorted_init",
    "sparse_group_lasso",
    "spectral_penalty",
    "stateful_spectral_penalty",
    "wasserstein_to_init",
]
