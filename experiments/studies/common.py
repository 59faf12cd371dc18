"""What studies share: statistics paired over seeds, tables, and a folder of results that is never overwritten by accident."""

import dataclasses
import json
import os
import platform
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

import regjax as rj
from experiments import commands
from experiments.engine import SeedData, Task

SCHEMA = 1
"""The version of a study's ``results.json``."""


class Statistic(NamedTuple):
    """A measure over seeds.

    Attributes:
      mean: its mean.
      error: the standard error of the mean; 0 for one seed.
      gain: the mean difference to the baseline, paired over seeds; None for the baseline itself.
      gain_error: the standard error of that difference.
      p_value: of the paired two-sided t-test; None where the differences do not vary.
      above: in how many seeds the measure exceeds the baseline's.
    """

    mean: float
    error: float
    gain: float | None = None
    gain_error: float | None = None
    p_value: float | None = None
    above: int | None = None


def statistic(values: Sequence[float], baseline: Sequence[float] | None = None) -> Statistic:
    """The statistics of a measure.

    Args:
      values: one of each seed.
      baseline: the baseline's, of the same seeds in the same order.

    Returns:
      A `Statistic`.

    Raises:
      ValueError: if the two do not pair.
    """
    values = np.asarray(values, np.float64)
    spread = lambda x: float(stats.sem(x)) if len(x) > 1 else 0.0
    if baseline is None:
        return Statistic(float(values.mean()), spread(values))
    if np.shape(baseline) != values.shape:
        raise ValueError(f"statistic: baseline must have the {len(values)} seeds of values, got {np.shape(baseline)}")
    differences = values - np.asarray(baseline, np.float64)
    varies = len(differences) > 1 and float(np.ptp(differences)) > 0
    p_value = float(stats.ttest_1samp(differences, 0.0).pvalue) if varies else None
    gain = float(differences.mean()), spread(differences), p_value, int((differences > 0).sum())
    return Statistic(float(values.mean()), spread(values), *gain)


