"""What crosses between devices: the collectives of a training step on eight of them, technique by technique.

``python -m experiments.bench.devices`` compiles a step for each technique and each way to lay out its state, reads the collective
operations from the programs, prints them as tables and keeps them as JSON. The devices are virtual ones of a CPU, whose compiler
places collectives as others do, but has an all-reduce in place of a reduce-scatter. Nothing is timed.
"""

import dataclasses
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx

import regjax as rj
from experiments import meshes
from experiments.bench import machine
from experiments.models import ModelConfig, make_model, split
from experiments.writers import write_json

DEVICES, BATCH, NUM_CLASSES, NUM_EXAMPLES = 8, 32, 4, 64
SHAPES: Mapping[str, ModelConfig] = {
    "mlp": ModelConfig("mlp", width=32, depth=2),
    "resnet": ModelConfig("resnet", width=8, depth=1),
    "vit": ModelConfig("vit", width=16, depth=2, patch=4, heads=2),
}
DEFAULT = ("resnet", "vit")
PLAIN = "plain step"
AXIS = meshes.AXIS

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_INSTRUCTION = re.compile(rf"= (\S+|\([^()]*\)) ({'|'.join(KINDS)})(?:-start)?\(")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")


class Collective(NamedTuple):
    """One collective operation of a compiled program.

    Attributes:
      kind: one of `KINDS`.
      arrays: dtype and shape of what a device has afterwards; several for arrays that travel together.
      bytes: of these.
    """

    kind: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    bytes: int

    @property
    def scalars(self) -> bool:
        """Whether only single numbers travel."""
        return not any(shape for _, shape in self.arrays)


def collectives(program: jax.stages.Compiled) -> list[Collective]:
    """The collective operations of a compiled program, in its order; those of a loop's body count once.

    Args:
      program: what ``jax.jit(fn).lower(...).compile()`` gives.

    Returns:
      A list, empty if no data move between devices.
    """
    found = []
    for line in (program.as_text() or "").splitlines():
        if match := _INSTRUCTION.search(line):
            result, kind = match.groups()
            shape = lambda text: tuple(int(n) for n in text.split(",") if n)
            arrays = tuple((dtype, shape(sizes)) for dtype, sizes in _ARRAY.findall(result))
            found.append(Collective(kind, arrays, sum(_width(dtype) * math.prod(sizes) for dtype, sizes in arrays)))
    return found


def _width(dtype: str) -> int:
    """The bytes of an element of an XLA type such as ``f32``, ``bf16`` or ``pred``."""
    bits = re.search(r"\d+", dtype)
    return math.ceil(int(bits.group()) / 8) if bits else 1


class Layout(NamedTuple):
    """Where the state of a step lies.

    Attributes:
      axis_type: that of the mesh; None inside `jax.shard_map`.
      spread: whether parameters and optimiser state are spread over the devices, or copied to each.
    """

    axis_type: Literal["auto", "explicit"] | None
    spread: bool = False


LAYOUTS: Mapping[str, Layout] = {
    "state on every device, Auto mesh": Layout("auto"),
    "state on every device, Explicit mesh": Layout("explicit"),
    "state spread over the devices, Auto mesh": Layout("auto", spread=True),
    "state spread over the devices, Explicit mesh": Layout("explicit", spread=True),
    "state on every device, shard_map": Layout(None),
}


def techniques(dim: int, axis_name: str | None) -> dict[str, Mapping[str, Any]]:
    """The fields of a recipe with one technique of each stage; inside `jax.shard_map` their sums are named to span the axis."""
    sgd = {"optimizer": optax.sgd(0.1, momentum=0.9)}
    sam, prox = rj.objectives.sam, partial(rj.gradients.proximal_step, rj.weights.prox_group_lasso, 1e-3, learning_rate=0.1)
    found: dict[str, Mapping[str, Any]] = {
        PLAIN: {},
        "inputs: cutmix": {"inputs": (partial(rj.inputs.cutmix, alpha=1.0),)},
        "layers: dropout, drop_path": {"layers": rj.Hooks(dropout=0.1, drop_path=optax.linear_schedule(0.0, 0.2, 10))},
        "features: neural_collapse": {"features": ((1.0, rj.features.neural_collapse(NUM_CLASSES, dim, axis_name=axis_name)),)},
        "losses: elr": {"loss": rj.losses.elr(NUM_EXAMPLES, NUM_CLASSES)},
        "penalties: l2": {"penalties": ((optax.linear_schedule(0.0, 1e-2, 10), rj.weights.l2),)},
        "objectives: sam": {"objectives": (partial(sam, rho=0.05, axis_name=axis_name),)},
        "gradients: orthogonal_gradient": {"gradients": (rj.gradients.orthogonal_gradient(),)},
        "weights: proximal_step of prox_group_lasso": {"weights": (prox(),)},
    }
    if axis_name is None:
        found["inputs: cutmix, within_shard"] = {"inputs": (partial(rj.inputs.cutmix, alpha=1.0, within_shard=DEVICES),)}
    else:
        found["objectives: sam, each device its own"] = {"objectives": (partial(sam, rho=0.05),)}
    return {name: {**sgd, **fields} for name, fields in found.items()}


