"""One run of one recipe, on a mesh, that never loses anything.

``python -m experiments.train --recipe sam --data.label-noise 0.2 --out runs/sam``; ``--help`` lists every option. The same
command again goes on from the last checkpoint, bit for bit, however the run ended (on GPUs XLA chooses its kernels by timing
them: for equal bits there, set ``XLA_FLAGS=--xla_gpu_deterministic_ops=true``).
"""

import contextlib
import dataclasses
import difflib
import functools
import inspect
import json
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from jax.experimental import multihost_utils

import regjax as rj
from experiments import guard, meshes
from experiments.checkpoints import Checkpoints, claimed, refuse_other
from experiments.data import (
    DataConfig,
    DatasetUnavailable,
    evaluation_batches,
    load_arrays,
    load_views,
    train_batches,
    train_iterator,
)
from experiments.evaluation import Scores, evaluate, score
from experiments.models import ModelConfig, make_model, split
from experiments.recipes import RECIPES, Setting, check_names, make_recipe
from experiments.writers import Writer, write_json
from regjax.core import trees

IN_MEMORY_MEGABYTES = 400.0
"""Data sets whose images take more, as float32, are read from disk batch by batch."""

# Where the run lies, how it is watched and when it is saved: none of them changes what is computed (but for the rounding of
# sums over another number of devices), so a run may go on with others.
_FREE = (
    *("out", "data.data_dir", "progress", "tensorboard"),
    *("checkpoint_every", "keep", "stop_at_step"),
    *("devices", "shard_parameters", "distributed"),
)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One run.

    Attributes:
      recipe: the name of a recipe, from `experiments.recipes`.
      hyperparameters: those of the recipe that differ from its defaults, as ``--hyperparameters rho 0.1``.
      data: the data set and its variants.
      model: the model.
      epochs: passes over the training set; the examples that fill no batch are left out of an epoch, others in each.
      steps: optimiser steps, in place of ``epochs``.
      learning_rate: the rate of the plain method.
      seed: of the initial parameters and of all randomness in the steps. The data have a seed of their own.
      bfloat16: compute in bfloat16; parameters stay float32.
      clip_norm: the greatest global norm of the gradient, scaled down to it before all else; no clipping by default.
      ema_decay: between 0 and 1: an exponential moving average of the parameters, free of bias to their initial values, is kept
        and evaluated too.
      devices: over how many a batch is split; all by default.
      shard_parameters: spread parameters and optimiser state over the devices too, rather than copying them to each.
      out: the folder of the run.
      log_every: steps between lines of training metrics, each their mean over the steps since the last.
      eval_every: steps between evaluations on the validation split; an epoch by default.
      checkpoint_every: steps between checkpoints.
      keep: how many checkpoints to keep.
      progress: show a progress bar, if stderr is a terminal.
      tensorboard: write TensorBoard events, if tensorboardX is installed.
      stop_at_step: save and stop there; the same command with a later step, or without, goes on.
      distributed: one process of several, as ``jax.distributed.initialize`` finds them.
    """

    recipe: str = "baseline"
    hyperparameters: dict[str, float] = dataclasses.field(default_factory=dict)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    epochs: int = 100
    steps: int | None = None
    learning_rate: float = 0.05
    seed: int = 0
    bfloat16: bool = False
    clip_norm: float | None = None
    ema_decay: float | None = None
    devices: int | None = None
    shard_parameters: bool = False
    out: Path = Path("runs/train")
    log_every: int = 50
    eval_every: int | None = None
    checkpoint_every: int = 500
    keep: int = 2
    progress: bool = True
    tensorboard: bool = True
    stop_at_step: int | None = None
    distributed: bool = False

    def __post_init__(self) -> None:
        """Refuses what cannot run, before anything is written."""
        check_names([self.recipe])
        _check_hyperparameters(self.recipe, self.hyperparameters)
        at_least = {"epochs": 1, "log_every": 1, "checkpoint_every": 1, "keep": 1, "seed": 0}
        optional = {"steps": 1, "eval_every": 1, "devices": 1, "stop_at_step": 0}
        for field, least in {**at_least, **optional}.items():
            value = getattr(self, field)
            if value is None and field in optional:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                _refuse(field, f"an integer, at least {least}", value)
        positive = lambda value: isinstance(value, (int, float)) and 0 < value < math.inf
        if not positive(self.learning_rate):
            _refuse("learning_rate", "a positive number", self.learning_rate)
        if self.clip_norm is not None and not positive(self.clip_norm):
            _refuse("clip_norm", "a positive number", self.clip_norm)
        if self.ema_decay is not None and not (positive(self.ema_decay) and self.ema_decay < 1):
            _refuse("ema_decay", "a number between 0 and 1", self.ema_decay)
        if self.devices is not None and self.data.batch_size % self.devices:
            _refuse("data.batch_size", f"a multiple of devices = {self.devices}", self.data.batch_size)
        if self.seed >= 2**32:
            _refuse("seed", "below 2**32", self.seed)


class Outcome(NamedTuple):
    """How a call of `train` ended.

    Attributes:
      step: steps done.
      final: what ``final.json`` holds; None for a run that is not finished.
      signal: the number of the signal that stopped the run, or 0.
      news: false if the run had been finished before.
    """

    step: int
    final: Mapping[str, Any] | None
    signal: int = 0
    news: bool = True


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


def train(config: TrainConfig) -> Outcome:
    """Trains, from the start or from the last checkpoint in the folder of the run.

    Args:
      config: the run.

    Returns:
      An `Outcome`.

    Raises:
      ValueError: if the configuration does not fit the data, the devices, or the folder, which is left as it is then.
      DatasetUnavailable: if the data cannot be had.
      guard.NonFiniteError: if training met NaN or infinity; the last good checkpoint is kept.
    """
    first, whose = jax.process_index() == 0, (config.out, dataclasses.asdict(config), _FREE)
    refuse_other(*whose)
    if (config.out / "final.json").exists():
        final = json.loads((config.out / "final.json").read_text())
        return Outcome(final["step"], final, news=False)

    with contextlib.ExitStack() as stack:
        requests = stack.enter_context(_stop_requests())
        splits = _load(config.data)
        steps_per_epoch = len(splits.train) // config.data.batch_size
        if not steps_per_epoch:
            _refuse("data.batch_size", f"at most the {len(splits.train)} training examples", config.data.batch_size)
        total = config.epochs * steps_per_epoch if config.steps is None else config.steps
        mesh = meshes.data_mesh(config.devices)
        if config.data.batch_size % mesh.size:
            _refuse("data.batch_size", f"a multiple of the {mesh.size} devices (or choose --devices)", config.data.batch_size)
        stack.enter_context(jax.set_mesh(mesh))
        program = make_program(config, splits, mesh, steps_per_epoch, total)

        # What can be refused has been: from here on the folder is this run's.
        if first:
            stack.enter_context(claimed(*whose))
        _barrier("claimed")
        checkpoints = Checkpoints(config.out / "checkpoints", config.keep)
        stack.callback(checkpoints.close)
        options = {"batch_size": config.data.batch_size, "seed": config.data.seed}
        batches = train_iterator(splits.train, **options)
        start = checkpoints.latest() or 0
        if start:
            carry, extra = checkpoints.restore(start, program.template)
            batches.set_state(extra["data"])
            _announce(config, start, total, extra["devices"], mesh.size)
        else:
            carry, extra = program.init(jax.random.key(config.seed), np.asarray(splits.train.labels)), {}
        writer = Writer(
            config.out,
            start=start,
            total=total,
            size=extra.get("metrics_bytes", 0),
            active=first,
            tensorboard=config.tensorboard,
            progress=config.progress,
        )
        stack.callback(writer.close)

        def check(bad: bool) -> None:
            if bad:
                checkpoints.wait()
                raise guard.NonFiniteError(_last_words(config, program, splits, mesh, carry, checkpoints.latest()))

        def save() -> None:
            check(watch.all_read())
            extra = {"data": batches.get_state(), "metrics_bytes": writer.sync(), "devices": mesh.size}
            checkpoints.save(step, carry, extra)

        watch, step, saved, stopped_by, validation = guard.Watch(), start, start, 0, {}
        eval_every = config.eval_every or steps_per_epoch
        last = total if config.stop_at_step is None else min(total, config.stop_at_step)
        while step < last and not (stopped_by := _stop_signal(requests, step)):
            carry, bad, means = program.step(carry, meshes.put_batch(mesh, _inputs(next(batches))))
            step += 1
            check(watch.add(bad))
            writer.advance()
            if step % config.log_every == 0 or step == total:
                check(watch.all_read())
                writer.write(step, "train", {name: float(value) for name, value in jax.device_get(means).items()})
            if len(splits.validation) and (step % eval_every == 0 or step == total):
                check(watch.all_read())
                validation = _measure(config, program, mesh, carry, splits.validation)
                writer.write(step, "validation", validation)
            if step % config.checkpoint_every == 0 or step == total:
                save()
                saved = step
        if step < total:
            if step > saved:
                save()
            checkpoints.wait()
            return Outcome(step, None, stopped_by)

        # The last checkpoint was saved before the line of the test: a run that dies in between writes that line again.
        validation = validation or _measure(config, program, mesh, carry, splits.validation)
        test = _measure(config, program, mesh, carry, splits.test)
        writer.write(step, "test", test)
        writer.sync()
        checkpoints.wait()
        final = {"recipe": config.recipe, "step": step, "validation": validation, "test": test}
        if first:
            write_json(config.out / "final.json", final)
        _barrier("finished")
        return Outcome(step, final)


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
    recipe = make_recipe(config.recipe, setting, **_typed(config.recipe, config.hyperparameters))
    if config.clip_norm is not None:
        recipe = dataclasses.replace(recipe, gradients=(optax.clip_by_global_norm(config.clip_norm), *recipe.gradients))
    options = {"num_classes": splits.num_classes, "steps_per_epoch": steps_per_epoch}
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


def _inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """What a training step may see of a batch."""
    return {name: batch[name] for name in ("image", "label", "index")}


def _load(config: DataConfig) -> Any:
    """The data in memory if they fit, else as views of their files."""
    views = load_views(config)
    count = len(views.train) + len(views.validation) + len(views.test)
    fits = count * math.prod(views.image_shape) * 4e-6 <= IN_MEMORY_MEGABYTES
    return load_arrays(config, max_megabytes=IN_MEMORY_MEGABYTES) if fits else views


@contextlib.contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """The signals to stop that came so far; a second one acts as if nobody caught it."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def request(number: int, _: Any) -> None:
        received.append(number)
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, request)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop_signal(requests: list[int], step: int) -> int:
    """The signal to stop by, or 0; several processes agree on it, now and then, because all must save the same step."""
    received = requests[0] if requests else 0
    if jax.process_count() == 1:
        return received
    return int(multihost_utils.process_allgather(np.array(received)).max()) if step % 10 == 0 else 0


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _announce(config: TrainConfig, start: int, total: int, devices_before: int, devices: int) -> None:
    if jax.process_index() == 0:
        changed = "" if devices == devices_before else f" on {devices} devices, {devices_before} before: equal up to rounding"
        print(f"{config.out}: going on from step {start} of {total}{changed}", file=sys.stderr)


