"""The gradients: a training step with each beside the plain one, of AdamW where it stands in its place or wraps it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import optax

import regjax as rj
from experiments.bench.cards import case as c

g, w = rj.gradients, rj.weights
RATE = 1e-3
SGD = partial(optax.sgd, 0.1, momentum=0.9)
ADAMW = partial(optax.adamw, RATE, weight_decay=1e-4)


def _on_gradients(make: Callable[[], Any]) -> Callable[[], c.Case]:
    """A transformation of the gradients that SGD with momentum gets."""
    return lambda: c.step(transform=optax.chain(make(), SGD()))


def _on_updates(make: Callable[[], Any]) -> Callable[[], c.Case]:
    """A transformation of the updates that SGD with momentum gives."""
    return lambda: c.step(transform=optax.chain(SGD(), make()))


def _adamw(make: Callable[[], Any]) -> Callable[[], c.Case]:
    """What stands in AdamW's place, beside it."""
    return lambda: c.step(transform=make(), base=ADAMW())


def _with_extra(transform: Any, extra: Callable[[Any, Any], dict[str, Any]]) -> optax.GradientTransformation:
    """A transformation whose further arguments are made of the updates and the parameters."""
    update = lambda updates, state, params=None: transform.update(updates, state, params, **extra(updates, params))
    return optax.GradientTransformation(transform.init, update)


def _half(params: Any) -> Any:
    return w.topk_mask(params, sparsity=0.5)


CASES = {
    # Optimisers and the decay of weights.
    "sgdw": lambda: c.step(transform=g.sgdw(0.1, weight_decay=1e-4)),
    "adamw_decoupled": _adamw(lambda: g.adamw_decoupled(RATE, weight_decay=1e-4)),
    "adamwr": _adamw(lambda: g.adamwr(RATE, steps_per_epoch=390, first_period_epochs=10)),
    "polyak_subgradient": lambda: c.step(
        transform=_with_extra(g.polyak_subgradient(0.1), lambda updates, _: {"value": updates[-1]["bias"][0]}),
        base=optax.sgd(0.1),
    ),
    "decoupled_weight_decay": _on_updates(lambda: g.decoupled_weight_decay(1e-4)),
    "cautious_weight_decay": _on_updates(lambda: g.cautious_weight_decay(1e-2, learning_rate=RATE)),
    "irrelevance_decay": _adamw(lambda: g.irrelevance_decay(ADAMW(), RATE)),
    # Gradients.
    "centralize_gradient": _on_gradients(g.centralize_gradient),
    "orthogonal_gradient": _on_gradients(g.orthogonal_gradient),
    "gradient_noise": _on_gradients(lambda: g.gradient_noise(c.key())),
    "gradient_dropout": _on_gradients(lambda: _with_extra(g.gradient_dropout(), lambda _, params: {"reference": params})),
    "agreement_keep_prob": lambda: c.case(g.agreement_keep_prob, c.normal(512, 512), c.normal(512, 512, seed=1)),
    "add_penalty": _on_gradients(lambda: g.add_penalty(w.l2, 1e-4)),
    # Weights after the step.
    "proximal_step": _on_updates(lambda: g.proximal_step(w.prox_l1, 1e-4, learning_rate=0.1)),
    "lawn": _adamw(lambda: g.lawn(ADAMW(), free_steps=1000)),
    # Sparsity.
    "fixed_mask": _adamw(lambda: g.fixed_mask(ADAMW(), _half)),
    "train_only": _adamw(lambda: g.train_only(ADAMW(), _half)),
    "prune": _adamw(lambda: g.prune(ADAMW(), sparsity=0.9, start=100, end=1000, every=100)),
    "nm_pruning": _adamw(lambda: g.nm_pruning(ADAMW(), n=2, m=4, start=100, end=1000, every=100)),
    "iss_p": _on_updates(lambda: g.iss_p(0.9)),
    "sara": _adamw(lambda: g.sara(RATE)),
    # Blocks.
    "block_coordinate": lambda: c.step(transform=g.block_coordinate(SGD())),
    "select_block": lambda: c.case(g.select_block, c.kernels()),
    "select_coordinates": lambda: c.case(partial(g.select_coordinates, block_size=128), c.normal(512 * 512)),
}
UNCOUNTED = {
    "find_mask": "reads a mask from a state and computes nothing",
    "normalized_weight_decay": "a formula of single numbers",
}
