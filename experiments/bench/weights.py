"""The suite of weights: updates of a large tree beside AdamW's, spectral penalties beside a training step, bounds of norms."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import regjax as rj
from experiments.bench import networks
from experiments.bench.results import Bound, Panel
from experiments.bench.timing import Subject, cost

SHAPES: Mapping[str, tuple[int, ...]] = {
    "25m": (25_000_000, 60),
    "resnet": (64, 32, 16),
    "norms": (512, 64, 16),
    "tiny": (4_000, 6),
    "tiny-resnet": (8, 8, 4),
    "tiny-norms": (16, 4, 4),
}
"""Of a tree its weights and leaves; of a ResNet's step as among the objectives'; of norms a dense layer's units, the channels of
a 3 x 3 convolution and the side of its input."""
DEFAULT = ("25m", "resnet", "norms")

ADAMW = "optax.adamw"
RATE = 1e-3


def panels(shape: tuple[int, ...], threads: int) -> Iterator[Panel]:
    """What is measured together."""
    if len(shape) == 2:
        yield _updates(*shape)
    elif shape in (SHAPES["norms"], SHAPES["tiny-norms"]):
        yield from _norms(*shape)
    else:
        yield _penalties(shape)


def transformations(params: Any) -> dict[str, Callable[[], Any]]:
    """What works on each weight by itself, with one step's strength; what wraps an optimiser wraps AdamW."""
    g, w = rj.gradients, rj.weights
    step = lambda prox, **options: g.proximal_step(partial(prox, **options), RATE)
    adamw = partial(optax.adamw, RATE, weight_decay=1e-4)
    return {
        "decoupled_weight_decay": lambda: g.decoupled_weight_decay(RATE),
        "cautious_weight_decay": lambda: g.cautious_weight_decay(1e-2, learning_rate=RATE),
        "centralize_gradient": g.centralize_gradient,
        "orthogonal_gradient": g.orthogonal_gradient,
        "gradient_noise": lambda: g.gradient_noise(jax.random.key(0)),
        "lawn over adamw": lambda: g.lawn(adamw(), free_steps=10),
        "add_penalty, l2": lambda: g.add_penalty(w.l2, RATE),
        "add_penalty, l1": lambda: g.add_penalty(w.l1, RATE),
        "add_penalty, group_lasso": lambda: g.add_penalty(w.group_lasso, RATE),
        "proximal_step, prox_l1": lambda: step(w.prox_l1),
        "proximal_step, prox_l2": lambda: step(w.prox_l2),
        "proximal_step, prox_elastic_net": lambda: step(w.prox_elastic_net, l1=1.0, l2=1.0),
        "proximal_step, prox_l0": lambda: step(w.prox_l0),
        "proximal_step, project_box": lambda: step(w.project_box, lower=-1.0, upper=1.0),
        "proximal_step, prox_group_lasso": lambda: step(w.prox_group_lasso),
        "proximal_step, prox_sparse_group_lasso": lambda: step(w.prox_sparse_group_lasso, l1=1.0, group=1.0),
        "proximal_step, project_l2_ball of each unit": lambda: step(w.project_l2_ball, radius=1.0, groups="out"),
        "proximal_step, prox_wgsef": lambda: step(w.prox_wgsef, k=16),
        "irrelevance_decay over adamw": lambda: g.irrelevance_decay(adamw(), RATE),
        "sara": lambda: g.sara(RATE),
        "fixed_mask over adamw": lambda: g.fixed_mask(adamw(), jax.tree.map(lambda p: p > 0, params)),
        "prune over adamw, between refreshes": lambda: g.prune(adamw(), sparsity=0.9, start=10**6, end=10**7),
        "nm_pruning over adamw, between refreshes": lambda: g.nm_pruning(adamw(), n=2, m=4, start=10**6),
        "iss_p": lambda: g.iss_p(0.9),
    }


MORE = ("iss_p", "gradient_noise")
"""More than elementwise work, and so without a bound: the count of a threshold in every step, a random number for each weight."""


