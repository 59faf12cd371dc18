"""What a run writes as it goes: ``metrics.jsonl``, the source of truth; TensorBoard events; a progress bar."""

import contextlib
import importlib
import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm


class MetricsFile:
    """JSON lines ``{"step": ..., "split": ..., **values}``: each on disk when `write` returns, and of steps and values alone,
    so that two runs of one configuration write the same bytes.

    Args:
      path: the file.
      size: how many bytes of it to keep; what follows is cut off.

    Raises:
      ValueError: if the file is shorter than that.
    """

    def __init__(self, path: Path, size: int = 0):
        there = path.stat().st_size if path.exists() else 0
        if there < size:
            raise ValueError(
                f"{path} has {there} bytes, but the checkpoint to resume from was saved with {size}: lines are lost. "
                "Put the file back, or start again in another folder with --out"
            )
        self._file = open(path, "ab")  # noqa: SIM115  (open as long as the run)
        self._file.truncate(size)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Adds a line.

        Args:
          step: optimiser steps done.
          split: ``train``, ``validation`` or ``test``.
          values: numbers by name; those that JSON has no numeral for become ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``.
        """
        line = json.dumps({"step": step, "split": split, **plain(values)}, allow_nan=False)
        self._file.write(line.encode() + b"\n")
        self._file.flush()

    def sync(self) -> int:
        """Makes every line survive a power cut too.

        Returns:
          The size of the file.
        """
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class Writer:
    """All that a run writes; on processes other than the first, nothing.

    Args:
      out: the folder of the run.
      start: the step that the run starts at.
      total: the steps of the run.
      size: how many bytes of ``metrics.jsonl`` to keep.
      active: whether this process writes.
      tensorboard: whether to write TensorBoard events, if tensorboardX is installed.
      progress: whether to show a progress bar, if stderr is a terminal.

    Raises:
      ValueError: as `MetricsFile`.
    """

    def __init__(self, out: Path, *, start: int, total: int, size: int, active: bool, tensorboard: bool, progress: bool):
        self._metrics = MetricsFile(out / "metrics.jsonl", size) if active else None
        self._board = _summary_writer(out / "tensorboard", start) if active and tensorboard else None
        quiet = not (active and progress and sys.stderr.isatty())
        self._bar = tqdm(total=total, initial=start, disable=quiet, unit="step", dynamic_ncols=True)
        self._shown: dict[str, str] = {}

    def advance(self) -> None:
        """One step more on the progress bar."""
        self._bar.update()

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Writes measured values to all places.

        Args:
          step: optimiser steps done.
          split: ``train``, ``validation`` or ``test``.
          values: numbers by name.
        """
        if self._metrics is not None:
            self._metrics.write(step, split, values)
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{split}/{name}", value, step)
        self._shown |= {f"{split}/{name}": f"{values[name]:.3g}" for name in ("loss", "accuracy") if name in values}
        self._bar.set_postfix(self._shown, refresh=False)

    def sync(self) -> int:
        """Makes every line survive a power cut.

        Returns:
          The size of ``metrics.jsonl``; 0 on a process that does not write.
        """
        if self._board is not None:
            self._board.flush()
        return 0 if self._metrics is None else self._metrics.sync()

    def close(self) -> None:
        """Closes everything."""
        self._bar.close()
        for part in (self._metrics, self._board):
            if part is not None:
                part.close()


def plain(value: Any) -> Any:
    """A value as strict JSON holds it.

    Args:
      value: nested mappings and sequences of numbers, strings and paths.

    Returns:
      The same of dicts, lists, numbers and strings, with numbers that are not finite as strings.
    """
    if isinstance(value, Mapping):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return str(value) if isinstance(value, os.PathLike) else value


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file whole or not at all, whatever happens meanwhile.

    Args:
      path: the file.
      content: what `plain` takes.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "w") as file:
        json.dump(plain(content), file, indent=1, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _summary_writer(folder: Path, start: int) -> Any:
    """A TensorBoard writer, or None without the package."""
    with contextlib.suppress(ImportError):
        # Events of later steps, of a run that was killed after its last checkpoint, are hidden.
        return importlib.import_module("tensorboardX").SummaryWriter(str(folder), purge_step=start + 1)
    return None
