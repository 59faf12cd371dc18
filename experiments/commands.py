"""The command line of the experiments: options from a dataclass, and compiled programs kept for the next run."""

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import tyro
from jax import monitoring

MOST_BYTES = 4 * 2**30
"""What the kept programs may take; those unused for longest are deleted then."""


def parse(config: type | Mapping[str, tuple[str, Any]], arguments: Sequence[str] | None, program: str) -> Any:
    """Reads a configuration from the command line, and keeps programs on disk unless ``--no-program-cache`` is among the options.

    Args:
      config: a dataclass whose fields become options, or named presets of one, each a pair of a description and its values.
      arguments: by default those of the process.
      program: the command, for the help text.

    Returns:
      The configuration.

    Raises:
      ValueError: if the configuration refuses its values after they were read.
      SystemExit: if the options cannot be read; tyro has said why.
    """
    presets = isinstance(config, Mapping)
    chosen = config
    if presets:
        values = {name: preset for name, (_, preset) in config.items()}
        chosen = tyro.extras.subcommand_type_from_defaults(values, {name: text for name, (text, _) in config.items()})
    flattened = Annotated[chosen, tyro.conf.arg(name="")]
    whole = dataclasses.make_dataclass(
        "Command", [("config", flattened), ("program_cache", bool, dataclasses.field(default=True))], frozen=True
    )
    whole.__doc__ = f"""{"" if presets else (config.__doc__ or "").splitlines()[0]}

    Attributes:
      config: presets, whose values the options change.
      program_cache: keep compiled programs in the folder of the environment variable JAX_COMPILATION_CACHE_DIR, by default
        ``~/.cache/regjax/programs``: the same command starts at once when it runs again.
    """
    options = (tyro.conf.CascadeSubcommandArgs,) if presets else ()
    command = tyro.cli(whole, args=arguments, prog=program, config=options)
    if command.program_cache:
        keep_programs()
    return command.config


def run(
    command: Callable[[Any], None], config: type | Mapping[str, tuple[str, Any]], arguments: Sequence[str] | None, program: str
) -> int:
    """Reads a configuration as `parse` does and does what is asked.

    Args:
      command: takes the configuration.
      config: as in `parse`.
      arguments: likewise.
      program: likewise.

    Returns:
      The exit status: 0, or 2 where the configuration is refused, which is said on stderr.
    """
    try:
        command(parse(config, arguments, program))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def keep_programs() -> None:
    """Keeps what takes a second or longer to compile; a folder or a size that the user has chosen stands."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(Path("~/.cache/regjax/programs").expanduser()))
        if "JAX_COMPILATION_CACHE_MAX_SIZE" not in os.environ:
            jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)


class Compiled(NamedTuple):
    """What was compiled for a while.

    Attributes:
      seconds: spent in XLA, or reading what it had compiled before; tracing is not counted.
      programs: how many.
      kept: how many of them were found on disk.
    """

    seconds: float
    programs: int
    kept: int


@contextmanager
def compiling() -> Iterator[list[Compiled]]:
    """Watches the compiler; the list that it yields has its one entry when the block is left.

    Example:
      >>> with compiling() as seen:
      ...     _ = jax.jit(lambda x: x * 2 + 1).lower(1.0).compile()
      >>> seen[0].programs
      1
    """
    durations: list[float] = []
    hits: list[str] = []

    def spent(event: str, seconds: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            durations.append(seconds)

    def happened(event: str, **_: Any) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            hits.append(event)

    monitoring.register_event_duration_secs_listener(spent)
    monitoring.register_event_listener(happened)
    seen: list[Compiled] = []
    try:
        yield seen
    finally:
        monitoring.unregister_event_duration_listener(spent)
        monitoring.unregister_event_listener(happened)
        seen.append(Compiled(sum(durations), len(durations), len(hits)))
