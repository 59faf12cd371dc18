"""How many numbers a pruned network consists of, and what that bounds."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.types import Array, PyTree


class ParameterCount(NamedTuple):
    """What `sketched_parameter_count` returns: all weights, those that are kept, and the numbers of a sketch of them."""

    raw: Array
    nonzero: Array
    sketched: Array


class PruningError(NamedTuple):
    """What `pruning_output_error` returns: the relative change of the outputs, mean and largest over the examples."""

    mean: Array
    max: Array


def sketched_parameter_count(masks: PyTree) -> ParameterCount:
    r"""The effective number of parameters of a pruned network: what a sketch of its sparse matrices would keep.

    Formula:
      A matrix of d1 x d2 entries with at most j kept ones in each row and column can be recovered from a sketch of

      .. math:: j \, d \, (\log_2 d)^2, \quad d = \max(d_1, d_2)

      numbers; the count sums them over the kernels. A kernel ``[..., out]`` is the matrix of its inputs by its outputs.
      Masks of one dimension (biases) add their kept entries.

    Args:
      masks: a tree of boolean arrays of the weights' shapes, True for kept ones. Scalars, which stand for leaves that are not
        pruned, and integer leaves count nothing; ``jax.tree.map(lambda w: w != 0, params)`` makes masks of pruned weights.

    Returns:
      ``ParameterCount(raw, nonzero, sketched)``, scalars in float32: all entries, the kept ones, the sketch's. The sketch of
      a dense or small kernel is larger than the kernel: the sum is not clipped.

    Raises:
      ValueError: if a leaf is floating.

    Cost:
      Two passes over the masks.
      XLA at 8 times [512, 512]: at most 4.4 times the FLOPs and 9.7 times the bytes of a copy of its arguments, and 2.3 times
      its memory more.

    Use:
      Part of: `compression_bound`.
      When: For masks that keep few weights in every row and column, in wide layers: it then grows about with the width, not
        with its square.
      Not when: Density is moderate: the sketch has more numbers than the kernel.
      Badly with: Masks of whole units and `global_magnitude_mask`: the fullest row or column counts for all. After
        `remove_structures` count the smaller kernels.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> count = rj.diagnostics.sketched_parameter_count({"kernel": jnp.eye(256, dtype=bool)})
      >>> float(count.raw), float(count.nonzero), float(count.sketched)
      (65536.0, 256.0, 16384.0)

    References:
      Guha et al., Generalization Bounds for Magnitude-Based Pruning via Sparse Matrix Sketching, 2023, arXiv 2305.18789.
      Reconstructed from the abstract: the order of growth is theirs, the constant 1 and base 2 are not.
    """
    name = "diagnostics.sketched_parameter_count"
    total = ParameterCount(*(jnp.zeros((), jnp.float32) for _ in range(3)))
    for path, leaf in jax.tree_util.tree_flatten_with_path(masks)[0]:
        if trees.is_float(leaf):
            place = "/".join(trees.path_names(path))
            checks.fail(name, f"masks at {place}", "boolean (w != 0 makes a mask of weights w)", leaf)
        if jnp.ndim(leaf) and jnp.result_type(leaf) == jnp.bool_:
            total = ParameterCount(*(a + b for a, b in zip(total, _count(jnp.asarray(leaf)), strict=True)))
    return total


def compression_bound(margin_error: Any, num_params: Any, num_samples: Any, *, num_values: Any, delta: Any = 0.05) -> Array:
    r"""A bound on the test error of a compressed classifier, from its number of parameters.

    Formula:
      .. math:: margin\_error + \sqrt{\frac{q \log r + \log(1 / \delta)}{2 m}}

      with probability 1 - delta over the m training examples, where q parameters of r values each describe the compressed
      network, and its outputs are within half of the margin of the original's on those examples: report
      `pruning_output_error` beside it. Usually above 1, and not clipped.

    Args:
      margin_error: from 0 to 1: the share of training examples that the original network classifies with less than the margin.
      num_params: q, at least 0, such as the counts of `sketched_parameter_count`.
      num_samples: m, above 0.
      num_values: r, at least 1: 2 to the power of the bits of a parameter.
      delta: in (0, 1], default 0.05.

    Returns:
      A scalar in float32 or better. Every argument is a number or a scalar array.

    Raises:
      ValueError: if a number lies outside its range or is not finite.

    Cost:
      None.

    Use:
      For: sparsity budget, few labels.
      When: Theory of pruned or quantised networks on much data: which of two compressions has the smaller bound. It says
        something only where q log r is well below twice the examples.
      Not when: Test error is to be estimated: for a network with as many kept weights as examples it is above 1. The outputs
        changed by more than half of the margin: see `pruning_output_error`.
      Badly with: The bare number of kept weights where the mask was chosen from the data: places must be described too, as the
        sketched count does.

    Example:
      >>> import regjax as rj
      >>> round(float(rj.diagnostics.compression_bound(0.02, 500, 60_000, num_values=2**8)), 4)
      0.1721

    References:
      Arora et al., Stronger Generalization Bounds for Deep Nets via a Compression Approach, 2018, arXiv 1802.05296, theorem
      2.1. Guha et al., Generalization Bounds for Magnitude-Based Pruning via Sparse Matrix Sketching, 2023, arXiv 2305.18789,
      for the counts of pruned networks; the constants are those of the former.
    """
    name = "diagnostics.compression_bound"
    checks.number(name, "margin_error", margin_error, low=0.0, high=1.0)
    checks.number(name, "num_params", num_params, low=0.0)
    checks.number(name, "num_samples", num_samples, low=0.0, open_low=True)
    checks.number(name, "num_values", num_values, low=1.0)
    checks.number(name, "delta", delta, low=0.0, high=1.0, open_low=True)
    given = (margin_error, num_params, num_samples, num_values, delta)
    dtype = trees.accumulator(*(x for x in given if isinstance(x, jax.Array) and trees.is_float(x)))
    # A Python integer may be beyond int32.
    error, q, m, r, d = (x.astype(dtype) if isinstance(x, jax.Array) else jnp.asarray(float(x), dtype) for x in given)
    return error + trees.safe_sqrt((q * jnp.log(r) - jnp.log(d)) / (2 * m))


def pruning_output_error(apply_fn: Callable[..., Any], params: PyTree, masks: PyTree, x: Any) -> PruningError:
    r"""How much pruning changes the outputs of a network.

    Formula:
      .. math:: \frac{\|f(x) - f_{pruned}(x)\|_2}{\|f(x)\|_2}

      for each example, the mean and the largest of them.

    Args:
      apply_fn: ``apply_fn(params, x) -> float [B, ...]``: the network.
      params: its parameters.
      masks: a tree of the structure of ``params``: for each leaf a boolean array of its shape, True for kept entries, or a
        scalar.
      x: the inputs of B examples.

    Returns:
      ``PruningError(mean, max)``, scalars in float32 or better. No gradient flows.

    Raises:
      ValueError: if the masks do not fit the parameters, ``apply_fn`` is no function or returns no floats with a leading axis.

    Cost:
      2F.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 2.3 times the FLOPs and 2.8 times the bytes of a forward pass,
      and 0.7 times its memory more.

    Use:
      For: sparsity budget.
      When: Right after a cut, without labels: which mask disturbs the trained function least, before a fine-tuning is paid for.
        The largest value shows single examples that break.
      Not when: The network is tuned after the cut: a good start is no good end, as methods far apart right after the cut ended
        close together in the sparsity study. Accuracy with labels is at hand.
      Badly with: Logits with a common shift, which counts as error and changes no prediction. Masks in training already
        (`topk_supermask`), whose dense weights are no reference.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> params, x = jnp.array([[3.0, 0.0], [0.0, 4.0]]), jnp.array([[1.0, 1.0], [1.0, 0.0]])
      >>> error = rj.diagnostics.pruning_output_error(lambda w, x: x @ w, params, params > 3, x)
      >>> round(float(error.mean), 4), round(float(error.max), 4)
      (0.8, 1.0)

    References:
      The closeness that `compression_bound` asks for. Guha et al., Generalization Bounds for Magnitude-Based Pruning via
      Sparse Matrix Sketching, 2023, arXiv 2305.18789.
    """
    name = "diagnostics.pruning_output_error"
    checks.function(name, "apply_fn", apply_fn)
    pruned = _masked(name, params, masks)
    outputs = []
    for weights in (params, pruned):
        out = apply_fn(jax.lax.stop_gradient(weights), jax.lax.stop_gradient(x))
        if not (isinstance(out, jax.Array) and trees.is_float(out) and out.ndim > 0 and out.size > 0):
            checks.fail(name, "apply_fn", "a function that returns floats [B, ...]", out)
        outputs.append(out.astype(trees.accumulator(out)))
    full, less = outputs
    axes = tuple(range(1, full.ndim))
    size = trees.safe_norm(full, axis=axes)
    error = trees.safe_norm(full - less, axis=axes) / jnp.maximum(size, jnp.finfo(full.dtype).tiny ** 0.5)
    error = jax.lax.stop_gradient(error)
    return PruningError(jnp.mean(error), jnp.max(error))


def _count(mask: Array) -> tuple[Any, Array, Array]:
    """All entries, the kept ones, and those of the sketch."""
    raw = jnp.asarray(float(mask.size), jnp.float32)
    if mask.ndim == 1:
        kept = jnp.sum(mask, dtype=jnp.int32).astype(jnp.float32)
        return raw, kept, kept
    columns = jnp.sum(mask, axis=tuple(range(mask.ndim - 1)), dtype=jnp.int32)
    rows = jnp.sum(mask, axis=-1, dtype=jnp.int32)
    fullest = jnp.maximum(jnp.max(rows, initial=0), jnp.max(columns, initial=0)).astype(jnp.float32)
    longest = jnp.asarray(float(max(rows.size, columns.size, 1)), jnp.float32)
    return raw, jnp.sum(columns).astype(jnp.float32), fullest * longest * jnp.square(jnp.log2(longest))


def _masked(name: str, params: PyTree, masks: PyTree) -> PyTree:
    leaves = jax.tree.leaves(params)
    structure: Any = jax.tree.structure(params)
    if jax.tree.structure(masks) != structure:
        checks.same_structure(name, "masks", masks, params, "params")
    out = []
    for leaf, mask in zip(leaves, jax.tree.leaves(masks), strict=True):
        shape = jnp.shape(leaf)
        if jnp.result_type(mask) != jnp.bool_ or jnp.shape(mask) not in ((), shape):
            checks.fail(name, "masks", f"made of booleans of shape {list(shape)} or [], as the parameters", mask)
        out.append(jnp.where(mask, leaf, 0).astype(leaf.dtype) if trees.is_float(leaf) else leaf)
    return jax.tree.unflatten(structure, out)
