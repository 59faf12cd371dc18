"""The folder of a run: whose it is, and its checkpoints, saved in the background and whole or not at all (Orbax)."""

import contextlib
import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

import regjax as rj
from experiments.writers import plain, write_json
from regjax.core import trees

STATE_VERSION = 1
"""Of what a checkpoint holds; raised whenever a newer one cannot be read like an older one."""

_NOTHING: Mapping[str, Any] = {}


class Restored(NamedTuple):
    """What a checkpoint gives back.

    Attributes:
      state: arrays, on the devices where the template has them.
      extra: what was saved beside them.
    """

    state: Any
    extra: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of a run. Every process calls every method.

    The state is stored as a flat dict, a name for each array: no class that makes up the state has to be there to read it.

    Args:
      folder: of the checkpoints.
      keep: how many to keep, the newest.
    """

    def __init__(self, folder: Path, keep: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True, enable_async_checkpointing=True)
        self._folder = folder
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def latest(self) -> int | None:
        """The step of the newest whole checkpoint.

        Returns:
          The step, or None if there is none.
        """
        return self._manager.latest_step()

    def save(self, step: int, state: Any, extra: Mapping[str, Any]) -> None:
        """Saves; returns once the state is copied, so that the caller may donate it, and writes in the background.

        Args:
          step: its step.
          state: a pytree of JAX arrays.
          extra: what JSON can hold.
        """
        arrays = _flat(state)
        about = {
            "version": STATE_VERSION,
            "regjax": rj.__version__,
            "leaves": {name: _form(leaf) for name, leaf in arrays.items()},
            "extra": plain(extra),
        }
        self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(arrays), about=ocp.args.JsonSave(about)))

    def restore(self, step: int, template: Any) -> Restored:
        """Reads a checkpoint.

        Args:
          step: its step.
          template: the state that is wanted, as `jax.ShapeDtypeStruct` with shardings, which need not be those of the saving.

        Returns:
          A `Restored`.

        Raises:
          ValueError: if it is of another version, of another state, or cannot be read; says what to do.
        """
        wanted = _flat(template)
        about = self._read(step, about=ocp.args.JsonRestore()).about
        _check(about, wanted, self._folder / str(step))
        arrays = self._read(step, state=ocp.args.StandardRestore(wanted)).state
        fill = lambda path, leaf: arrays[_name(path)] if leaf.size else _empty(leaf)
        return Restored(jax.tree_util.tree_map_with_path(fill, template), about["extra"])

    def _read(self, step: int, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except (ValueError, OSError, KeyError, TypeError) as e:
            first = (str(e).splitlines() or [""])[0]
            raise ValueError(
                f"{self._folder / str(step)} cannot be read ({type(e).__name__}: {first[:300]}): "
                "delete that folder to go on from the checkpoint before it, or from the start"
            ) from e

    def wait(self) -> None:
        """Returns once the last save is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and ends the threads."""
        self._manager.close()


def refuse_other(out: Path, config: Mapping[str, Any], ignore: Sequence[str], added: Mapping[str, Any] = _NOTHING) -> None:
    """Refuses a folder that is neither empty nor that of a configuration. A file whose name begins with a dot is no content.

    Args:
      out: the folder; nothing in it is touched.
      config: the configuration, nested as its dataclasses are.
      ignore: fields in which it may differ from the one that is there, by dotted names.
      added: what fields stand for that the one that is there may lack, by dotted names.

    Raises:
      ValueError: if the folder is of another configuration, naming the fields that differ, or holds something else.
    """
    path = out / "config.json"
    if not path.exists():
        if out.exists() and (not out.is_dir() or any(not entry.name.startswith(".") for entry in out.iterdir())):
            raise ValueError(f"{out} is neither empty nor the folder of a run: choose another folder with --out")
        return
    try:
        before = {**added, **_fields(json.loads(path.read_text()))}
        what = differences(before, plain(config), ignore, "there", "now")
    except (ValueError, AttributeError) as e:
        raise ValueError(f"{path} is not the configuration of a run ({e}): choose another folder with --out") from None
    if what:
        raise ValueError(f"{out} holds a run of another configuration ({what}): choose another folder with --out")


def differences(a: Mapping[str, Any], b: Mapping[str, Any], ignore: Sequence[str], of_a: str, of_b: str) -> str:
    """Says in which fields two configurations differ.

    Args:
      a: one, nested.
      b: the other.
      ignore: fields in which they may differ, by dotted names.
      of_a: what to call the first.
      of_b: what to call the second.

    Returns:
      A phrase; an empty string if they do not.
    """
    a, b = _fields(a), _fields(b)
    changed = [name for name in sorted({*a, *b}) if a.get(name) != b.get(name) and name not in ignore]
    show = lambda fields, name: repr(fields[name]) if name in fields else "nothing"
    return "; ".join(f"{name}: {show(a, name)} {of_a}, {show(b, name)} {of_b}" for name in changed)


@contextlib.contextmanager
def claimed(out: Path, config: Mapping[str, Any], ignore: Sequence[str], added: Mapping[str, Any] = _NOTHING) -> Iterator[None]:
    """Makes a folder that of one configuration, and keeps other processes out of it meanwhile.

    Args:
      out: the folder.
      config: the configuration.
      ignore: as in `refuse_other`.
      added: likewise.

    Yields:
      Nothing.

    Raises:
      ValueError: as `refuse_other`; or if another process is training there.
    """
    refuse_other(out, config, ignore, added)
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lets go when a process dies
        except BlockingIOError:
            raise ValueError(
                f"{out}: another process is at work there; wait for it, or choose another folder with --out"
            ) from None
        refuse_other(out, config, ignore, added)  # another process may have been quicker
        if not (out / "config.json").exists():
            write_json(out / "config.json", config)
        yield


def _check(about: Mapping[str, Any], wanted: Mapping[str, Any], place: Path) -> None:
    """Refuses a checkpoint of another version or state."""
    remedy = "finish the run with that version, or start again in another folder with --out"
    made = f"regjax {about.get('regjax', 'of unknown version')}"
    if about.get("version") != STATE_VERSION:
        raise ValueError(
            f"{place} has state version {about.get('version')}, of {made}; this code reads version {STATE_VERSION}: {remedy}"
        )
    here, there = {name: _form(leaf) for name, leaf in wanted.items()}, about["leaves"]
    names = [name for name in sorted({*here, *there}) if here.get(name) != there.get(name)]
    if names:
        what = "; ".join(f"{name}: {there.get(name, 'nothing')} there, {here.get(name, 'nothing')} wanted" for name in names[:5])
        more = f"; and {len(names) - 5} more" if len(names) > 5 else ""
        raise ValueError(f"{place} holds another state, of {made} ({what}{more}): {remedy}")


def _empty(leaf: Any) -> jax.Array:
    """An array without elements: Orbax does not store those."""
    return jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)


def _flat(tree: Any) -> dict[str, Any]:
    """The arrays of a tree by name, but for empty ones."""
    leaves = [(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree) if leaf.size]
    flat = {_name(path): leaf for path, leaf in leaves}
    if len(flat) != len(leaves):
        raise ValueError("two arrays of the state have one name")
    return flat


def _name(path: Any) -> str:
    return ".".join(trees.path_names(path))


def _form(leaf: Any) -> str:
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _fields(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested configuration as one level, with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _fields(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
