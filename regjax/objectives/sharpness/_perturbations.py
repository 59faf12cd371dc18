"""What the losses at perturbed weights share: directions of ascent and their lengths."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.types import Array, PyTree, Where

AUX_FROM = ("clean", "perturbed")


def accumulated(leaves: list[Array]) -> list[Array]:
    """Float32 or better: entries of a perturbation are far below the resolution of a bfloat16 weight."""
    return [leaf.astype(trees.accumulator(leaf)) for leaf in leaves]


def check_ascent(name: str, adaptive: Any, eta: Any, norm_eps: Any) -> None:
    """The options of `ascent` that users give."""
    checks.choice(name, "adaptive", adaptive, (False, True, "asam"))
    checks.number(name, "eta", eta, low=0.0)
    checks.number(name, "norm_eps", norm_eps, low=0.0)


def ascent(gradient: list[Array], radius: Any, norm_eps: Any, scales: list[Any] | None = None) -> list[Array]:
    """``radius T^2 g / (||T g|| + norm_eps)`` with the norm over all leaves; 0 at a zero gradient. T is 1 without ``scales``."""
    scales = [1] * len(gradient) if scales is None else scales
    steep = [t * g for t, g in zip(scales, accumulated(gradient), strict=True)]
    norm = trees.global_norm(steep)
    length = jnp.where(norm > 0, radius / jnp.where(norm > 0, norm + norm_eps, 1), 0)
    return [length.astype(v.dtype) * t * v for t, v in zip(scales, steep, strict=True)]


def project(vectors: list[Array], radius: Any, norm: str) -> list[Array]:
    """Each vector, or all together, shortened to a length of at most ``radius``."""
    norms = [trees.safe_norm(v) for v in vectors] if norm == "leaf" else [trees.global_norm(vectors)] * len(vectors)
    factors = [jnp.minimum(1, radius / (n + 1e-12)) for n in norms]
    return [v * factor.astype(v.dtype) for v, factor in zip(vectors, factors, strict=True)]


def orthogonal_part(vectors: list[Array], reference: list[Array]) -> list[Array]:
    """What is left of a direction without its component along another; all of it where the other is zero."""
    squared = trees.sum_squares(reference)
    share = jnp.where(squared > 0, trees.vdot(vectors, reference) / jnp.where(squared > 0, squared, 1), 0)
    return [v - share.astype(v.dtype) * r for v, r in zip(vectors, reference, strict=True)]


def scales_of(name: str, params: PyTree, adaptive: Any, eta: Any, scale_mask: Where) -> list[Any]:
    """T of each floating leaf; the number 1 where it is one."""
    leaves = accumulated(trees.float_leaves(params))
    if adaptive is False:
        return [1] * len(leaves)
    sizes = [jnp.abs(jax.lax.stop_gradient(leaf)) for leaf in leaves]
    if adaptive is True:
        return sizes
    flags = trees.select(name, params, _has_scale if scale_mask is None else scale_mask, "scale_mask")
    used = [flag for flag, leaf in zip(jax.tree.leaves(flags), jax.tree.leaves(params), strict=True) if trees.is_float(leaf)]
    return [size + jnp.asarray(eta, size.dtype) if flag else 1 for flag, size in zip(used, sizes, strict=True)]


def _has_scale(path: tuple[str, ...], leaf: Any) -> bool:
    """Everything that multiplies: kernels, embeddings and normalisation scales, by not being named as an offset."""
    named = path[-1] if path else ""
    return named != "b" and not named.endswith(("bias", "beta"))