def _measure(config: TrainConfig, program: Program, mesh: jax.sharding.Mesh, carry: Carry, split: Any) -> dict[str, float]:
    """The measures on a split, of the parameters and of their average; none of an empty split."""
    weights = {"": (carry.train.params, carry.train.model_state)}
    if config.ema_decay is not None:
        weights["ema_"] = carry.average
    values = {}
    for prefix, (params, model_state) in weights.items():
        batches = (meshes.put_batch(mesh, batch) for batch in evaluation_batches(split, batch_size=config.data.batch_size))
        measured = evaluate(functools.partial(program.score, params, model_state), batches)
        values |= {prefix + name: value for name, value in measured.items()}
    return values


def _last_words(
    config: TrainConfig, program: Program, splits: Any, mesh: jax.sharding.Mesh, carry: Carry, saved: int | None
) -> str:
    """What to say of a run that met NaN or infinity, from the state before the bad step, or after a bad update."""
    code = int(carry.bad)
    done = int(carry.train.step) - (code == guard.STATE)
    batch = train_batches(splits.train, batch_size=config.data.batch_size, seed=config.data.seed)[done]
    what = guard.culprit(code, carry.train, meshes.put_batch(mesh, _inputs(batch)), program.probe)
    kept = f"the checkpoint of step {saved} in {config.out} is kept" if saved else "there is no checkpoint yet"
    return f"step {done + 1} met NaN or infinity: first in {what}; {kept}"


