"""Weights: penalties ``f(params) -> scalar`` and proximal operators ``prox(params, step) -> params``.

Which leaves count is ``where=`` everywhere; `as_matrix` says how a kernel is a matrix.
"""

from regjax.weights.anchors.distances import SortedInit, l2_sp, sorted_init, wasserstein_to_init
from regjax.weights.anchors.fisher import EWCState, diagonal_fisher, ewc, ewc_init, ewc_update
from regjax.weights.anchors.intelligence import SIState, si, si_init, si_step, si_update
from regjax.weights.anchors.mixout import apply_mixout, mixout
from regjax.weights.anchors.neural import (
    NeuralState,
    neural_consolidation,
    neural_consolidation_init,
    neural_consolidation_update,
)
from regjax.weights.anchors.quadratic import AQCState, aqc_init, aqc_update, quadratic_consolidation
from regjax.weights.averaging.interpolation import fisher_interpolate, interpolate
from regjax.weights.averaging.running import EMAState, SWAState, ema, recompute_batch_stats, swa
from regjax.weights.averaging.soups import GreedySoup, LearnedSoup, SoupWeights, greedy_soup, learned_soup, uniform_soup
from regjax.weights.matrix import as_matrix, kernel_matrix
from regjax.weights.orthogonality.adapters import orthogonal_group_penalty, sorsa_orthonormality
from regjax.weights.orthogonality.orthonormality import orthogonality, orthonormality
from regjax.weights.orthogonality.restricted_isometry import srip, srip_matrix, stateful_srip
from regjax.weights.penalties.attention import attention_log_penalty
from regjax.weights.penalties.distribution import WeightMoments, kurtosis_skewness, weight_distribution_penalty
from regjax.weights.penalties.envelope import wgsef
from regjax.weights.penalties.hard_concrete import l0_penalty, nonzero_probability
from regjax.weights.penalties.low_rank import fold_ranks, low_rank_group_lasso, rank_importance, shrink_ranks
from regjax.weights.penalties.norms import elastic_net, group_lasso, l1, l2, sparse_group_lasso
from regjax.weights.penalties.nuclear import nuclear_norm
from regjax.weights.projections.equivariance import group_projector
from regjax.weights.projections.renormalize import renormalize
from regjax.weights.proximal.block_step import prox_block_step
from regjax.weights.proximal.counts import project_top_groups, project_top_k, prox_l0
from regjax.weights.proximal.envelope import prox_wgsef
from regjax.weights.proximal.norms import prox_elastic_net, prox_group_lasso, prox_l1, prox_l2, prox_sparse_group_lasso
from regjax.weights.proximal.rank import project_spectral_ball, project_stiefel, prox_nuclear
from regjax.weights.proximal.sets import project_box, project_l1_ball, project_l2_ball, project_nonnegative, project_simplex
from regjax.weights.repair.channels import ReconstructedChannels, reconstruct_channels
from regjax.weights.repair.quantization import quantize_super_activation, restore_super, round_to_nearest
from regjax.weights.repair.singular_defects import attention_linear_map, linearize_mlp, singular_defect_directions
from regjax.weights.reparameterisation.compander import CompandedParams, compand, companded, compander_init, weight_compander
from regjax.weights.reparameterisation.folding import fold_parallel_adapter
from regjax.weights.reparameterisation.norm import NormedParams, join_norm, split_norm, weight_norm
from regjax.weights.reparameterisation.singular import PiSSAFactors, SORSAFactors, pissa_init, sorsa_init, sorsa_merge
from regjax.weights.reparameterisation.sparse import SparseParams, sparse_reparam, sparse_reparam_init
from regjax.weights.sparsity.art import ART, ARTState, art
from regjax.weights.sparsity.hypersparse import hypersparse_penalty, magnitude_mask_strict
from regjax.weights.sparsity.irrelevance import irrelevance_penalty, prune_to_performance
from regjax.weights.sparsity.masks import apply_mask, density, global_magnitude_mask, topk_mask
from regjax.weights.sparsity.small_weights import small_weight_mask
from regjax.weights.sparsity.soft_shrinkage import soft_shrinkage
from regjax.weights.sparsity.structured import nm_mask, sr_ste
from regjax.weights.sparsity.structures import Structure, choose_structures, remove_structures, structured_removal_penalty
from regjax.weights.spectral.gram import gram_iteration, gram_iteration_conv, zero_padding_bound
from regjax.weights.spectral.initial import spectral_small_init
from regjax.weights.spectral.lipschitz import lipschitz_penalty, spectral_rescaling
from regjax.weights.spectral.norm_penalty import spectral_norm_penalty, stateful_spectral_norm_penalty
from regjax.weights.spectral.normalization import spectral_normalize
from regjax.weights.spectral.penalty import spectral_penalty, stateful_spectral_penalty
from regjax.weights.spectral.power import SpectralState
from regjax.weights.supermasks.scores import exclusive_mask, signed_constant_init, supermask_init, topk_supermask
from regjax.weights.supermasks.signs import aggregate_signs, saliency_mask, sign_supermask, synaptic_saliency
from regjax.weights.supermasks.soft import apply_soft_subnetwork_mask, soft_subnetwork_mask