def place(state: rj.TrainState, mesh: jax.sharding.Mesh, spread: bool) -> rj.TrainState:
    """The shardings of a state: parameters and optimiser state spread over the mesh or not, the rest on every device."""
    shardings = jax.tree.map(lambda _: meshes.replicated(mesh), state)
    if not spread:
        return shardings
    own = {name: meshes.largest_axis_sharding(mesh, getattr(state, name)) for name in ("params", "learned", "opt_state")}
    return shardings._replace(**own)


def compiled(step: Callable[..., Any], state: rj.TrainState, batch: Any, layout: Layout) -> jax.stages.Compiled:
    """A step ``(state, batch) -> (state, metrics)`` compiled for a layout, from the shapes of its arguments alone."""
    mesh = meshes.data_mesh(DEVICES, layout.axis_type or "auto")
    lay = lambda tree, shardings: jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)
    where = place(state, mesh, layout.spread)
    whole, rows = meshes.replicated(mesh), jax.tree.map(lambda _: meshes.batch_sharding(mesh), batch)
    if layout.axis_type is None:
        step = jax.shard_map(step, mesh=mesh, in_specs=(jax.P(), jax.P(AXIS)), out_specs=jax.P())
    with jax.set_mesh(mesh):
        return jax.jit(step, donate_argnums=0, out_shardings=(where, whole)).lower(lay(state, where), lay(batch, rows)).compile()


def panels(config: ModelConfig) -> Iterator[dict[str, Any]]:
    """For each layout, what a step moves with every technique, and the plain one without; the result is what JSON holds."""
    shape = (8, 8, 3)
    apply_fn, params, model_state = split(make_model(config, shape, NUM_CLASSES, rngs=nnx.Rngs(0)))
    ids = jnp.arange(BATCH)
    batch = {"image": jnp.zeros((BATCH, *shape)), "label": ids % NUM_CLASSES, "index": ids}
    for title, layout in LAYOUTS.items():
        axis_name = AXIS if layout.axis_type is None else None
        subjects: dict[str, Any] = {}
        for name, fields in techniques(params["head"]["kernel"].shape[0], axis_name).items():
            train = rj.make_train_step(rj.Recipe(**fields), apply_fn, num_classes=NUM_CLASSES, axis_name=axis_name)
            state = jax.eval_shape(train.init, jax.random.key(0), params, model_state)
            subjects[name] = _summed(collectives(compiled(train.step, state, batch, layout)))
        size = sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(params))
        yield {"title": f"{config.name} of {size} parameters, {title}", "subjects": subjects}


def _summed(found: Sequence[Collective]) -> dict[str, dict[str, int]]:
    """Operations, arrays and bytes of each kind."""
    of = {kind: [one for one in found if one.kind == kind] for kind in KINDS}
    return {
        kind: {"operations": len(some), "arrays": sum(len(c.arrays) for c in some), "bytes": sum(c.bytes for c in some)}
        for kind, some in of.items()
        if some
    }


def markdown(results: Mapping[str, Any]) -> str:
    """The tables of a run: for each kind of collective its operations, the arrays in them, and kB that a device receives."""
    about = results["machine"]
    lines = [f"### Devices\n\n{DEVICES} devices, a batch of {BATCH}; compiled by JAX {about['jax']} for {about['platform']}."]
    for panel in results["panels"]:
        subjects = panel["subjects"]
        kinds = [kind for kind in KINDS if any(kind in counted for counted in subjects.values())]
        lines += ["", f"**{panel['title']}**", "", "| " + " | ".join(("", *kinds)) + " |", "| --- |" + " ---: |" * len(kinds)]
        lines += [
            "| " + " | ".join((name, *(_cell(counted.get(kind)) for kind in kinds))) + " |" for name, counted in subjects.items()
        ]
    return "\n".join(lines)


def _cell(counted: Mapping[str, int] | None) -> str:
    if counted is None:
        return "0"
    return f"{counted['operations']} of {counted['arrays']} arrays, {counted['bytes'] / 1e3:.3g} kB"


@dataclasses.dataclass(frozen=True)
class DevicesConfig:
    """What to count.

    Attributes:
      shapes: the networks: ``mlp``, ``resnet``, ``vit``.
      out: the folder for the results.
      json: prints the results as JSON in place of the tables.
    """

    shapes: tuple[str, ...] = DEFAULT
    out: Path = Path("runs/bench")
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False

    def __post_init__(self) -> None:
        """Refuses networks that there are not."""
        if unknown := set(self.shapes) - set(SHAPES):
            expected = f"among {', '.join(SHAPES)}"
            raise ValueError(f"DevicesConfig: shapes must be {expected}, got {', '.join(sorted(unknown))}")


def count(config: DevicesConfig) -> dict[str, Any]:
    """Counts, and keeps the results.

    Args:
      config: what to count.

    Returns:
      What the file holds.

    Raises:
      ValueError: if there are fewer than eight devices.
    """
    found = []
    for shape in config.shapes:
        for panel in panels(SHAPES[shape]):
            print(f"{panel['title']} ...", file=sys.stderr)
            found.append(panel)
    results = {"schema": 1, "suite": "devices", "machine": machine.describe(1), "panels": found}
    config.out.mkdir(parents=True, exist_ok=True)
    write_json(config.out / f"devices-{results['machine']['platform']}.json", results)
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    config = tyro.cli(DevicesConfig, args=arguments, prog="python -m experiments.bench.devices")
    try:
        results = count(config)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(results) if config.json else markdown(results))
    return 0


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", DEVICES)
    sys.exit(main())