def _summary(config: TrainConfig, outcome: Outcome) -> str:
    if outcome.final is None:
        how = f"stopped by {signal.Signals(outcome.signal).name}" if outcome.signal else "stopped as asked"
        return f"{config.out}: {how} after step {outcome.step}; the same command goes on"
    lines = [f"{config.out}: finished at step {outcome.step}" + ("" if outcome.news else " before; nothing to do")]
    for part in ("validation", "test"):
        if outcome.final[part]:
            lines.append(f"  {part}: " + ", ".join(f"{name} {float(value):.4f}" for name, value in outcome.final[part].items()))
    return "\n".join(lines)


def _refuse(field: str, expected: str, value: Any) -> None:
    raise ValueError(f"TrainConfig: {field} must be {expected}, got {value!r}")


def _check_hyperparameters(recipe: str, given: Mapping[str, float]) -> None:
    known = list(inspect.signature(RECIPES[recipe]).parameters)[1:]
    for name, value in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known) or 'none'}"
            raise ValueError(f"TrainConfig: hyperparameters: recipe {recipe!r} has no {name!r}; {hint}")
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            _refuse(f"hyperparameters: {name}", "a finite number", value)


def _typed(recipe: str, given: Mapping[str, float]) -> dict[str, Any]:
    """Whole numbers as integers where the default is one."""
    defaults = {name: p.default for name, p in inspect.signature(RECIPES[recipe]).parameters.items()}
    whole = lambda name, value: isinstance(defaults[name], int) and float(value).is_integer()
    return {name: int(value) if whole(name, value) else value for name, value in given.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    Args:
      arguments: by default those of the process.

    Returns:
      The exit status: 0; 2 for a bad configuration or missing data; 3 for NaN or infinity; 128 and the signal for a run that one
      stopped.
    """
    try:
        config = tyro.cli(TrainConfig, args=arguments, prog="python -m experiments.train")
        if config.distributed:
            jax.distributed.initialize()
        outcome = train(config)
    except guard.NonFiniteError as error:
        print(error, file=sys.stderr)
        return 3
    except (ValueError, DatasetUnavailable) as error:
        print(error, file=sys.stderr)
        return 2
    if jax.process_index() == 0:
        print(_summary(config, outcome))
    return 128 + outcome.signal if outcome.signal else 0


if __name__ == "__main__":
    sys.exit(main())
