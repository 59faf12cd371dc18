"""The guard against NaN and infinity: checked on the device in every step, read by the host a few steps later."""

import dataclasses
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import regjax as rj
from regjax.core import trees

FINE, LOSS, GRADIENT, STATE = 0, 1, 2, 3
"""What a step may find: nothing; the loss or the gradient is not finite; the new parameters or model state are not."""


class NonFiniteError(RuntimeError):
    """Training met NaN or infinity; the message names the step and the culprit."""


def verdict(metrics: Mapping[str, jax.Array], new: rj.TrainState) -> jax.Array:
    """What is wrong with a step, inside jit.

    Args:
      metrics: with ``loss`` and ``grad_norm``: a gradient whose norm is finite has no other entries.
      new: the state after it.

    Returns:
      ``FINE``, ``LOSS``, ``GRADIENT`` or ``STATE``, int32.
    """
    state = [leaf for leaf in jax.tree.leaves((new.params, new.learned, new.model_state)) if trees.is_float(leaf)]
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in state]))
    code = jnp.where(finite, FINE, STATE)
    code = jnp.where(jnp.isfinite(metrics["grad_norm"]), code, GRADIENT)
    return jnp.where(jnp.isfinite(metrics["loss"]), code, LOSS).astype(jnp.int32)


class Watch:
    """Reads verdicts with a lag, so that the device never waits for the host, nor has too much queued up.

    Args:
      lag: how many steps may be unread.
    """

    def __init__(self, lag: int = 8):
        self._lag = lag
        self._unread: deque[jax.Array] = deque()

    def add(self, code: jax.Array) -> bool:
        """Adds the verdict of a step.

        Args:
          code: still being computed.

        Returns:
          Whether an earlier step was bad.
        """
        self._unread.append(code)
        return self._read(self._lag)

    def all_read(self) -> bool:
        """Waits for every step so far.

        Returns:
          Whether one was bad.
        """
        return self._read(0)

    def _read(self, leave: int) -> bool:
        while len(self._unread) > leave:
            if int(self._unread.popleft()) != FINE:
                return True
        return False


class Probe(NamedTuple):
    """What a step computes on its way: logits of the plain forward pass, metrics and gradients."""

    logits: Any
    metrics: Mapping[str, Any]
    gradients: Any


def make_probe(recipe: rj.Recipe, apply_fn: rj.ApplyFn, **options: Any) -> Callable[[rj.TrainState, Any], Probe]:
    """Makes the step that shows its parts instead of training.

    Args:
      recipe: as trained.
      apply_fn: the model.
      **options: those of `regjax.make_train_step`.

    Returns:
      ``probe(state, batch) -> Probe``, with the random numbers of the training step.
    """
    # An optimiser whose state is the gradient that it got.
    update = lambda grads, state, params=None: (jax.tree.map(jnp.zeros_like, grads), grads)
    keep = optax.GradientTransformation(lambda params: params, update)
    shown = dataclasses.replace(recipe, gradients=(), optimizer=keep, weights=())
    train = rj.make_train_step(shown, apply_fn, **options)

    def probe(state: rj.TrainState, batch: Any) -> Probe:
        forward = {"key": jax.random.key(0), "hooks": rj.Hooks(), "training": True}
        logits = apply_fn(state.params, state.model_state, batch["image"], **forward).logits
        begin = state._replace(opt_state={**state.opt_state, "model": shown.transform().init(state.params)})
        end, metrics = train.step(begin, batch)
        return Probe(logits, metrics, end.opt_state["model"])

    return probe


def culprit(code: int, state: rj.TrainState, batch: Any, probe: Callable[[rj.TrainState, Any], Probe]) -> str:
    """The first thing that is not finite.

    Args:
      code: the verdict.
      state: before the step for ``LOSS`` and ``GRADIENT``, after it for ``STATE``.
      batch: of the step.
      probe: from `make_probe`, compiled or not.

    Returns:
      A phrase for the error message.
    """
    after = first_bad({"parameters": state.params, "feature parameters": state.learned, "model state": state.model_state})
    if code == STATE or after:
        return f"{after} after the update" if code == STATE else f"{after} before the step"
    if found := first_bad(batch):
        return f"{found} of the batch"
    seen = probe(state, batch)
    if first_bad(seen.logits):
        return "the logits" + _numbers(seen.metrics)
    for name in ("task_loss", "penalty", "loss"):
        if first_bad(seen.metrics[name]):
            return f"the {name.replace('_', ' ')}" + _numbers(seen.metrics)
    if found := first_bad(seen.gradients):
        return f"the gradient of {found.removeprefix('0.')}" + _numbers(seen.metrics)
    return "the norm of the gradient, whose entries are finite," + _numbers(seen.metrics)


def first_bad(tree: Any) -> str:
    """The name of the first floating leaf with NaN or infinity.

    Args:
      tree: a pytree of arrays, on one process or several.

    Returns:
      Its path; an empty string if there is none, and ``value`` for a tree that is one array.
    """
    leaves = [(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree) if trees.is_float(leaf)]
    for (path, _), finite in zip(leaves, jax.device_get(_finite([leaf for _, leaf in leaves])), strict=True):
        if not finite:
            return ".".join(trees.path_names(path)) or "value"
    return ""


@jax.jit
def _finite(leaves: list[jax.Array]) -> list[jax.Array]:
    return [jnp.all(jnp.isfinite(leaf)) for leaf in leaves]


def _numbers(metrics: Mapping[str, Any]) -> str:
    shown = ", ".join(f"{name.replace('_', ' ')} {float(np.asarray(metrics[name])):.4g}" for name in ("loss", "grad_norm"))
    return f" ({shown})"