def tree(size: int, leaves: int) -> dict[str, Any]:
    """Dense kernels of one shape, about ``size`` weights in so many leaves."""
    side = max(4, int(np.sqrt(size / leaves)) // 4 * 4)
    random = np.random.default_rng(0)
    draw = lambda: jnp.asarray(random.standard_normal((side, side), np.float32))
    return {f"layer_{i:02}": {"kernel": draw()} for i in range(leaves)}


def _updates(size: int, leaves: int) -> Panel:
    params = tree(size, leaves)
    grads = jax.tree.map(lambda w: 1e-2 * jnp.roll(w, 1, 0), params)
    makers = {ADAMW: lambda: optax.adamw(RATE, weight_decay=1e-4), **transformations(params)}
    subjects = {name: _update(make(), grads, params) for name, make in makers.items()}
    bounds = [Bound(name, ADAMW, 1.3) for name in makers if name not in (ADAMW, *MORE)]
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return Panel(f"an update of {count / 1e6:.1f} million weights in {leaves} leaves", subjects, bounds, ADAMW)


def _update(tx: Any, grads: Any, params: Any) -> Subject:
    """One update; the state and the memory of the last updates are donated, gradients and weights are read."""

    def step(carried: Any, grads: Any, params: Any) -> Any:
        return tx.update(grads, carried[1], params), None

    return networks.looped(step, (jax.tree.map(jnp.zeros_like, grads), tx.init(params)), grads, params)


def _penalties(shape: tuple[int, ...]) -> Panel:
    """A ResNet's training step with spectral penalties, whose directions are carried, and with the norms' sum."""
    apply_fn, params, state, x, y = networks.resnet(*shape)
    tx = optax.sgd(0.1, momentum=0.9)

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(apply_fn(params, state, x)[0], y).mean()

    def stepped(penalty: Any) -> Subject:
        def full(params: Any, memory: Any, x: jax.Array, y: jax.Array) -> Any:
            if penalty is None:
                return loss(params, x, y), memory
            value, memory = penalty.apply(memory, params)
            return loss(params, x, y) + 1e-3 * value, memory

        def step(carried: Any, *batch: jax.Array) -> Any:
            params, opt_state, memory = carried
            gradient, memory = jax.grad(full, has_aux=True)(params, memory, *batch)
            updates, opt_state = tx.update(gradient, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state, memory), None

        memory = () if penalty is None else penalty.init(jax.random.key(0), params)
        return networks.looped(step, (params, tx.init(params), memory), x, y)

    plain = "plain step"
    names = {
        "stateful_spectral_penalty": rj.weights.stateful_spectral_penalty(),
        "stateful_spectral_norm_penalty": rj.weights.stateful_spectral_norm_penalty(),
    }
    subjects = {plain: stepped(None)} | {name: stepped(penalty) for name, penalty in names.items()}
    bounds = [Bound(name, plain, 1.05) for name in names]
    return Panel(f"ResNet of {shape[2]} channels, images {list(x.shape)}: a training step", subjects, bounds, plain)


def _norms(units: int, channels: int, side: int) -> Iterator[Panel]:
    """The time of one bound; how near it is to the norm stands in its name."""
    random = np.random.default_rng(0)
    dense = jnp.asarray(random.normal(size=(units, units)) / np.sqrt(units), jnp.float32)
    conv = jnp.asarray(random.normal(size=(3, 3, channels, channels)) / np.sqrt(9 * channels), jnp.float32)
    yield _bounds(f"the largest singular value of a {units} x {units} matrix", dense, dense, rj.weights.gram_iteration)
    frequencies = jnp.fft.rfft2(conv, s=(side, side), axes=(0, 1)).reshape(-1, channels, channels)
    on_grid = partial(rj.weights.gram_iteration_conv, n=side)
    title = f"the norm of a 3 x 3 convolution of {channels} channels on {side} x {side} pixels"
    yield _bounds(title, conv, frequencies, on_grid, kernel_to_matrices=lambda k: _spectrum(k, side))


def _spectrum(kernel: jax.Array, side: int) -> jax.Array:
    return jnp.fft.rfft2(kernel, s=(side, side), axes=(0, 1)).reshape(-1, *kernel.shape[2:])


def _bounds(
    title: str, kernel: jax.Array, matrices: jax.Array, gram: Callable[..., Any], kernel_to_matrices: Any = lambda k: k
) -> Panel:
    exact = float(np.linalg.norm(np.asarray(matrices, np.complex128), 2, axis=(-2, -1)).max())

    def power(kernel: jax.Array, steps: int) -> jax.Array:
        """Power iteration on all matrices from a fixed random start; their largest value."""
        a = kernel_to_matrices(kernel)
        u = jax.random.normal(jax.random.key(0), (*a.shape[:-2], a.shape[-1])).astype(a.dtype)
        unit = lambda v: v / jnp.linalg.norm(v, axis=-1, keepdims=True)
        forward = lambda u: jnp.einsum("...mn,...n->...m", a, u)
        back = lambda v: jnp.einsum("...mn,...m->...n", a.conj(), v)
        u = jax.lax.fori_loop(0, steps, lambda _, u: unit(back(forward(unit(u)))), u)
        return jnp.linalg.norm(forward(u), axis=-1).max()

    subjects = {}
    candidates = [(f"Gram iteration, {n} steps", partial(gram, n_iter=n)) for n in (3, 4, 5, 6)]
    candidates += [(f"power iteration, {n} steps", partial(power, steps=n)) for n in (5, 10, 20, 40, 80, 160)]
    for name, fn in candidates:
        compiled = jax.jit(fn)
        error = abs(float(compiled(kernel)) - exact) / exact
        subjects[f"{name}: relative error {error:.1e}"] = Subject(
            lambda compiled=compiled: jax.block_until_ready(compiled(kernel)), cost(fn, kernel)
        )
    return Panel(title, subjects, [])
