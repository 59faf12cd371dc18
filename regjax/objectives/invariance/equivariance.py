"""Soft equivariance: weights are drawn to those that a symmetry allows, as far as the data have it."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regjax.core import checks, sharding, trees
from regjax.core.types import Array, PyTree


def equivariance_penalty(weight: Any, projector: Any) -> Array:
    r"""Half the squared distance of a weight from the equivariant ones.

    Formula:
      .. math:: \frac12 \lVert vec(W) - Q Q^T vec(W) \rVert^2

      with vec the row-major flattening.

    Args:
      weight: float, of any shape with N entries: a kernel ``[n, m]`` or a bias.
      projector: Q, float ``[N, r]`` with orthonormal columns, from `regjax.weights.group_projector`; a constant.

    Returns:
      A scalar in float32 or better. Its gradient by the weight is :math:`W - P W`.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      4 N r FLOPs, and as many in the backward pass. A sharded weight is gathered.
      XLA at [1024, 512]: at most 8.8 times the FLOPs and 2.3 times the bytes of a copy of its arguments, and 0.01 times its
      memory more.

    Use:
      Part of: `equivariance_penalties`.
      When: Call it for a single weight, or a strength for each layer.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> swap = jnp.array([[[0.0, 1.0], [1.0, 0.0]]])
      >>> basis = rj.weights.group_projector(swap, swap)
      >>> round(float(rj.objectives.equivariance_penalty(jnp.array([[1.0, 2.0], [3.0, 4.0]]), basis)), 4)
      2.5

    References:
      Kim et al., Regularizing Towards Soft Equivariance Under Mixed Symmetries, 2023, arXiv 2306.00356.
    """
    name = "objectives.equivariance_penalty"
    weight = checks.floating(name, "weight", weight)
    projector = checks.floating(name, "projector", projector, shape=(weight.size, None))
    return _distance(weight, projector)


def equivariance_penalties(params: PyTree, projectors: Mapping[str, Mapping[str, Any]]) -> Array:
    r"""The distance of a model's weights from equivariance under each of several groups.

    Formula:
      .. math:: R_g = \sum_l \frac12 \lVert vec(W_l) - Q_{gl} Q_{gl}^T vec(W_l) \rVert^2

      over the weights l, biases among them, that group g has a basis for: see `equivariance_penalty`.

    Args:
      params: the parameters.
      projectors: ``{group: {path: Q}}``, the path being the names of a leaf joined by slashes, such as ``"hidden/kernel"``,
        and Q float ``[N, r]`` from `regjax.weights.group_projector`.

    Returns:
      ``[G]`` in float32 or better, in the sorted order of the groups' names, whatever the order of the dictionary.

    Raises:
      ValueError: if ``projectors`` is no such mapping, names a leaf that is not there, or has a basis that does not fit it.

    Cost:
      4 N r FLOPs for each basis, and as many in the backward pass; no pass of the model.
      XLA at [1024, 512]: at most 8.9 times the FLOPs and 2.3 times the bytes of a copy of its arguments, and 0.01 times its
      memory more.

    Use:
      Part of: `soft_equivariance`, `adjust_strengths`.
      When: Call it to watch which symmetries the weights keep, and to hand them to `adjust_strengths`.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> swap = jnp.array([[[0.0, 1.0], [1.0, 0.0]]])
      >>> projectors = {"swap": {"kernel": rj.weights.group_projector(swap, swap)}}
      >>> penalties = rj.objectives.equivariance_penalties({"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]])}, projectors)
      >>> [round(float(x), 4) for x in penalties]
      [2.5]

    References:
      Kim et al., Regularizing Towards Soft Equivariance Under Mixed Symmetries, 2023, arXiv 2306.00356.
    """
    return _penalties("objectives.equivariance_penalties", params, projectors)


def soft_equivariance(params: PyTree, projectors: Mapping[str, Mapping[str, Any]], strengths: Any) -> Array:
    r"""Draws a model to be equivariant under several groups, to each with its own strength.

    Formula:
      .. math:: \sum_g \lambda_g R_g

      with the :math:`R_g` of `equivariance_penalties`. `adjust_strengths` finds which symmetries the data have.

    Args:
      params: the parameters.
      projectors: ``{group: {path: Q}}`` as in `equivariance_penalties`.
      strengths: :math:`\lambda`, ``[G]`` numbers, at least 0, in the sorted order of the groups' names. 0 leaves a group out.

    Returns:
      A scalar in float32 or better, for `with_penalty` with ``functools.partial``.

    Raises:
      ValueError: if the mapping or a basis does not fit, or ``strengths`` is not a vector of one number for each group.

    Cost:
      4 N r FLOPs for each basis, and as many in the backward pass; no pass of the model.
      XLA at [1024, 512]: at most 8.9 times the FLOPs and 2.3 times the bytes of a copy of its arguments, and 0.01 times its
      memory more.

    Use:
      For: few labels, distribution shift.
      When: Data have symmetries that may hold only in part, and you can write their generators. It ranked a true and a false
        symmetry rightly from two dozen points and lowered the error. Use `adjust_strengths` after a quarter of training.
      Not when: The symmetry is exact and known: build it into the layers, or augment. Layers are so wide that their bases do
        not fit: they have a row for every weight.
      Badly with: Activations and normalisations that do not commute with the group, as equivariant weights then make no
        equivariant model. Biases without a basis, which stay free. Reparameterised weights (`weight_norm`), whose parts are not
        W.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> swap = jnp.array([[[0.0, 1.0], [1.0, 0.0]]])
      >>> projectors = {"swap": {"kernel": rj.weights.group_projector(swap, swap)}}
      >>> params = {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]])}
      >>> round(float(rj.objectives.soft_equivariance(params, projectors, [10.0])), 4)
      25.0

    References:
      Kim et al., Regularizing Towards Soft Equivariance Under Mixed Symmetries, 2023, arXiv 2306.00356. The authors add
      ordinary weight decay.
    """
    name = "objectives.soft_equivariance"
    penalties = _penalties(name, params, projectors)
    weights = _numbers(name, "strengths", strengths, penalties.shape)
    return jnp.sum(weights.astype(jnp.promote_types(penalties.dtype, weights.dtype)) * penalties)


def adjust_strengths(strengths: Any, penalties: Any, *, power: float = 2.0) -> Array:
    r"""Weakens the strengths of the symmetries that training resisted: once, after a first part of it.

    Formula:
      .. math:: \lambda_g \leftarrow \lambda_g \left( \frac{R_{min}}{R_g} \right)^{power}

      with :math:`R_{min}` the least of the penalties whose strength is not 0: the symmetry that the model kept best stays
      as strong as it was, and the others lose.

    Args:
      strengths: ``[G]`` numbers, at least 0; equal in the beginning. 0 stays 0.
      penalties: ``[G]``, the penalties of the groups at this point, from `equivariance_penalties`.
      power: at least 0, default 2; the authors took 5 on motion data.

    Returns:
      The new strengths, ``[G]`` in float32 or better, constants for the gradient.

    Raises:
      ValueError: if a shape, dtype or number does not fit.

    Cost:
      None.

    Use:
      Part of: `soft_equivariance`.
      When: Call it once, after about a quarter of training with equal strengths, with penalties of a good epoch.
      Not when: Groups have bases of unlike size, as a larger group leaves a larger rest by chance: the one with the least rest
        wins.
      Badly with: Calls at every step: strengths of all but one group fall to 0.

    Example:
      >>> import regjax as rj
      >>> rj.objectives.adjust_strengths([100.0, 100.0, 100.0], [0.5, 0.1, 2.0]).round(4).tolist()
      [4.0, 100.0, 0.25]

    References:
      Kim et al., Regularizing Towards Soft Equivariance Under Mixed Symmetries, 2023, arXiv 2306.00356. The authors adjust
      after a quarter of training, with the penalties of the latest epoch at which any of them was at its best.
    """
    name = "objectives.adjust_strengths"
    strengths = _numbers(name, "strengths", strengths)
    penalties = _numbers(name, "penalties", penalties, strengths.shape)
    checks.number(name, "power", power, low=0.0)
    dtype = trees.accumulator(strengths, penalties)
    strengths, penalties = (jax.lax.stop_gradient(x.astype(dtype)) for x in (strengths, penalties))
    # An exact symmetry has penalty 0.
    penalties = jnp.maximum(penalties, 1e-12)
    least = jnp.min(jnp.where(strengths > 0, penalties, jnp.inf), initial=jnp.inf)
    ratio = jnp.where(jnp.isfinite(least), least, 1) / penalties
    return jnp.where(strengths > 0, strengths * ratio ** jnp.asarray(power, dtype), strengths)


def _distance(weight: Array, basis: Array) -> Array:
    dtype = trees.accumulator(weight, basis)
    flat = sharding.replicate(weight).astype(dtype).reshape(-1)
    basis = jax.lax.stop_gradient(basis).astype(dtype)
    with jax.default_matmul_precision("highest"):  # near equivariance the distance is a small difference
        return jnp.sum(jnp.square(flat - basis @ (flat @ basis))) / 2


def _penalties(name: str, params: PyTree, projectors: Any) -> Array:
    if not isinstance(projectors, Mapping) or not all(isinstance(bases, Mapping) for bases in projectors.values()):
        checks.fail(name, "projectors", "a mapping {group: {path: basis}}", projectors)
    leaves = {"/".join(trees.path_names(path)): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    found = []
    for group in sorted(projectors):
        total = jnp.zeros((), jnp.float32)
        for path, basis in projectors[group].items():
            where = f"projectors[{group!r}][{path!r}]"
            if path not in leaves or not trees.is_float(leaves[path]):
                checks.fail(name, where, "of a floating leaf of params, one of " + ", ".join(sorted(leaves)), path)
            leaf = jnp.asarray(leaves[path])
            total = total + _distance(leaf, checks.floating(name, where, basis, shape=(leaf.size, None)))
        found.append(total)
    return jnp.stack(found) if found else jnp.zeros(0, jnp.float32)


def _numbers(name: str, argument: str, value: Any, shape: tuple[int, ...] | None = None) -> Array:
    """A floating vector; of static numbers each is checked."""
    if isinstance(value, (list, tuple, np.ndarray)):
        for x in np.asarray(value, object).ravel():
            checks.number(name, argument, x, low=0.0)
        value = jnp.asarray(value, jnp.result_type(float)) if len(value) else jnp.zeros(0)
    return checks.floating(name, argument, value, **({"ndim": 1} if shape is None else {"shape": shape}))
