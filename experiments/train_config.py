"""What a run is: every option of the trainer, checked before anything is written."""

import dataclasses
import difflib
import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.data import DataConfig
from experiments.models import ModelConfig
from experiments.recipes import RECIPES, check_names

OWN = ("data.data_dir", "progress", "tensorboard", "process_id", "local_devices")
"""What each of several processes may have otherwise than the others."""

# Where the run lies, how it is watched and when it is saved: none of them changes what is computed (but for the rounding of
# sums over another number of devices), so a run may go on with others.
FREE = (
    *("out", "checkpoint_every", "keep", "stop_at_step"),
    *("devices", "shard_parameters", "distributed", "coordinator", "num_processes", "timeout"),
    *OWN,
)

ADDED = {"microbatches": 1}
"""Options that runs of earlier versions did not have, and what those did: they go on as they were."""


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
      bfloat16: compute in bfloat16; parameters, the optimiser's state and all sums stay float32.
      microbatches: into how many parts a batch goes through the network before its one update: less memory, the same step for
        losses of each example alone; `regjax.make_train_step` says what differs for others.
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
      distributed: one process of several, each started by the same command; JAX asks the cluster for them (Slurm, Open MPI, TPU
        and Kubernetes) unless the next three name them.
      coordinator: ``host:port`` of process 0, where it has a free port.
      num_processes: how many there are.
      process_id: which of them this is, from 0.
      local_devices: the GPUs of its machine that this process uses, by number; all by default.
      timeout: seconds until a process that does not come, or is silent, counts as gone; then the others end too.
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
    microbatches: int = 1
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
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    local_devices: tuple[int, ...] = ()
    timeout: int = 100

    def __post_init__(self) -> None:
        """Refuses what cannot run, before anything is written."""
        check_names([self.recipe])
        _check_hyperparameters(self.recipe, self.hyperparameters)
        at_least = {"epochs": 1, "log_every": 1, "checkpoint_every": 1, "keep": 1, "seed": 0, "timeout": 1, "microbatches": 1}
        optional = {"steps": 1, "eval_every": 1, "devices": 1, "stop_at_step": 0, "num_processes": 1, "process_id": 0}
        for field, least in {**at_least, **optional}.items():
            value = getattr(self, field)
            if value is None and field in optional:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                refuse(field, f"an integer, at least {least}", value)
        positive = lambda value: isinstance(value, (int, float)) and 0 < value < math.inf
        if not positive(self.learning_rate):
            refuse("learning_rate", "a positive number", self.learning_rate)
        if self.clip_norm is not None and not positive(self.clip_norm):
            refuse("clip_norm", "a positive number", self.clip_norm)
        if self.ema_decay is not None and not (positive(self.ema_decay) and self.ema_decay < 1):
            refuse("ema_decay", "a number between 0 and 1", self.ema_decay)
        if self.devices is not None and self.data.batch_size % self.devices:
            refuse("data.batch_size", f"a multiple of devices = {self.devices}", self.data.batch_size)
        if self.data.batch_size % self.microbatches:
            refuse("microbatches", f"a divisor of data.batch_size = {self.data.batch_size}", self.microbatches)
        if self.seed >= 2**32:
            refuse("seed", "below 2**32", self.seed)
        self._check_processes()

    def _check_processes(self) -> None:
        named = {name: getattr(self, name) for name in ("coordinator", "num_processes", "process_id")}
        missing = [name for name, value in named.items() if value is None]
        if 0 < len(missing) < len(named):
            refuse(missing[0], f"given with {' and '.join(name for name in named if name not in missing)}, or all left out", None)
        for name, value in {**named, "local_devices": self.local_devices or None}.items():
            if value is not None and not self.distributed:
                refuse(name, "left out without --distributed", value)
        if self.coordinator is not None:
            host, _, port = self.coordinator.rpartition(":")
            if not (host and port.isdecimal() and 0 < int(port) < 2**16):
                refuse("coordinator", "host:port", self.coordinator)
            if self.process_id >= self.num_processes:
                refuse("process_id", f"below num_processes = {self.num_processes}", self.process_id)
            if self.data.batch_size % self.num_processes:
                refuse("data.batch_size", f"a multiple of num_processes = {self.num_processes}", self.data.batch_size)
        if len(set(self.local_devices)) < len(self.local_devices) or any(device < 0 for device in self.local_devices):
            refuse("local_devices", "different numbers from 0 on", self.local_devices)


def typed(recipe: str, given: Mapping[str, float]) -> dict[str, Any]:
    """The hyperparameters of a recipe as it takes them.

    Args:
      recipe: its name.
      given: numbers by name.

    Returns:
      The same, whole numbers as integers where the default is one.
    """
    defaults = {name: p.default for name, p in inspect.signature(RECIPES[recipe]).parameters.items()}
    whole = lambda name, value: isinstance(defaults[name], int) and float(value).is_integer()
    return {name: int(value) if whole(name, value) else value for name, value in given.items()}


def refuse(field: str, expected: str, value: Any) -> None:
    """Refuses the value of a field.

    Args:
      field: its name, dotted.
      expected: what it must be.
      value: what came.

    Raises:
      ValueError: always.
    """
    raise ValueError(f"TrainConfig: {field} must be {expected}, got {value!r}")


def _check_hyperparameters(recipe: str, given: Mapping[str, float]) -> None:
    known = list(inspect.signature(RECIPES[recipe]).parameters)[1:]
    for name, value in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known) or 'none'}"
            raise ValueError(f"TrainConfig: hyperparameters: recipe {recipe!r} has no {name!r}; {hint}")
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            refuse(f"hyperparameters: {name}", "a finite number", value)
