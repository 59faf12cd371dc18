"""The weights: penalties, steps, projections, factors and masks."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from experiments.bench.cards import case as c
from experiments.bench.cards import weights_models as models
from experiments.bench.cards.case import Case
from experiments.bench.cards.weights_models import layers, masks, others, product

w = rj.weights
CONV = (3, 3, 64, 64)


def penalty(fn: Callable[..., Any], **options: Any) -> Callable[[], Case]:
    """A penalty on dense layers with its gradient."""
    return lambda: c.case(partial(fn, **options), c.kernels(), wrt=0)


def step(fn: Callable[..., Any], **options: Any) -> Callable[[], Case]:
    """A proximal step or projection of dense layers, in place as an optimiser's."""
    return lambda: c.case(partial(fn, step=1e-3, **options), c.kernels(), donate=0)


def once(fn: Callable[..., Any], **options: Any) -> Callable[[], Case]:
    """What is made of dense layers without a gradient: masks, measures, the start of a memory."""
    return lambda: c.case(partial(fn, **options), c.kernels())


def stateful(make: Any, *start: Any) -> Case:
    """What carries a memory, with its gradient; the memory is overwritten."""
    params = c.kernels()
    state = jax.eval_shape(make.init, *start, params)
    return c.case(lambda params, state: make.apply(state, params), params, state, wrt=0, donate=1)


def factors(first: str, second: str) -> dict[str, Any]:
    """Eight kernels of rank 64 by their factors."""
    return {f"layer_{i}": {first: c.normal(512, 64, seed=i), second: c.normal(64, 512, seed=i)} for i in range(8)}


def gram(fn: Callable[..., jax.Array], kernels: Any) -> Case:
    """What works on Gram matrices, with its gradient, beside the squares of one Gram matrix of each kernel with theirs."""

    def squares(kernels: Any) -> jax.Array:
        matrices = [x for x in jax.tree.leaves(kernels) if x.ndim == 2]
        return sum((jnp.sum(jnp.square(x.T @ x)) for x in matrices), jnp.zeros(()))

    of = "the squares of Gram matrices with their gradient"
    return c.beside(c.with_gradient(squares, 0), (kernels,), of, c.with_gradient(fn, 0), kernels)


ART = w.art(0.9)
UNITS = [
    w.Structure(np.arange(512) % 2 == 0, {f"layer_{i}/kernel": 1, f"layer_{i}/bias": 0, f"layer_{i + 1}/kernel": 0})
    for i in range(7)
]