__all__ = [
    "ART",
    "AQCState",
    "ARTState",
    "CompandedParams",
    "EMAState",
    "EWCState",
    "GreedySoup",
    "LearnedSoup",
    "NeuralState",
    "NormedParams",
    "PiSSAFactors",
    "ReconstructedChannels",
    "SIState",
    "SORSAFactors",
    "SWAState",
    "SortedInit",
    "SoupWeights",
    "SparseParams",
    "SpectralState",
    "Structure",
    "WeightMoments",
    "aggregate_signs",
    "apply_mask",
    "apply_mixout",
    "apply_soft_subnetwork_mask",
    "aqc_init",
    "aqc_update",
    "art",
    "as_matrix",
    "attention_linear_map",
    "attention_log_penalty",
    "choose_structures",
    "compand",
    "companded",
    "compander_init",
    "density",
    "diagonal_fisher",
    "elastic_net",
    "ema",
    "ewc",
    "ewc_init",
    "ewc_update",
    "exclusive_mask",
    "fisher_interpolate",
    "fold_parallel_adapter",
    "fold_ranks",
    "global_magnitude_mask",
    "gram_iteration",
    "gram_iteration_conv",
    "greedy_soup",
    "group_lasso",
    "group_projector",
    "hypersparse_penalty",
    "interpolate",
    "irrelevance_penalty",
    "join_norm",
    "kernel_matrix",
    "kurtosis_skewness",
    "l0_penalty",
    "l1",
    "l2",
    "l2_sp",
    "learned_soup",
    "linearize_mlp",
    "lipschitz_penalty",
    "low_rank_group_lasso",
    "magnitude_mask_strict",
    "mixout",
    "neural_consolidation",
    "neural_consolidation_init",
    "neural_consolidation_update",
    "nm_mask",
    "nonzero_probability",
    "nuclear_norm",
    "orthogonal_group_penalty",
    "orthogonality",
    "orthonormality",
    "pissa_init",
    "project_box",
    "project_l1_ball",
    "project_l2_ball",
    "project_nonnegative",
    "project_simplex",
    "project_spectral_ball",
    "project_stiefel",
    "project_top_groups",
    "project_top_k",
    "prox_block_step",
    "prox_elastic_net",
    "prox_group_lasso",
    "prox_l0",
    "prox_l1",
    "prox_l2",
    "prox_nuclear",
    "prox_sparse_group_lasso",
    "prox_wgsef",
    "prune_to_performance",
    "quadratic_consolidation",
    "quantize_super_activation",
    "rank_importance",
    "recompute_batch_stats",
    "reconstruct_channels",
    "remove_structures",
    "renormalize",
    "restore_super",
    "round_to_nearest",
    "saliency_mask",
    "shrink_ranks",
    "si",
    "si_init",
    "si_step",
    "si_update",
    "sign_supermask",
    "signed_constant_init",
    "singular_defect_directions",
    "small_weight_mask",
    "soft_shrinkage",
    "soft_subnetwork_mask",
    "sorsa_init",
    "sorsa_merge",
    "sorsa_orthonormality",
    "sorted_init",
    "sparse_group_lasso",
    "sparse_reparam",
    "sparse_reparam_init",
    "spectral_norm_penalty",
    "spectral_normalize",
    "spectral_penalty",
    "spectral_rescaling",
    "spectral_small_init",
    "split_norm",
    "sr_ste",
    "srip",
    "srip_matrix",
    "stateful_spectral_norm_penalty",
    "stateful_spectral_penalty",
    "stateful_srip",
    "structured_removal_penalty",
    "supermask_init",
    "swa",
    "synaptic_saliency",
    "topk_mask",
    "topk_supermask",
    "uniform_soup",
    "wasserstein_to_init",
    "weight_compander",
    "weight_distribution_penalty",
    "weight_norm",
    "wgsef",
    "zero_padding_bound",
]
