"""One mesh with one axis, ``data``: batches are split over it, the state is copied to every device or spread over them."""

from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

from regjax.core.sharding import replicate

AXIS = "data"


def data_mesh(devices: int | None = None, axis_type: Literal["auto", "explicit"] = "auto") -> Mesh:
    """A mesh over some devices.

    Args:
      devices: how many; all by default. With several processes only all will do.
      axis_type: ``"auto"``: the compiler places what a step computes; ``"explicit"``: it lies as the types of its arrays say.

    Returns:
      A mesh with the axis ``data``.

    Raises:
      ValueError: if there are not so many devices, or several processes do not use all of theirs.
    """
    found = jax.devices()
    count = len(found) if devices is None else devices
    if not 1 <= count <= len(found):
        raise ValueError(f"data_mesh: devices must be between 1 and the {len(found)} that there are, got {devices}")
    if jax.process_count() > 1 and count != len(found):
        raise ValueError(f"data_mesh: devices must be all {len(found)} with {jax.process_count()} processes, got {devices}")
    kind = AxisType.Auto if axis_type == "auto" else AxisType.Explicit
    return jax.make_mesh((count,), (AXIS,), axis_types=(kind,), devices=found[:count])


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole.

    Args:
      mesh: the mesh.

    Returns:
      A sharding for arrays of any rank.
    """
    return NamedSharding(mesh, jax.P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: by its leading axis.

    Args:
      mesh: the mesh.

    Returns:
      A sharding for arrays of rank 1 and more.
    """
    return NamedSharding(mesh, jax.P(AXIS))


def largest_axis_sharding(mesh: Mesh, tree: Any) -> Any:
    """Spreads every array over the devices: along its largest axis that they divide, the first of equal ones.

    Arrays without such an axis are replicated. The rule looks at nothing but the shape, so that a parameter and its momentum
    lie alike.

    Args:
      mesh: the mesh.
      tree: a pytree of arrays or of their shapes.

    Returns:
      A pytree of shardings.
    """

    def sharding(leaf: Any) -> NamedSharding:
        axes = [axis for axis, size in enumerate(leaf.shape) if size and size % mesh.size == 0]
        if not axes:
            return replicated(mesh)
        best = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, jax.P(*(AXIS if axis == best else None for axis in range(best + 1))))

    return jax.tree.map(sharding, tree)


def gathered(tree: Any) -> Any:
    """What a model applies: parameters that are spread over the devices of an Explicit mesh, whole on each.

    There a layer refuses a kernel that is sharded over the axis of the batch: its result could not be sharded twice over one
    axis. The gradient passes back through the gathering, so that it and the optimiser's state stay spread. On an Auto mesh the
    compiler gathers by itself, and nothing is done.

    Args:
      tree: a pytree of arrays, traced or not.

    Returns:
      The tree, replicated where its mesh is Explicit.
    """
    return jax.tree.map(replicate, tree)


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """Moves a batch onto the mesh.

    Args:
      mesh: the mesh.
      batch: a pytree of NumPy arrays: the part of this process, with a leading axis that its devices divide.

    Returns:
      The global batch as JAX arrays, split over the devices of all processes.
    """
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda part: jax.make_array_from_process_local_data(sharding, np.asarray(part)), batch)
