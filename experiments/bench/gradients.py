"""The suite of gradients: a whole training step with each transformation beside the plain step of its optimiser."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

import regjax as rj
from experiments.bench import networks
from experiments.bench.results import Bound, Panel
from experiments.bench.timing import Subject

SHAPES: Mapping[str, tuple[int, ...]] = {
    "mlp": (256, 784, 1024, 1024, 10),
    "resnet": (64, 32, 16),
    "tiny": (8, 8, 8, 3),
    "tiny-resnet": (8, 8, 4),
}
"""Batch and layers of a network; for the ResNet batch, side of the image and channels of the first of three stages."""
DEFAULT = ("mlp", "resnet")

RATE = 1e-3
BASES: Mapping[str, Callable[[], optax.GradientTransformation]] = {
    "SGD with momentum": lambda: optax.sgd(RATE, momentum=0.9),
    "AdamW": lambda: optax.adamw(RATE, weight_decay=1e-4),
}
"""The optimisers of the plain steps."""

PLAIN = "plain step"
MOST = 1.01
"""The FLOPs of a step whose gradient is transformed, as multiples of the plain step's."""

MORE = (
    "gradient_noise",
    "gradient_dropout",
    "lawn",
    "prune, between refreshes",
    "nm_pruning, between refreshes",
    "iss_p",
    "block_coordinate",
)
"""Without that bound: a random number for each weight, a threshold counted in every step or on one side of a condition, of which
XLA counts both, norms before and after the optimiser, or a choice among blocks that takes a whole step of the optimiser."""


def panels(shape: tuple[int, ...], threads: int) -> Iterator[Panel]:
    """What is measured together, on one network and batch: one panel for each optimiser."""
    resnet = len(shape) == 3
    network = networks.resnet(*shape) if resnet else networks.mlp(*shape)
    batch = network[3]
    described = f"ResNet of {shape[2]} channels, images {list(batch.shape)}" if resnet else f"MLP {list(shape[1:])}"
    described += "" if resnet else f", batch {shape[0]}"
    for name, base in BASES.items():
        makers = {PLAIN: base, **transformations(network[1], base), **whole(name)}
        subjects = {subject: step(network, make()) for subject, make in makers.items()}
        bounds = [Bound(subject, PLAIN, MOST, "flops") for subject in makers if subject not in (PLAIN, *MORE)]
        yield Panel(f"{described}, {name}: a step with each transformation", subjects, bounds, PLAIN, images=len(batch))


def transformations(params: Any, base: Callable[[], optax.GradientTransformation]) -> dict[str, Callable[[], Any]]:
    """All transformations, in a chain with an optimiser or around it."""
    g, w = rj.gradients, rj.weights
    before = lambda make: lambda: optax.chain(make(), base())
    after = lambda make: lambda: optax.chain(base(), make())
    even = lambda path, leaf: leaf.ndim > 1 and leaf.shape[-2] % 4 == 0  # pixels have three channels
    positive = jax.tree.map(lambda p: p >= 0, params)
    return {
        "centralize_gradient": before(g.centralize_gradient),
        "orthogonal_gradient": before(g.orthogonal_gradient),
        "gradient_noise": before(lambda: g.gradient_noise(jax.random.key(0))),
        "gradient_dropout": before(lambda: g.gradient_dropout(seed=0)),
        "add_penalty, l2": before(lambda: g.add_penalty(w.l2, RATE)),
        "add_penalty, group_lasso": before(lambda: g.add_penalty(w.group_lasso, RATE)),
        "decoupled_weight_decay": after(lambda: g.decoupled_weight_decay(RATE)),
        "cautious_weight_decay": after(lambda: g.cautious_weight_decay(1e-2, learning_rate=RATE)),
        "proximal_step, prox_l1": after(lambda: g.proximal_step(w.prox_l1, RATE)),
        "proximal_step, prox_group_lasso": after(lambda: g.proximal_step(w.prox_group_lasso, RATE)),
        "iss_p": after(lambda: g.iss_p(0.9)),
        "lawn": lambda: g.lawn(base(), free_steps=10),
        "block_coordinate": lambda: g.block_coordinate(base()),
        "irrelevance_decay": lambda: g.irrelevance_decay(base(), RATE),
        "fixed_mask": lambda: g.fixed_mask(base(), positive),
        "train_only": lambda: g.train_only(base(), positive),
        "prune, between refreshes": lambda: g.prune(base(), sparsity=0.9, start=10**6, end=10**7),
        "nm_pruning, between refreshes": lambda: g.nm_pruning(base(), n=2, m=4, start=10**6, where=even),
    }


def whole(base: str) -> dict[str, Callable[[], Any]]:
    """Optimisers that stand in place of one, each beside the base that it varies."""
    g = rj.gradients
    if base == "AdamW":
        return {
            "adamw_decoupled": lambda: g.adamw_decoupled(RATE, weight_decay=1e-4),
            "adamwr": lambda: g.adamwr(RATE, steps_per_epoch=100, first_period_epochs=10),
            "sara": lambda: g.sara(RATE),
        }
    return {
        "sgdw": lambda: g.sgdw(RATE, weight_decay=1e-4),
        "polyak_subgradient": lambda: g.polyak_subgradient(RATE),
    }


def step(network: Any, tx: optax.GradientTransformation) -> Subject:
    """Forward, backward and update; parameters and the optimiser's state are donated.

    The weights serve `regjax.gradients.gradient_dropout` as its reference: the second gradient is not its own cost.
    """
    apply_fn, params, state, x, y = network
    tx = optax.with_extra_args_support(tx)

    def loss_fn(params: Any, state: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, Any]:
        logits, state = apply_fn(params, state, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), state

    def full(carried: Any, x: jax.Array, y: jax.Array) -> Any:
        params, state, opt_state = carried
        (loss, state), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params, state, x, y)
        updates, opt_state = tx.update(gradient, opt_state, params, value=loss, reference=params)
        return (optax.apply_updates(params, updates), state, opt_state), loss

    return networks.looped(full, (params, jax.tree.map(jnp.asarray, state), tx.init(params)), x, y)
