"""Several processes as one run: they find each other, decide as one, and end when one of them is gone."""

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.checkpoints import differences
from experiments.data import DatasetUnavailable
from experiments.guard import NonFiniteError
from experiments.train_config import OWN, TrainConfig
from experiments.writers import plain

GONE = 4
"""The exit status of a process that cannot go on because another one is gone."""

T = TypeVar("T")


@contextlib.contextmanager
def joined(config: TrainConfig, say: Callable[[], str]) -> Iterator[None]:
    """Makes this process one of several, before JAX starts its backend, until all have come to the end.

    Args:
      config: of which ``distributed`` and the fields below it count; without ``coordinator`` JAX asks the cluster.
      say: makes the line to end with when another process is gone.

    Yields:
      Nothing.

    Raises:
      ValueError: if there is no cluster to ask, or the port of the coordinator is taken.
    """
    where = config.coordinator or "the coordinator of the cluster"
    if config.process_id == 0 and _listens(int(where.rpartition(":")[2])):
        raise ValueError(f"distributed: another program listens at {where}: choose another port with --coordinator")
    try:
        with _aborting(lambda: f"distributed: not all processes met at {where} within {config.timeout} s"):
            jax.distributed.initialize(
                config.coordinator,
                config.num_processes,
                config.process_id,
                local_device_ids=config.local_devices or None,
                initialization_timeout=config.timeout,
                heartbeat_timeout_seconds=config.timeout,
                shutdown_timeout_seconds=config.timeout,
            )
    except (ValueError, TypeError, KeyError) as error:
        how = "name them with --coordinator host:port --num-processes N --process-id I"
        raise ValueError(f"distributed: JAX does not find the other processes ({_first_line(error)}): {how}") from error
    with _aborting(say):
        try:
            yield
            jax.distributed.shutdown()
        except jax.errors.JaxRuntimeError as error:
            _end(f"{say()} ({_first_line(error)})")


def exchange(text: str) -> list[str]:
    """Tells the other processes something.

    Args:
      text: of this process.

    Returns:
      The texts of all, by process.
    """
    if jax.process_count() == 1:
        return [text]
    mine = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(mine.size))
    padded = np.zeros(max(sizes.max(), 1), np.uint8)
    padded[: mine.size] = mine
    return [bytes(row[:size]).decode() for row, size in zip(multihost_utils.process_allgather(padded), sizes, strict=True)]


def together(function: Callable[[], T]) -> T:
    """Calls a function on every process; what one refuses is refused by all, which would wait for it otherwise.

    Args:
      function: must not wait for the other processes itself.

    Returns:
      What it returned here.

    Raises:
      ValueError: if it raised one on some process, or found no data.
    """
    if jax.process_count() == 1:
        return function()
    result, refusal = None, ""
    try:
        result = function()
    except (ValueError, OSError, DatasetUnavailable) as error:
        refusal = str(error) or type(error).__name__
    refusals = exchange(refusal)
    for process, said in enumerate(refusals):
        if said:
            raise ValueError(said if process == 0 or said == refusal else f"process {process}: {said}")
    return result


def first_says(function: Callable[[], str]) -> str:
    """Lets the first process decide.

    Args:
      function: called there alone.

    Returns:
      What it returned there, on every process.

    Raises:
      ValueError: on every process, if it raised one.
    """
    first = jax.process_index() == 0
    return exchange(together(function if first else str))[0]


def check_same(config: dict[str, Any]) -> None:
    """Refuses processes that were not started by one command.

    Args:
      config: the configuration, nested.

    Raises:
      ValueError: on every process, naming what differs.
    """
    configs = [json.loads(text) for text in exchange(json.dumps(plain(config)))]
    for process, other in enumerate(configs):
        if what := differences(configs[0], other, OWN, "on process 0", f"on process {process}"):
            raise ValueError(f"distributed: every process needs the same options ({what})")


@contextlib.contextmanager
def ending_together(say: Callable[[], str]) -> Iterator[None]:
    """Ends this process at once when it cannot go on with the others: cleaning up would wait for them.

    JAX ends the process itself when another one stops sending heartbeats, and the collectives of CPUs raise when a connection
    breaks: both come out as one line and the status `GONE`. Any other error is shown as ever; its process does not outlive it.

    Args:
      say: makes the line; called if it is needed.

    Yields:
      Nothing.
    """
    if jax.process_count() == 1:
        yield
        return
    try:
        with _aborting(say):
            yield
    except NonFiniteError:  # all processes see it at the same step
        raise
    except jax.errors.JaxRuntimeError as error:
        _end(f"{say()} ({_first_line(error)})")
    except BaseException as error:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1)


@contextlib.contextmanager
def _aborting(say: Callable[[], str]) -> Iterator[None]:
    """Ends with a line and a status where JAX calls ``abort()``: a handler of Python's own would come too late."""
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: _end(say()))
    before = libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        libc.signal(signal.SIGABRT, before)


def _listens(port: int) -> bool:
    """Whether a port of this machine is taken, at which the coordinator would crash."""
    with contextlib.suppress(OSError), socket.create_connection(("localhost", port), timeout=1):
        return True
    return False


_ending = threading.Lock()


def _end(line: str) -> NoReturn:
    if not _ending.acquire(blocking=False):  # a thread of JAX and this one may find out at the same moment
        time.sleep(60)
    os.write(2, f"{line}\n".encode())
    os._exit(GONE)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