CASES: dict[str, Callable[[], Case]] = {
    # What a kernel is as a matrix.
    "as_matrix": lambda: c.case(partial(w.as_matrix, groups=4), c.normal(*CONV)),
    "kernel_matrix": lambda: c.case(partial(w.kernel_matrix, ("query", "kernel")), c.normal(512, 8, 64)),
    # Penalties on each weight and on groups.
    "l1": penalty(w.l1),
    "l2": penalty(w.l2),
    "elastic_net": penalty(w.elastic_net, l1=1.0, l2=1.0),
    "group_lasso": penalty(w.group_lasso),
    "sparse_group_lasso": penalty(w.sparse_group_lasso, l1=1.0, group=1.0),
    "wgsef": penalty(w.wgsef, k=64),
    "l0_penalty": lambda: c.case(partial(w.l0_penalty, l0=0.1, l2=0.1), c.normal(512), c.normal(512, 512), wrt=(0, 1)),
    "nonzero_probability": lambda: c.case(w.nonzero_probability, c.normal(512, 512), wrt=0),
    "weight_distribution_penalty": penalty(w.weight_distribution_penalty),
    "kurtosis_skewness": lambda: c.case(w.kurtosis_skewness, c.normal(2048, 512), wrt=0),
    "attention_log_penalty": lambda: c.case(w.attention_log_penalty, c.probabilities(16, 8, 64, 64), wrt=0),
    # Proximal steps.
    "prox_l0": step(w.prox_l0),
    "prox_l1": step(w.prox_l1),
    "prox_l2": step(w.prox_l2),
    "prox_elastic_net": step(w.prox_elastic_net, l1=1.0, l2=1.0),
    "prox_group_lasso": step(w.prox_group_lasso),
    "prox_sparse_group_lasso": step(w.prox_sparse_group_lasso, l1=1.0, group=1.0),
    "prox_wgsef": step(w.prox_wgsef, k=64),
    "prox_nuclear": step(w.prox_nuclear),
    "prox_block_step": lambda: c.case(
        lambda params, grad, curvature: w.prox_block_step(params, grad, block_lipschitz=curvature, strength=0.1),
        c.kernels(),
        others(),
        c.uniform(16),
        donate=0,
    ),
    # Projections.
    "project_box": step(w.project_box, lower=-1.0, upper=1.0),
    "project_nonnegative": step(w.project_nonnegative),
    "project_simplex": step(w.project_simplex, total=1.0),
    "project_l1_ball": step(w.project_l1_ball, radius=1.0),
    "project_l2_ball": step(w.project_l2_ball, radius=1.0, groups="out"),
    "project_top_k": step(w.project_top_k, k=10_000),
    "project_top_groups": step(w.project_top_groups, k=64),
    "project_spectral_ball": step(w.project_spectral_ball, radius=1.0),
    "project_stiefel": step(w.project_stiefel),
    "renormalize": lambda: c.case(w.renormalize, c.kernels(), donate=0),
    # Spectral norms and Lipschitz bounds.
    "spectral_penalty": penalty(w.spectral_penalty),
    "stateful_spectral_penalty": lambda: stateful(w.stateful_spectral_penalty(), c.key()),
    "spectral_norm_penalty": penalty(w.spectral_norm_penalty),
    "stateful_spectral_norm_penalty": lambda: stateful(w.stateful_spectral_norm_penalty(), c.key()),
    "spectral_normalize": lambda: stateful(w.spectral_normalize()),
    "gram_iteration": lambda: gram(w.gram_iteration, c.normal(512, 512)),
    "gram_iteration_conv": lambda: c.case(partial(w.gram_iteration_conv, n=32), c.normal(*CONV), wrt=0),
    "zero_padding_bound": lambda: c.case(w.zero_padding_bound, c.normal(*CONV), wrt=0),
    "lipschitz_penalty": lambda: c.case(
        lambda params: w.lipschitz_penalty(params, [32, None]),
        {"conv": {"kernel": c.normal(*CONV)}, "dense": {"kernel": c.normal(512, 512)}},
        wrt=0,
    ),
    "spectral_rescaling": lambda: c.case(w.spectral_rescaling, c.normal(*CONV), wrt=0),
    "spectral_small_init": lambda: c.case(
        partial(w.spectral_small_init, rank=4, scale=0.1), c.normal(1024, 64, 64), c.normal(1024, seed=1)
    ),
    # Orthogonality.
    "orthonormality": lambda: gram(w.orthonormality, c.kernels()),
    "orthogonality": lambda: gram(w.orthogonality, c.kernels()),
    "srip": lambda: c.case(lambda params, key: w.srip(key, params), c.kernels(), c.key(), wrt=0),
    "srip_matrix": lambda: c.case(w.srip_matrix, c.normal(8, 512, 512), c.normal(8, 512), wrt=0),
    "stateful_srip": lambda: stateful(w.stateful_srip(), c.key()),
    "sorsa_orthonormality": lambda: c.case(w.sorsa_orthonormality, factors("u", "vt"), wrt=0),
    "orthogonal_group_penalty": lambda: c.case(
        w.orthogonal_group_penalty,
        [{"kernel": c.normal(512, 512), "a": c.normal(4, 512, 8), "b": c.normal(4, 8, 512)}],
        wrt=0,
    ),
    # Ranks and factors.
    "nuclear_norm": penalty(w.nuclear_norm),
    "low_rank_group_lasso": lambda: c.case(w.low_rank_group_lasso, factors("u", "v"), wrt=0),
    "rank_importance": lambda: c.case(w.rank_importance, c.normal(512, 64), c.normal(64, 512)),
    "shrink_ranks": lambda: c.case(w.shrink_ranks, c.normal(512, 64), c.normal(64, 512)),
    "fold_ranks": lambda: product(lambda u, v: w.fold_ranks(u, v, np.arange(384) < 300), c.normal(512, 384), c.normal(384, 512)),
    "pissa_init": lambda: c.case(partial(w.pissa_init, rank=16), c.normal(512, 512)),
    "sorsa_init": lambda: c.case(partial(w.sorsa_init, rank=16), c.normal(512, 512)),
    "sorsa_merge": lambda: c.case(
        w.sorsa_merge, c.normal(512, 512), c.normal(512, 16), c.normal(16), c.normal(16, 512), wrt=(1, 2, 3)
    ),
    # Reparameterisations.
    "weight_compander": lambda: c.case(
        w.weight_compander, c.normal(2048, 512), c.uniform(512) + 0.5, c.uniform(512) + 0.5, wrt=(0, 1)
    ),
    "compander_init": lambda: c.case(w.compander_init, c.normal(2048, 512)),
    "compand": once(w.compand),
    "companded": lambda: c.case(w.companded, jax.eval_shape(w.compand, c.kernels()), wrt=0),
    "weight_norm": lambda: c.case(w.weight_norm, c.normal(2048, 512), c.normal(512), wrt=(0, 1)),
    "split_norm": once(w.split_norm),
    "join_norm": lambda: c.case(w.join_norm, jax.eval_shape(w.split_norm, c.kernels()), wrt=0),
    "sparse_reparam": lambda: c.case(
        partial(w.sparse_reparam, lam=0.1), *(c.normal(512, 512, seed=i) for i in range(3)), wrt=(0, 1, 2)
    ),
    "sparse_reparam_init": lambda: c.case(lambda: w.sparse_reparam_init((512, 512)), like="results"),
    "fold_parallel_adapter": lambda: c.case(w.fold_parallel_adapter, c.normal(*CONV), c.normal(1, 1, 64, 64)),
    # Masks.
    "apply_mask": lambda: c.case(w.apply_mask, c.kernels(), masks(), donate=0),
    "density": lambda: c.case(w.density, masks()),
    "topk_mask": once(w.topk_mask, sparsity=0.9),
    "global_magnitude_mask": once(w.global_magnitude_mask, sparsity=0.9),
    "magnitude_mask_strict": once(w.magnitude_mask_strict, prune_rate=0.9),
    "small_weight_mask": once(w.small_weight_mask, threshold=0.01),
    "soft_shrinkage": lambda: c.case(partial(w.soft_shrinkage, sparsity=0.9), c.kernels(), donate=0),
    "nm_mask": lambda: c.case(partial(w.nm_mask, n=2, m=4), c.normal(2048, 512)),
    "sr_ste": lambda: c.case(partial(w.sr_ste, n=2, m=4), c.normal(2048, 512), wrt=0),
    "hypersparse_penalty": penalty(w.hypersparse_penalty),
    "irrelevance_penalty": lambda: c.case(w.irrelevance_penalty, c.kernels(), others(), wrt=0),
    "art": lambda: c.case(
        ART.update, jax.eval_shape(ART.init, c.kernels()), c.kernels(), jnp.float32(0.8), jnp.float32(0.7), donate=0
    ),
    # Structures.
    "choose_structures": lambda: c.case(lambda scores: w.choose_structures(scores, 4096, ratio=0.5), c.normal(4096)),
    "structured_removal_penalty": penalty(w.structured_removal_penalty, spec=UNITS),
    "remove_structures": once(w.remove_structures, spec=UNITS),
    # Supermasks.
    "supermask_init": lambda: c.case(lambda key: w.supermask_init(key, (512, 512)), c.key(), like="results"),
    "signed_constant_init": lambda: c.case(lambda key: w.signed_constant_init(key, (512, 512)), c.key(), like="results"),
    "topk_supermask": lambda: c.case(w.topk_supermask, c.normal(512, 512), wrt=0),
    "soft_subnetwork_mask": lambda: c.case(
        lambda scores, key: w.soft_subnetwork_mask(scores, sparsity=0.5, key=key), c.normal(512, 512), c.key(), wrt=0
    ),
    "apply_soft_subnetwork_mask": lambda: c.case(
        partial(w.apply_soft_subnetwork_mask, sparsity=0.5), c.normal(512, 512), c.uniform(512, 512), wrt=0
    ),
    "exclusive_mask": lambda: c.case(lambda mask, *earlier: w.exclusive_mask(mask, earlier), masks(), masks(10), masks(11)),
    "synaptic_saliency": lambda: c.beside(
        jax.grad(lambda params, x: jnp.sum(layers(params, x))),
        (c.kernels(), c.normal(1, 512)),
        "a gradient of one example",
        lambda params: w.synaptic_saliency(layers, params, (1, 512)),
        c.kernels(),
    ),
    "saliency_mask": once(w.saliency_mask, density=0.1),
    "sign_supermask": lambda: c.case(w.sign_supermask, others(), c.kernels(), masks(), wrt=0),
    "aggregate_signs": lambda: c.case(
        lambda counts, *signs: w.aggregate_signs(signs, counts), c.uniform(3), *(others(i) for i in range(3))
    ),
    **models.CASES,
}

UNCOUNTED: dict[str, str] = {
    "greedy_soup": "a search on the host, with a call of the user's score for each model",
    "prune_to_performance": "a bisection on the host, with a call of the user's measure in each step",
    "group_projector": "eigenvectors of NumPy on the host, of matrices that are not traced",
}
