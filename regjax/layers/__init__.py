"""Layers: noise inside a network, as pure functions and as thin Flax NNX modules over them."""

from regjax.layers.adapters.base import AdapterParam
from regjax.layers.adapters.group import LoRAGroup
from regjax.layers.adapters.low_rank import LoRALinear, lora_apply
from regjax.layers.adapters.model import adapt, adapter_groups, adapters_of, merge
from regjax.layers.adapters.singular import SORSALinear, SVDLinear, sorsa_apply
from regjax.layers.dropping.drop_block import DropBlock, apply_drop_block, drop_block
from regjax.layers.dropping.drop_connect import (
    DropConnect,
    apply_drop_connect,
    drop_connect,
    drop_connect_moments,
    drop_connect_samples,
)
from regjax.layers.dropping.drop_path import DropPath, apply_drop_path, drop_path, drop_path_rates
from regjax.layers.dropping.dropout import Dropout, apply_dropout, dropout
from regjax.layers.dropping.multi_sample import (
    MultiSampleDropout,
    apply_multi_sample_dropout,
    multi_sample_dropout,
    multi_sample_loss,
)
from regjax.layers.dropping.spatial import SpatialDropout, apply_spatial_dropout, spatial_dropout
from regjax.layers.experts.conditional_moe import apply_conditional_moe_routing, cmr_budget_loss, conditional_moe_routing
from regjax.layers.experts.moe import (
    MixtureOfExperts,
    MoEMasks,
    MoEOutput,
    MoEParams,
    SharedFFN,
    apply_mixture_of_experts,
    mixture_of_experts,
)
from regjax.layers.experts.moe_dropout import (
    apply_gating_dropout,
    apply_output_masking,
    expert_output_masking,
    final_output_masking,
    gating_dropout,
)
from regjax.layers.experts.moe_gating import Top2Gating, load_balancing_loss, top2_gating
from regjax.layers.noise.binary_mask import binary_mask_ste
from regjax.layers.noise.frozen_mask import FrozenMask, FrozenMaskState, frozen_mask_dropout
from regjax.layers.noise.gaussian_noise import GaussianNoise, apply_gaussian_noise, gaussian_noise
from regjax.layers.noise.hard_concrete import HardConcrete, apply_hard_concrete, hard_concrete
from regjax.layers.noise.masked_pooling import masked_avg_pool, masked_global_avg_pool, masked_max_pool
from regjax.layers.noise.masking import masked_conv, masked_elementwise, masked_residual, neighbour_padding
from regjax.layers.noise.mix_features import mix_features
from regjax.layers.noise.noise_mask_policy import NoiseMaskPolicy
from regjax.layers.ordered.nested import (
    NestedDropout,
    nested_dropout,
    nested_dropout_probs,
    sample_truncations,
    truncate_features,
)
from regjax.layers.ordered.ordered import ordered_conv, ordered_dense, svd_factorize
from regjax.layers.ordered.ordered_models import fold_ordered, order_layers, ordered_layers, shrink_ordered, truncate_ordered
from regjax.layers.ordered.ordered_modules import OrderedConv, OrderedDense
from regjax.layers.ordered.rank_sampling import RankSample, rank_pair, sample_rank, sample_ranks
from regjax.layers.ordered.truncation import select_truncation, truncated_logits
from regjax.layers.structured.butterfly import PixelatedButterfly, block_sparse_apply, flat_block_butterfly_mask
from regjax.layers.structured.hyper import HyperConv, HyperDense, HyperParams, hyper_conv, hyper_dense
from regjax.layers.structured.ladder import LadderProjector
from regjax.layers.structured.modulate_backward import modulate_backward
from regjax.layers.structured.sparse import SparseConv, SparseLinear, sparse_apply
from regjax.layers.structured.sparse_activation import SAFS_CANDIDATES, SparseActivation, sparse_activation
from regjax.layers.structured.templates import TemplateLinear, combine, grow_templates, orthogonal_coefficients

__all__ = [
    "SAFS_CANDIDATES",
    "AdapterParam",
    "DropBlock",
    "DropConnect",
    "DropPath",
    "Dropout",
    "FrozenMask",
    "FrozenMaskState",
    "GaussianNoise",
    "HardConcrete",
    "HyperConv",
    "HyperDense",
    "HyperParams",
    "LadderProjector",
    "LoRAGroup",
    "LoRALinear",
    "MixtureOfExperts",
    "MoEMasks",
    "MoEOutput",
    "MoEParams",
    "MultiSampleDropout",
    "NestedDropout",
    "NoiseMaskPolicy",
    "OrderedConv",
    "OrderedDense",
    "PixelatedButterfly",
    "RankSample",
    "SORSALinear",
    "SVDLinear",
    "SharedFFN",
    "SparseActivation",
    "SparseConv",
    "SparseLinear",
    "SpatialDropout",
    "TemplateLinear",
    "Top2Gating",
    "adapt",
    "adapter_groups",
    "adapters_of",
    "apply_conditional_moe_routing",
    "apply_drop_block",
    "apply_drop_connect",
    "apply_drop_path",
    "apply_dropout",
    "apply_gating_dropout",
    "apply_gaussian_noise",
    "apply_hard_concrete",
    "apply_mixture_of_experts",
    "apply_multi_sample_dropout",
    "apply_output_masking",
    "apply_spatial_dropout",
    "binary_mask_ste",
    "block_sparse_apply",
    "cmr_budget_loss",
    "combine",
    "conditional_moe_routing",
    "drop_block",
    "drop_connect",
    "drop_connect_moments",
    "drop_connect_samples",
    "drop_path",
    "drop_path_rates",
    "dropout",
    "expert_output_masking",
    "final_output_masking",
    "flat_block_butterfly_mask",
    "fold_ordered",
    "frozen_mask_dropout",
    "gating_dropout",
    "gaussian_noise",
    "grow_templates",
    "hard_concrete",
    "hyper_conv",
    "hyper_dense",
    "load_balancing_loss",
    "lora_apply",
    "masked_avg_pool",
    "masked_conv",
    "masked_elementwise",
    "masked_global_avg_pool",
    "masked_max_pool",
    "masked_residual",
    "merge",
    "mix_features",
    "mixture_of_experts",
    "modulate_backward",
    "multi_sample_dropout",
    "multi_sample_loss",
    "neighbour_padding",
    "nested_dropout",
    "nested_dropout_probs",
    "order_layers",
    "ordered_conv",
    "ordered_dense",
    "ordered_layers",
    "orthogonal_coefficients",
    "rank_pair",
    "sample_rank",
    "sample_ranks",
    "sample_truncations",
    "select_truncation",
    "shrink_ordered",
    "sorsa_apply",
    "sparse_activation",
    "sparse_apply",
    "spatial_dropout",
    "svd_factorize",
    "top2_gating",
    "truncate_features",
    "truncate_ordered",
    "truncated_logits",
]
