"""Weights and whole networks: masks, projections, proximal steps and averages beside other libraries, SAM, authors' steps."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import regjax as rj
from experiments.bench import libraries, networks, objectives
from experiments.bench.peers import authors as written
from experiments.bench.peers.cases import SAME, Case, difference, joined, side_by_side, subject, torch_subject
from experiments.bench.results import Bound, Panel

SPARSITY, RATE, MOMENTUM, RHO = 0.8, 0.1, 0.9, 0.05
SLOW = 3
"""Turns of what sorts millions of numbers."""


def sam(shape: tuple[int, ...], threads: int) -> Panel:
    """The objectives' panel of SAM, held to the plain step in its memory also."""
    panel = next(objectives.panels(shape, threads))
    return dataclasses.replace(panel, bounds=[*panel.bounds, Bound("regjax sam", objectives.PLAIN, 1.05, "temporary")])


def step_cases(shape: tuple[int, ...]) -> dict[str, Case]:
    """Transformations of gradients, penalties and an objective on the weights of a dense network."""
    apply_fn, params, state, x, y = networks.mlp(*shape)
    random = np.random.default_rng(1)
    weights, structure = jax.tree.flatten(params)
    # Dictionaries are flattened by name: the bias of each layer before its kernel.
    weights = [np.asarray(w) if w.ndim > 1 else random.normal(size=w.shape).astype(np.float32) for w in weights]
    grads = [1e-2 * random.normal(size=w.shape).astype(np.float32) for w in weights]
    kernels, biases = weights[1::2], weights[::2]
    tree = lambda leaves: jax.tree.unflatten(structure, leaves)

    projection = rj.gradients.orthogonal_gradient()
    held = rj.gradients.lawn(optax.sgd(RATE, momentum=MOMENTUM), free_steps=0)
    started = held.init({"kernels": kernels})
    spectral = rj.weights.stateful_spectral_penalty()
    directions = spectral.init(jax.random.key(0), tree(weights))
    counts = np.arange(1, shape[-1] + 1)
    rare = np.asarray(counts[np.asarray(y)] < shape[-1] / 2 + 1)

    def losses(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(apply_fn(params, state, x)[0], y)

    def constrained(kernels: Any, grads: Any) -> Any:
        params = {"kernels": kernels}
        updates, after = held.update({"kernels": grads}, started, params)
        return optax.apply_updates(params, updates), optax.tree.get(after, "trace")

    def sorted_by_kind(value: jax.Array, gradient: Any) -> Any:
        leaves = jax.tree.leaves(gradient)
        return value, leaves[1::2], leaves[::2]

    objective = jax.value_and_grad(rj.objectives.imbsam(losses, class_counts=counts, tail_threshold=shape[-1] / 2 + 1, rho=RHO))
    paired = lambda leaves: [leaf for i in range(0, len(leaves), 2) for leaf in (leaves[i + 1], leaves[i])]
    penalty = jax.value_and_grad(lambda params, directions: spectral.apply(rj.weights.SpectralState(directions), params)[0])
    zeros = [np.zeros_like(k) for k in kernels]
    return {
        "orthogonal_gradient": Case(
            lambda weights, grads: projection.update(grads, optax.EmptyState(), weights)[0],
            written.orthogonal_gradient,
            (weights, grads),
        ),
        "lawn": Case(
            lambda kernels, grads, traces: constrained(kernels, grads),
            lambda kernels, grads, traces: written.lawn(kernels, grads, RATE, MOMENTUM, traces),
            (kernels, grads[1::2], zeros),
        ),
        "hypersparse_penalty": Case(
            lambda kernels: jax.value_and_grad(rj.weights.hypersparse_penalty)(kernels)[1],
            lambda kernels: written.hypersparse(kernels)[1:],
            (kernels,),
        ),
        "stateful_spectral_penalty": Case(
            lambda kernels, biases, directions: sorted_by_kind(
                *penalty(tree([w for pair in zip(biases, kernels, strict=True) for w in pair]), tree(_with_none(directions)))
            ),
            written.spectral,
            (kernels, biases, [np.asarray(u) for u in jax.tree.leaves(directions)]),
        ),
        "imbsam": Case(
            lambda weights, x, y, rare: _in_pairs(objective(tree(weights), x, y)),
            lambda weights, x, y, rare: written.imbsam(paired(weights), x, y, rare, rho=RHO),
            (weights, np.asarray(x), np.asarray(y), rare),
        ),
    }


def _with_none(directions: Any) -> list[Any]:
    """The directions in the places of the kernels, nothing in those of the biases."""
    return [leaf for u in directions for leaf in (None, u)]


def _in_pairs(result: Any) -> list[Any]:
    """The value, and the gradient of each layer's kernel before its bias's."""
    value, gradient = result
    leaves = jax.tree.leaves(gradient)
    return [value, *(leaf for i in range(0, len(leaves), 2) for leaf in (leaves[i + 1], leaves[i]))]


def authors_steps(shape: tuple[int, ...], threads: int) -> Panel:
    """What works on the weights of a dense network beside the authors' formulas."""
    title = f"MLP {list(shape[1:])}: updates, penalties and an objective beside their authors' formulas"
    return side_by_side(title, step_cases(shape), threads)


def masks(sizes: tuple[int, ...], threads: int) -> Panel:
    """The largest fifth of the weights: by counting within 150 ms, and beside sorting, selecting and quantiles."""
    side, count = sizes
    random = np.random.default_rng(0)
    params = {f"layer_{i}": {"kernel": random.standard_normal((side, side), np.float32)} for i in range(count)}
    flat = np.concatenate([layer["kernel"].ravel() for layer in params.values()])
    kept = round(flat.size * (1 - SPARSITY))

    def sort(params: Any) -> Any:
        whole = jnp.concatenate([jnp.abs(w).ravel() for w in jax.tree.leaves(params)])
        threshold = jnp.sort(whole)[whole.size - kept]
        return jax.tree.map(lambda w: jnp.abs(w) >= threshold, params)

    def of_each(threshold: Callable[[jax.Array], jax.Array]) -> Callable[[Any], Any]:
        return lambda params: jax.tree.map(lambda w: jnp.abs(w) >= threshold(jnp.abs(w).ravel()), params)

    selected = of_each(lambda a: jax.lax.top_k(a, round(a.size * (1 - SPARSITY)))[0][-1])
    by_rank = of_each(lambda a: jnp.quantile(a, SPARSITY))
    whole, each = "global_magnitude_mask", "topk_mask of magnitudes"
    subjects = {}
    subjects[whole], mask = subject(partial(rj.weights.global_magnitude_mask, sparsity=SPARSITY), params)
    magnitudes = lambda params: jax.tree.map(jnp.abs, params)
    subjects[each], uniform = subject(lambda params: rj.weights.topk_mask(magnitudes(params), sparsity=SPARSITY), params)
    subjects["all weights, jnp.sort"], sorted_mask = subject(sort, params, turns=SLOW)
    subjects["each leaf, lax.top_k"], top_mask = subject(selected, params, turns=SLOW)
    subjects["each leaf, jnp.quantile"], _ = subject(by_rank, params, turns=SLOW)
    disagree = lambda a, b: sum(np.sum(x != y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)) / flat.size
    pairs = {(whole, "all weights, jnp.sort"): (mask, sorted_mask), (each, "each leaf, lax.top_k"): (uniform, top_mask)}
    differences = {names: float(disagree(*results)) for names, results in pairs.items()}
    bounds = [Bound(name, None, 150.0) for name in (whole, each)]
    bounds += [Bound(*names, 1.0) for names in (*pairs, (each, "each leaf, jnp.quantile"))]
    # The share of weights on which the masks differ: by counting exactly so many stay, whatever ties there are.
    bounds += [Bound(*names, SAME, "difference") for names in pairs]
    title = f"{flat.size / 1e6:.1f} million weights: masks of the largest {1 - SPARSITY:.0%}"
    if libraries.available("torch"):
        other = "all weights, torch.kthvalue"
        subjects[other], (theirs,) = torch_subject(partial(written.kth_value, k=flat.size - kept), flat, threads=threads)
        differences[whole, other] = float(np.mean(theirs != np.concatenate([m.ravel() for m in jax.tree.leaves(mask)])))
        bounds += [Bound(whole, other, 1.0), Bound(whole, other, SAME, "difference")]
    return Panel(title, subjects, bounds, differences=differences)


def weight_cases(side: int) -> dict[str, Case]:
    """Proximal steps and an average of one kernel, as one writes them in PyTorch."""
    random = np.random.default_rng(0)
    w, average = (random.standard_normal((side, side), np.float32) for _ in range(2))
    slow = rj.weights.ema(0.999)
    return {
        "prox_l1": Case(lambda w: rj.weights.prox_l1({"kernel": w}, 0.1), partial(written.soft_threshold, step=0.1), (w,)),
        "prox_group_lasso": Case(
            lambda w: rj.weights.prox_group_lasso({"kernel": w}, 1.0), partial(written.block_soft_threshold, step=1.0), (w,)
        ),
        "ema": Case(
            lambda average, w: slow.apply(slow.init(average), w)[0], partial(written.moving_average, decay=0.999), (average, w)
        ),
    }


def weights(sizes: tuple[int, ...], threads: int) -> Panel:
    """Proximal steps, projections, averages and spectral norms of one square kernel."""
    (side,) = sizes
    title = f"a kernel of {side} x {side}: proximal steps, projections, an average, a norm"
    w = np.random.default_rng(0).standard_normal((side, side), np.float32)
    average = np.random.default_rng(1).standard_normal((side, side), np.float32)
    radius = math.sqrt(w.size)
    tree = lambda w: {"kernel": w}
    slow = rj.weights.ema(0.999)
    norm = lambda w: jnp.sqrt(2 * rj.weights.spectral_norm_penalty(tree(w)))
    pairs: dict[str, tuple[Any, str, Any, tuple[Any, ...], float]] = {
        "project_l1_ball": (
            lambda w: rj.weights.project_l1_ball(tree(w), radius=radius)["kernel"],
            "optax projection_l1_ball",
            lambda w: optax.projections.projection_l1_ball(w, radius),
            (w,),
            SAME,
        ),
        "project_simplex": (
            lambda w: rj.weights.project_simplex(tree(w), total=1.0)["kernel"],
            "optax projection_simplex",
            optax.projections.projection_simplex,
            (w,),
            SAME,
        ),
        "ema": (
            lambda average, w: slow.apply(slow.init(average), w)[0],
            "optax.incremental_update",
            lambda average, w: optax.incremental_update(w, average, 0.001),
            (average, w),
            SAME,
        ),
        "spectral norm by power iteration": (norm, "spectral norm by SVD", lambda w: jnp.linalg.norm(w, 2), (w,), 0.05),
    }
    subjects, bounds, differences = {}, [], {}
    for name, (fn, other, theirs, inputs, same) in pairs.items():
        subjects[name], result = subject(fn, *inputs)
        subjects[other], expected = subject(theirs, *inputs, turns=None if name == "ema" else SLOW)
        differences[name, other] = difference(result, expected)
        bounds += [Bound(name, other, 1.0), Bound(name, other, same, "difference")]
    compared = side_by_side(title, weight_cases(side), threads)
    return joined(title, compared, Panel("", subjects, bounds, differences=differences))