class Table(NamedTuple):
    """Texts under a header; the first column is a name."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self) -> str:
        """For a terminal, columns aligned."""
        lines = [tuple(self.header), *map(tuple, self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.header))]
        fit = lambda text, i: text.rjust(widths[i]) if i else text.ljust(widths[i])
        shown = ["  ".join(fit(text, i) for i, text in enumerate(line)) for line in lines]
        return "\n".join([shown[0], "-" * len(shown[0]), *shown[1:]])

    def markdown(self) -> str:
        """For the README."""
        rule = "| --- " + "| ---: " * (len(self.header) - 1) + "|"
        line = lambda texts: "| " + " | ".join(texts) + " |"
        return "\n".join([line(self.header), rule, *map(line, self.rows)])


def shown(value: Statistic, scale: float = 1.0, digits: int = 1, *, gain: bool = False) -> str:
    """A statistic as mean ± standard error, or its gain over the baseline; empty where there is none."""
    mean, error = (value.gain, value.gain_error) if gain else (value.mean, value.error)
    return "" if mean is None else f"{scale * mean:{'+' if gain else ''}.{digits}f} ± {scale * error:.{digits}f}"


def verdict(value: Statistic, sign: int) -> str:
    """Whether a claimed difference shows: by the paired t-test at 5 %.

    Args:
      value: the measure against that which the claim compares it with.
      sign: 1 where the claim says higher, -1 for lower.

    Returns:
      ``held``, ``not shown``, or ``the opposite``.
    """
    if value.p_value is None or value.p_value >= 0.05:
        return "not shown"
    return "held" if value.gain is not None and sign * value.gain > 0 else "the opposite"


class Tasks:
    """The task of every noise, and several of them as one, their seeds in a row: what they share is compiled once.

    Args:
      by_noise: tasks of the same sizes.
    """

    def __init__(self, by_noise: Mapping[str, Task]):
        self.by_noise = by_noise
        self._made: dict[Any, Task] = {}

    def together(self, names: tuple[str, ...], kind: type[Task]) -> Task:
        """The tasks of these noises as one of a kind."""
        if (names, kind) not in self._made:
            tasks = [self.by_noise[name] for name in names]
            data = SeedData(*(np.concatenate(leaves) for leaves in zip(*(task.data for task in tasks), strict=True)))
            seeds = tuple(seed for task in tasks for seed in task.seeds)
            first = tasks[0]
            self._made[names, kind] = kind(data, seeds, first.num_classes, first.batch_size, first.config)
        return self._made[names, kind]


def check(owner: str, field: str, names: Sequence[str], known: Iterable[str]) -> None:
    """Refuses unknown names and shows the known ones."""
    known = tuple(known)
    for name in names:
        if name not in known:
            raise ValueError(f"{owner}: {field} must be of {', '.join(map(repr, known))}, got {name!r}")


def claim(folder: Path, force: bool) -> None:
    """Refuses, before anything runs, a folder that holds results (unless they are to be replaced) or something else."""
    if (folder / "results.json").exists():
        if not force:
            raise ValueError(f"{folder} holds results: choose another folder with --out, or replace them with --force")
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is neither empty nor a study's: choose another folder with --out")


def publish(
    folder: Path,
    config: Any,
    results: Mapping[str, Any],
    tables: Mapping[str, Table],
    figures: Mapping[str, plt.Figure],
    *,
    study: str,
    text: str,
) -> str:
    """Writes a study's folder: ``README.md``, ``results.json``, tables as ``.txt``, figures as ``.png`` and ``.svg``.

    Args:
      folder: where; `claim` it first.
      config: the study's configuration, a dataclass.
      results: what JSON holds; NumPy arrays and numbers too.
      tables: by caption; the name of the file is its first word.
      figures: by name; they are closed.
      study: the name of its module.
      text: Markdown above the tables: a line that says what is asked, then the setting.

    Returns:
      The tables as one text, and where everything lies.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = [f"# {study.replace('_', ' ').capitalize()}", text]
    for name, figure in figures.items():
        save(figure, folder / name)
    for caption, table in tables.items():
        _write(folder / f"{_file_name(caption)}.txt", table.text() + "\n")
        parts.append(f"{caption}:\n\n{table.markdown()}")
    pictures = [f"![{name.replace('_', ' ').capitalize()}]({name}.png)" for name in figures]
    _write(folder / "README.md", "\n\n".join([*parts, *pictures, f"`python -m experiments.studies.{study}` makes this."]) + "\n")
    machine = {"device": jax.devices()[0].device_kind, "platform": platform.platform(), "jax": jax.__version__}
    facts = {"schema": SCHEMA, "study": study, "regjax": rj.__version__, "machine": machine, "config": dataclasses.asdict(config)}
    # Last and whole: a folder with this file is a finished study.
    _write(folder / "results.json", json.dumps({**facts, **results}, default=_plain) + "\n")
    return "\n\n".join([*(f"{name}\n{table.text()}" for name, table in tables.items()), f"results: {folder}"])


def save(figure: plt.Figure, path: Path, dpi: int = 110) -> None:
    """Writes a figure as ``.png`` and ``.svg`` without date or random names, and closes it."""
    with matplotlib.rc_context({"svg.hashsalt": path.name, "svg.fonttype": "none"}):
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
        figure.savefig(path.with_suffix(".png"), dpi=dpi)
    plt.close(figure)


def command_line(study: Callable[[Any], str], config_class: type, program: str, arguments: Sequence[str] | None = None) -> int:
    """Runs a study from the command line; returns the exit status.

    Args:
      study: takes the configuration and returns what to print.
      config_class: a dataclass whose fields become options.
      program: ``python -m experiments.studies.<name>``.
      arguments: of the command line; by default the process's.

    Returns:
      0, or 2 where the configuration is refused.
    """
    return commands.run(lambda config: print(study(config)), config_class, arguments, program)


def rounded(values: Any, digits: int = 5) -> list[Any]:
    """An array as nested lists of short numbers."""
    return np.round(np.asarray(values, np.float64), digits).tolist()


def _file_name(caption: str) -> str:
    return re.split(r"\W", caption, maxsplit=1)[0].lower()


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} does not go into JSON")


def _write(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
