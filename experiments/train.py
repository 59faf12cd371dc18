"""One run of one recipe, on a mesh, that never loses anything.

``python -m experiments.train --recipe sam --data.label-noise 0.2 --out runs/sam``; ``--help`` lists every option. The same
command again goes on from the last checkpoint, bit for bit, however the run ended (on GPUs XLA chooses its kernels by timing
them: for equal bits there, set ``XLA_FLAGS=--xla_gpu_deterministic_ops=true``).
"""

import contextlib
import dataclasses
import functools
import json
import math
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments import commands, guard, meshes
from experiments import train_hosts as hosts
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
from experiments.evaluation import evaluate
from experiments.train_config import ADDED, FREE, TrainConfig, refuse
from experiments.train_program import Carry, Program, make_program
from experiments.writers import Writer, write_json

IN_MEMORY_MEGABYTES = 400.0
"""Data sets whose images take more, as float32, are read from disk batch by batch."""


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
    first, whose = jax.process_index() == 0, (config.out, dataclasses.asdict(config), FREE, ADDED)
    hosts.check_same(whose[1])
    if finished := hosts.first_says(lambda: _finished(*whose)):
        final = json.loads(finished)
        return Outcome(final["step"], final, news=False)

    with contextlib.ExitStack() as stack:
        requests = stack.enter_context(_stop_requests())
        splits, mesh, program, steps_per_epoch, total = hosts.together(lambda: _prepare(config))
        stack.enter_context(jax.set_mesh(mesh))

        # What can be refused has been: from here on the folder is this run's.
        hosts.together(lambda: stack.enter_context(claimed(*whose)) if first else None)
        checkpoints = Checkpoints(config.out / "checkpoints", config.keep)
        stack.callback(checkpoints.close)
        options = {"batch_size": config.data.batch_size, "seed": config.data.seed}
        batches = train_iterator(splits.train, **options)
        start = int(hosts.first_says(lambda: str(checkpoints.latest() or 0)))
        if start:
            carry, extra = checkpoints.restore(start, program.template)
            batches.set_state(extra["data"])
            _announce(config, start, total, (extra["devices"], extra.get("processes", 1)), (mesh.size, jax.process_count()))
        else:
            carry, extra = program.init(jax.random.key(config.seed), np.asarray(splits.train.labels)), {}
        options = {"start": start, "total": total, "size": extra.get("metrics_bytes", 0)}
        shown = {"active": first, "tensorboard": config.tensorboard, "progress": config.progress}
        writer = hosts.together(lambda: Writer(config.out, **options, **shown))
        stack.callback(writer.close)

        def check(bad: bool) -> None:
            if bad:
                checkpoints.wait()
                raise guard.NonFiniteError(_last_words(config, program, splits, mesh, carry, checkpoints.latest()))

        def save() -> None:
            check(watch.all_read())
            extra = {"data": batches.get_state(), "metrics_bytes": writer.sync()}
            checkpoints.save(step, carry, extra | {"devices": mesh.size, "processes": jax.process_count()})

        watch, step, saved, stopped_by, validation = guard.Watch(), start, start, 0, {}
        eval_every = config.eval_every or steps_per_epoch
        last = total if config.stop_at_step is None else min(total, config.stop_at_step)
        stack.enter_context(hosts.ending_together(lambda: _gone(config, step)))
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
        hosts.exchange("finished")
        return Outcome(step, final)


def _inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """What a training step may see of a batch."""
    return {name: batch[name] for name in ("image", "label", "index")}


def _finished(out: Path, *whose: Any) -> str:
    """What ``final.json`` holds; an empty string if the run is not finished. Refuses the folder of another one."""
    refuse_other(out, *whose)
    return (out / "final.json").read_text() if (out / "final.json").exists() else ""


def _prepare(config: TrainConfig) -> tuple[Any, jax.sharding.Mesh, Program, int, int]:
    """The data, the mesh, the functions, the steps in an epoch and in the run; refuses what does not fit."""
    splits = _load(config.data)
    steps_per_epoch = len(splits.train) // config.data.batch_size
    if not steps_per_epoch:
        refuse("data.batch_size", f"at most the {len(splits.train)} training examples", config.data.batch_size)
    total = config.epochs * steps_per_epoch if config.steps is None else config.steps
    mesh = meshes.data_mesh(config.devices)
    if config.data.batch_size % mesh.size:
        refuse("data.batch_size", f"a multiple of the {mesh.size} devices (or choose --devices)", config.data.batch_size)
    with jax.set_mesh(mesh):
        program = make_program(config, splits, mesh, steps_per_epoch, total)
    return splits, mesh, program, steps_per_epoch, total


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


def _announce(config: TrainConfig, start: int, total: int, before: tuple[int, int], now: tuple[int, int]) -> None:
    """Says where a run goes on; ``before`` and ``now`` count devices and processes."""
    if jax.process_index() == 0:
        place = lambda devices, processes: f"{devices} devices" + (f" of {processes} processes" if processes > 1 else "")
        changed = "" if now == before else f" on {place(*now)}, {place(*before)} before: equal up to rounding"
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


def _gone(config: TrainConfig, step: int | None = None) -> str:
    """What to say when another process is gone; asks no one, since nobody may answer."""
    saved = [int(path.name) for path in (config.out / "checkpoints").glob("*") if path.name.isdecimal()]
    what = f"the checkpoint of step {max(saved)} is kept" if saved else "there is no checkpoint yet"
    how = "goes on from it" if saved else "starts anew"
    when = "" if step is None else f" at step {step}"
    return f"{config.out}: another process of this run is gone{when}; {what}, and the same command on all processes {how}"


def _summary(config: TrainConfig, outcome: Outcome) -> str:
    if outcome.final is None:
        how = f"stopped by {signal.Signals(outcome.signal).name}" if outcome.signal else "stopped as asked"
        return f"{config.out}: {how} after step {outcome.step}; the same command goes on"
    lines = [f"{config.out}: finished at step {outcome.step}" + ("" if outcome.news else " before; nothing to do")]
    for part in ("validation", "test"):
        if outcome.final[part]:
            lines.append(f"  {part}: " + ", ".join(f"{name} {float(value):.4f}" for name, value in outcome.final[part].items()))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    Args:
      arguments: by default those of the process.

    Returns:
      The exit status: 0; 2 for a bad configuration or missing data; 3 for NaN or infinity; 4 if another process of the run is
      gone; 128 and the signal for a run that one stopped.
    """
    try:
        config = commands.parse(TrainConfig, arguments, "python -m experiments.train")
        with hosts.joined(config, lambda: _gone(config)) if config.distributed else contextlib.nullcontext():
            return _run(config)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2


def _run(config: TrainConfig) -> int:
    try:
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
