"""The compiled functions of a run: its first state, its step, its scores, placed on a mesh."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import regjax as rj
from experiments import guard, meshes
from experiments.evaluation import Scores, score
from experiments.models import make_model, split
from experiments.recipes import Setting, make_recipe
from experiments.train_config import TrainConfig, typed
from regjax.core import trees


class Carry(NamedTuple):
    """All that a step hands to the next, and all that a checkpoint holds.

    Attributes:
      train: the state of the recipe's step.
      average: the moving average of the parameters and of the model state; empty without one.
      window: the sums of the metrics since the last line of them.
      bad: the verdict of the first bad step, after which nothing changes any more; ``guard.FINE`` until then.
    """

    train: rj.TrainState
    average: Any
    window: Mapping[str, jax.Array]
    bad: jax.Array


class Program(NamedTuple):
    """The compiled functions of a run.

    Attributes:
      template: the shapes and shardings of the `Carry`.
      init: ``(key, labels) -> Carry``.
      step: ``(Carry, batch) -> (Carry, verdict, mean metrics of the window)``; takes the buffers of its first argument.
      score: ``(params, model state, batch) -> Scores``.
      probe: for `guard.culprit`.
    """

    template: Carry
    init: Callable[..., Carry]
    step: Callable[..., tuple[Carry, jax.Array, Mapping[str, jax.Array]]]
    score: Callable[..., Scores]
    probe: Callable[..., guard.Probe]


def make_program(config: TrainConfig, splits: Any, mesh: jax.sharding.Mesh, steps_per_epoch: int, total: int) -> Program:
    """The functions of a run, placed on a mesh.

    Args:
      config: the run.
      splits: the data, for shapes and counts.
      mesh: from `experiments.meshes`.
      steps_per_epoch: optimiser steps in an epoch.
      total: optimiser steps in the run.

    Returns:
      A `Program`; nothing is compiled yet.

    Raises:
      ValueError: if the model or the recipe does not fit the data.
    """
    dtype = jnp.bfloat16 if config.bfloat16 else None
    make = lambda key: make_model(config.model, splits.image_shape, splits.num_classes, rngs=nnx.Rngs(key), dtype=dtype)
    apply_fn, params, _ = split(nnx.eval_shape(lambda: make(jax.random.key(0))))
    setting = Setting(
        num_examples=len(splits.train),
        num_classes=splits.num_classes,
        feature_dim=params["head"]["kernel"].shape[0],
        steps_per_epoch=steps_per_epoch,
        epochs=math.ceil(total / steps_per_epoch),
        total_steps=total,
        learning_rate=config.learning_rate,
    )
    recipe = make_recipe(config.recipe, setting, **typed(config.recipe, config.hyperparameters))
    if config.clip_norm is not None:
        recipe = dataclasses.replace(recipe, gradients=(optax.clip_by_global_norm(config.clip_norm), *recipe.gradients))
    options = {"num_classes": splits.num_classes, "steps_per_epoch": steps_per_epoch, "microbatches": config.microbatches}
    pipeline = rj.make_train_step(recipe, apply_fn, **options)
    size = (config.data.batch_size,)
    ids = jax.ShapeDtypeStruct(size, jnp.int32)
    batch = {"image": jax.ShapeDtypeStruct((*size, *splits.image_shape), jnp.float32), "label": ids, "index": ids}

    def init(key: jax.Array, labels: jax.Array) -> Carry:
        model_key, train_key = jax.random.split(key)
        _, params, model_state = split(make(model_key))
        state = pipeline.init(train_key, params, model_state, labels=labels)
        window = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(pipeline.step, state, batch)[1])
        average = () if config.ema_decay is None else _averaged(state)
        return Carry(state, average, window, jnp.int32(guard.FINE))

    def step(carry: Carry, batch: Mapping[str, jax.Array]) -> tuple[Carry, jax.Array, Mapping[str, jax.Array]]:
        old = carry.train
        new, metrics = pipeline.step(old, batch)
        begins = old.step % config.log_every == 0
        window = jax.tree.map(lambda total, value: jnp.where(begins, 0, total) + value, carry.window, metrics)
        means = jax.tree.map(lambda total: total / (old.step % config.log_every + 1), window)
        average = carry.average
        if config.ema_decay is not None:
            average = _moved(average, _averaged(new), new.step, config.ema_decay)
        # After a bad step everything stays as it was before it, for the culprit to be found.
        bad = jnp.where(carry.bad == guard.FINE, guard.verdict(metrics, new), carry.bad)
        keep = (carry.bad == guard.FINE) & ((bad == guard.FINE) | (bad == guard.STATE))
        new, average = jax.tree.map(lambda a, b: jnp.where(keep, a, b), (new, average), (old, carry.average))
        return Carry(new, average, window, bad), bad, means

    def score_batch(params: Any, model_state: Any, batch: Mapping[str, jax.Array]) -> Scores:
        out = apply_fn(params, model_state, batch["image"], key=None, hooks=rj.Hooks(), training=False)
        return score(out.logits, batch["clean_label"], batch["where"])

    whole = meshes.replicated(mesh)
    template = jax.eval_shape(init, jax.random.key(0), jax.ShapeDtypeStruct((len(splits.train),), jnp.int32))
    shardings = jax.tree.map(lambda _: whole, template)
    if config.shard_parameters:
        spread = {
            name: meshes.largest_axis_sharding(mesh, getattr(template.train, name)) for name in ("params", "learned", "opt_state")
        }
        average = meshes.largest_axis_sharding(mesh, template.average)
        shardings = shardings._replace(train=shardings.train._replace(**spread), average=average)
    place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return Program(
        template=jax.tree.map(place, template, shardings),
        init=jax.jit(init, out_shardings=shardings),
        step=jax.jit(step, donate_argnums=0, out_shardings=(shardings, whole, whole)),
        score=jax.jit(score_batch, out_shardings=whole),
        probe=jax.jit(guard.make_probe(recipe, apply_fn, **options)),
    )


def _averaged(state: rj.TrainState) -> tuple[Any, Any]:
    """What the moving average is of: batch statistics must fit the weights that they serve."""
    return state.params, state.model_state


def _moved(average: Any, new: Any, step: jax.Array, decay: float) -> Any:
    """The moving average after some steps, divided by its total weight ``1 - decay ** step`` at once: no bias to its start."""
    weight = (1 - decay) / -jnp.expm1(step * math.log(decay))
    return jax.tree.map(lambda a, x: a + weight.astype(x.dtype) * (x - a) if trees.is_float(x) else x, average, new)
