"""Operations on a batch in which each image has its own: what RandAugment and AugMix draw is a plan, and this carries it out."""

import functools
import operator
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from regjax.core import sharding
from regjax.core.types import Array
from regjax.inputs.augmentation.image_ops import GEOMETRIC, SLIDING, Frame, Plan, affine_coefficients, operate


def make_plan(names: Sequence[str], operation: Array, args: Array, centre: Array, height: int, width: int) -> Plan:
    """The plan of drawn operations ``[...]`` with the arguments ``[len(names), ...]`` that each of the names would have."""
    arg = jnp.take_along_axis(args, jnp.maximum(operation, 0)[None], axis=0)[0]
    affine = affine_coefficients("identity", arg, height, width)
    for place, name in enumerate(names):
        if name in GEOMETRIC:
            here = (operation == place)[..., None]
            affine = jnp.where(here, affine_coefficients(name, arg, height, width), affine)
    return Plan(operation, arg, affine, centre)


def apply_plan(images: Array, plan: Plan, names: Sequence[str], frame: Frame, implementation: str = "auto") -> Array:
    """Applies to image b the operations ``plan[n, b]`` of the list ``names`` in the order of n.

    ``"vectorised"`` computes each kind of operation for all images and selects: no branches, for accelerators, meshes and
    vmap. ``"per_image"`` loops over the images and computes only what each needs: on one CPU many times faster. Where an
    image has no operation no bit of it changes.
    """
    # With several devices a loop over a sharded batch would gather it, and an Explicit mesh refuses it.
    if implementation == "auto" and jax.device_count() == 1 and sharding.explicit_sharding(images) is None:
        return jax.lax.platform_dependent(
            images,
            plan,
            cpu=lambda images, plan: apply_plan(images, plan, names, frame, "per_image"),
            default=lambda images, plan: apply_plan(images, plan, names, frame, "vectorised"),
        )
    # Half precision would lose bits between two operations; no operation changes no bit of it.
    wide = images.astype(jnp.promote_types(jnp.float32, images.dtype))
    if implementation == "per_image":
        return _image_by_image(wide, _by_image(plan), names, frame).astype(images.dtype)
    named = sharding.explicit_sharding(images)
    plan = _by_image(plan)
    if named is not None:
        # A batch may be sharded, an image not; draws are replicated, and vmap wants one sharding.
        here = named.update(spec=jax.P(named.spec[0]))
        wide, plan = jax.tree.map(lambda x: jax.sharding.reshard(x, here), (wide, plan))
    out = jax.vmap(lambda image, plan: _in_turn(image, plan, names, frame, _selected))(wide, plan).astype(images.dtype)
    return out if named is None else jax.sharding.reshard(out, named)


def _by_image(plan: Plan) -> Plan:
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), plan)


def _image_by_image(images: Array, plan: Plan, names: Sequence[str], frame: Frame) -> Array:
    """A loop that writes into the batch itself: a new one would cost more, in page faults, than the operations."""

    def body(b: Array, images: Array) -> Array:
        image = jax.lax.dynamic_index_in_dim(images, b, 0, keepdims=False)
        out = _in_turn(image, jax.tree.map(lambda x: x[b], plan), names, frame, _chosen)
        return jax.lax.dynamic_update_index_in_dim(images, out, b, 0)

    return jax.lax.fori_loop(0, images.shape[0], body, images)


def _in_turn(image: Array, plan: Plan, names: Sequence[str], frame: Frame, one: Callable[..., Array]) -> Array:
    for n in range(plan.operation.shape[0]):
        image = one(image, jax.tree.map(lambda x, n=n: x[n], plan), names, frame)
    return image


def _kind(name: str, frame: Frame, slides: bool) -> str:
    """What computes an operation: the geometric ones share a warp, or a warp and a slide."""
    if name not in GEOMETRIC:
        return name
    return "slide" if slides and name in SLIDING and frame.interpolation == "nearest" else "warp"


def _selected(image: Array, plan: Plan, names: Sequence[str], frame: Frame) -> Array:
    """One operation on one image, every kind computed: the form that vmap turns into a batch without branches."""
    kinds = [_kind(name, frame, slides=False) for name in names]
    out = image
    for kind in dict.fromkeys(kinds):
        if kind != "identity":
            here = functools.reduce(operator.or_, [plan.operation == place for place, k in enumerate(kinds) if k == kind])
            out = jnp.where(here, operate(kind, image, plan, frame), out)
    return out


def _chosen(image: Array, plan: Plan, names: Sequence[str], frame: Frame) -> Array:
    """One operation on one image, and nothing else computed."""
    kinds = [_kind(name, frame, slides=True) for name in names]
    order = list(dict.fromkeys(["identity", *kinds]))
    branch = jnp.asarray([0, *map(order.index, kinds)])
    branches = [functools.partial(operate, kind, frame=frame) for kind in order]
    return jax.lax.switch(branch[plan.operation + 1], branches, image, plan)
