"""Penalties on adapters: orthonormal singular vectors, and low-rank members orthogonal to the kernel and to each other.

A tree of adapters is any tree in which the arrays of one adapter stand side by side under their own names: a model, its
state, or a list of dictionaries.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from regjax.core import checks, sharding, trees
from regjax.core.types import Array, PyTree
from regjax.weights.matrix import gram_matrix


def sorsa_orthonormality(adapters: PyTree, *, squared: bool = False) -> Array:
    r"""How far the singular vectors of adapters are from orthonormal, on average over all their matrices.

    Formula:
      .. math:: R = \frac{1}{M} \sum_l \left( \lVert u_l^T u_l - I \rVert_F + \lVert v_l^T v_l - I \rVert_F \right)

      over the M matrices :math:`u_l` ``[in, rank]`` and :math:`v_l^T` ``[rank, out]`` of all adapters. The singular values
      are free. At the start R is 0, and so is its gradient.

    Args:
      adapters: a tree with arrays named ``u`` and ``vt`` side by side: a model with `regjax.layers.SORSALinear`, its state or
        that of its adapters alone, or a list of what `sorsa_init` gives. Other leaves do not count, nor do the frozen
        vectors of `regjax.layers.SVDLinear`.
      squared: whether the norms are squared; default False.

    Returns:
      A scalar in float32 or better; 0 for an empty tree.

    Raises:
      ValueError: if the tree has leaves but no such pair, shapes do not fit, or ``squared`` is no bool.

    Cost:
      ``rank^2 (in + out)`` multiplications for each adapter each way; no forward pass.
      XLA at 8 times [512, 64]: at most 290 times the FLOPs and 6 times the bytes of a copy of its arguments, and 1.2 times its
      memory more.

    Use:
      For: fine-tuning.
      When: Always with `SORSALinear`: without it the singular vectors soon lose their length and angle, in our small run by
        far, and the values mean nothing. Strength 4e-4 over the base learning rate.
      Not when: The adapter is a `LoRALinear` or PiSSA, whose factors carry the sizes and must not be orthonormal.
      Badly with: Gradient clipping after it: add its gradient behind the clip, with `add_penalty`. Weight decay on u and vt,
        which shrinks the vectors that it holds at length 1.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> u, vt = jnp.array([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), jnp.array([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0]])
      >>> round(float(rj.weights.sorsa_orthonormality([{"u": u, "vt": vt}])), 4)
      1.9243

    References:
      Cao, SORSA: Singular Values and Orthonormal Regularized Singular Vectors Adaptation of Large Language Models, 2024,
      arXiv 2409.00055. Versions of the paper square the norms; the authors' code, which this follows, does not. They add
      its gradient times 4e-4 / lr, with lr the constant base learning rate, after clipping:
      ``regjax.gradients.add_penalty`` behind ``optax.clip_by_global_norm``.
    """
    name = "weights.sorsa_orthonormality"
    checks.boolean(name, "squared", squared)
    pairs = [node for node in _nodes(adapters) if {"u", "vt"} <= set(node) and "eps" not in node]
    _check_found(name, adapters, pairs, "'u' and 'vt'")
    matrices: list[Array] = []
    for node in pairs:
        u = checks.floating(name, "adapters", node["u"], ndim=2)
        vt = checks.floating(name, "adapters", node["vt"], shape=(u.shape[1], None))
        matrices += [u, vt.T]
    # Those of equal shape in one batched product; an Explicit mesh may hold them differently.
    alike: dict[Any, list[Array]] = {}
    for i, x in enumerate(matrices):
        apart = i if sharding.explicit_sharding(x) is not None else None
        alike.setdefault((x.shape, x.dtype, apart), []).append(x.astype(trees.accumulator(x)))
    terms = []
    for xs in alike.values():
        if len(xs) == 1:
            gram = sharding.contract_rows(xs[0], xs[0])[None]
        else:
            gram = gram_matrix(jnp.stack(xs))
        squares = jnp.sum(jnp.square(gram - jnp.eye(gram.shape[-1], dtype=gram.dtype)), axis=(1, 2))
        terms.append(jnp.sum(squares if squared else trees.safe_sqrt(squares)))
    return sum(terms, jnp.zeros((), jnp.float32)) / max(len(matrices), 1)


def orthogonal_group_penalty(adapters: PyTree, *, contract: str = "input") -> Array:
    r"""Keeps the low-rank members of an adapter orthogonal to the frozen kernel and to each other.

    Formula:
      With :math:`D_i = a_i b_i`, and the sum of absolute entries:

      .. math:: R = \sum \left( \sum_i \lVert W^T D_i \rVert_1 + \sum_{i<j} \lVert D_i^T D_j \rVert_1 \right)

      over all adapters: the first part preserves what the kernel does, the second makes the members differ.
      ``contract="output"`` has :math:`W D_i^T` and :math:`D_i D_j^T` instead. At ``b = 0`` the value is 0 and so is the
      gradient.

    Args:
      adapters: a tree with arrays named ``kernel``, ``a`` and ``b`` side by side: a model with `regjax.layers.LoRAGroup` or
        `regjax.layers.LoRALinear`, its whole state, or a list of dictionaries. ``a`` is ``[N, in, rank]`` or a list of N
        arrays ``[in, rank]``, ``b`` ``[N, rank, out]`` or a list; two dimensions are one member. A kernel of more than two
        dimensions is taken as ``[in, out]``. Other leaves do not count.
      contract: ``"input"`` (default) or ``"output"``: the axis over which the products sum.

    Returns:
      A scalar in float32 or better; 0 for an empty tree. No gradient flows to the kernels.

    Raises:
      ValueError: if the tree has leaves but no such adapter, a kernel is missing, shapes do not fit, or ``contract`` is
        misspelt.

    Cost:
      For each adapter N (N + 1) / 2 matrices ``[out, out]`` (``[in, in]``) of memory and ``rank`` times as many operations;
      no forward pass.
      XLA at [512, 512]: at most 640 times the FLOPs and 39 times the bytes of a copy of its arguments, and 6.4 times its memory
      more.

    Use:
      For: distribution shift, fine-tuning.
      When: A pretrained transformer is adapted by `LoRAGroup` on several source domains and tested on an unseen one: members
        leave the kernel's directions alone and differ from each other. The authors use 1e-3.
      Not when: Train and test data are of one domain, where it only restricts the adapter; or outputs are so wide that matrices
        [out, out] for each pair of members do not fit.
      Badly with: Trained base kernels: they are constants to it, so the first part chases a moving target. A strength that
        starts high does nothing at ``b = 0``, then blocks the adapter: start with the published one.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> kernel = jnp.array([[1.0, 0.0], [2.0, 1.0]])
      >>> a = jnp.array([[[1.0], [0.0]], [[1.0], [1.0]]])
      >>> b = jnp.array([[[1.0, 1.0]], [[1.0, -1.0]]])
      >>> float(rj.weights.orthogonal_group_penalty([{"kernel": kernel, "a": a, "b": b}]))
      14.0

    References:
      Hu et al., Learn to Preserve and Diversify: Parameter-Efficient Group with Orthogonal Regularization for Domain
      Generalization, 2024, arXiv 2407.15085, as in the authors' code; strength 1e-3 there. ``"output"`` is a variant that
      their code leaves unused.
    """
    name = "weights.orthogonal_group_penalty"
    checks.choice(name, "contract", contract, ("input", "output"))
    nodes = [node for node in _nodes(adapters) if {"a", "b"} <= set(node)]
    _check_found(name, adapters, nodes, "'kernel', 'a' and 'b'")
    return sum((_group_term(name, node, contract) for node in nodes), jnp.zeros((), jnp.float32))


def _group_term(name: str, node: dict[str, Any], contract: str) -> Array:
    if "kernel" not in node:
        checks.fail(name, "adapters", "a model or its whole state, with the frozen 'kernel' beside 'a' and 'b'", sorted(node))
    a, b = (_members(name, node[key]) for key in ("a", "b"))
    if a.shape[0] != b.shape[0] or a.shape[2] != b.shape[1]:
        checks.fail(name, "adapters", f"made of 'b' [{a.shape[0]}, {a.shape[2]}, out] beside 'a' {list(a.shape)}", b)
    inputs, outputs = a.shape[1], b.shape[2]
    kernel = checks.floating(name, "adapters", node["kernel"], min_ndim=2)
    if kernel.size != inputs * outputs:
        checks.fail(name, "adapters", f"made of kernels of {inputs} inputs and {outputs} outputs where 'a' and 'b' are", kernel)
    dtype = trees.accumulator(a, b, kernel)
    kernel = jax.lax.stop_gradient(sharding.replicate(kernel).astype(dtype)).reshape(inputs, outputs)
    a, b = (sharding.replicate(x).astype(dtype) for x in (a, b))
    if contract == "output":
        kernel, a, b = kernel.T, jnp.swapaxes(b, 1, 2), jnp.swapaxes(a, 1, 2)
    # Through the rank: [out, rank] times [rank, out], never a product of two whole kernels.
    preserve = jnp.einsum("io,nir->nor", kernel, a) @ b
    i, j = jnp.triu_indices(a.shape[0], 1)
    inner = jnp.einsum("nir,nis->nrs", a[i], a[j])
    diversify = jnp.swapaxes(b[i], 1, 2) @ inner @ b[j]
    return jnp.sum(trees.absolute(preserve)) + jnp.sum(trees.absolute(diversify))


def _members(name: str, value: Any) -> Array:
    """The members of a group, stacked: from one array of them, a list, or a single one."""
    if isinstance(value, dict):
        members = [checks.floating(name, "adapters", value[key], ndim=2) for key in sorted(value, key=int)]
        if len({x.shape for x in members}) != 1:
            checks.fail(name, "adapters", "made of members of one shape", [x.shape for x in members])
        return jnp.stack(members)
    value = checks.floating(name, "adapters", value, min_ndim=2)
    if value.ndim > 3:
        checks.fail(name, "adapters", "made of 'a' and 'b' of two or three dimensions", value)
    return value if value.ndim == 3 else value[None]


def _nodes(tree: PyTree) -> list[dict[str, Any]]:
    """The leaves by the node that they stand in: their names there, lists of arrays as dictionaries by position."""
    if isinstance(tree, nnx.Module):
        tree = nnx.state(tree)  # a shared layer once
    nodes: dict[tuple[str, ...], dict[str, Any]] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        names = trees.path_names(path)
        if len(names) > 1 and names[-1].isdigit() and names[-2] in ("a", "b"):
            nodes.setdefault(names[:-2], {}).setdefault(names[-2], {})[names[-1]] = leaf
        elif names:
            nodes.setdefault(names[:-1], {})[names[-1]] = leaf
    return list(nodes.values())


def _check_found(name: str, tree: PyTree, nodes: list[Any], what: str) -> None:
    if not nodes and jax.tree.leaves(tree):
        checks.fail(name, "adapters", f"a tree with arrays named {what} side by side", type(tree).__name__)
