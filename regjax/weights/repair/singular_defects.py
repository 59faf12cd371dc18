"""Singular defects: the directions into which a transformer's weights push some tokens, whatever the image."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.types import Array, Key


def attention_linear_map(value_kernel: Any, proj_kernel: Any, norm_scale: Any = None, layer_scale: Any = None) -> Array:
    r"""A pre-norm residual branch as one matrix: what attention does to tokens that all are alike.

    Formula:
      .. math:: A = I + diag(\lambda) P V diag(\gamma) (I - \frac{1}{D} 1 1^T)

      acting on columns, with V and P the value and the output projection as matrices ``[out, in]``, :math:`\gamma` the scale of
      the normalisation and :math:`\lambda` that of the branch. The normalisation's division and all biases are left out.

      The MLP branch has the same form: with M from `linearize_mlp` and the kernel of its last layer it is
      ``attention_linear_map(M.T, last_kernel, norm_scale, layer_scale)``, and that times the map of attention is the map
      of the block.

    Args:
      value_kernel: ``[D, E]``, or ``[D, heads, E / heads]``: a kernel in JAX's layout, inputs first.
      proj_kernel: ``[E, D]``, or ``[heads, E / heads, D]``.
      norm_scale: :math:`\gamma`, ``[D]``; None (default): 1.
      layer_scale: :math:`\lambda`, ``[D]``, or a scalar; None (default): 1. At 0 the map is the identity.

    Returns:
      A, ``[D, D]``, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      ``2 D^2 E`` FLOPs.
      XLA at 2 times [512, 512]: at most 1.2 times the FLOPs and 3 times the bytes of the product of the matrices, and 0.37
      times its memory more.

    Use:
      Part of: `singular_defect_directions`.
      When: For each block of a pre-norm transformer, once for attention and once for the MLP with `linearize_mlp`; their
        product is the block's map.
      Badly with: Post-norm blocks, and norms without a mean subtraction, for which the centring factor is wrong.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> value, proj = jnp.array([[1.0], [0.0]]), jnp.array([[0.0, 2.0]])
      >>> rj.weights.attention_linear_map(value, proj, jnp.ones(2), jnp.ones(2)).tolist()
      [[1.0, 0.0], [1.0, 0.0]]

    References:
      Wang et al., SINDER: Repairing the Singular Defects of DINOv2, 2024, arXiv 2407.16826.
    """
    name = "weights.attention_linear_map"
    value = checks.floating(name, "value_kernel", value_kernel, min_ndim=2)
    dim = value.shape[0]
    proj = checks.floating(name, "proj_kernel", proj_kernel, shape=(*value.shape[1:], dim))
    scales = []
    for argument, scale in (("norm_scale", norm_scale), ("layer_scale", layer_scale)):
        scale = jnp.ones((), value.dtype) if scale is None else checks.floating(name, argument, scale)
        scales.append(scale if scale.shape == () else checks.floating(name, argument, scale, shape=(dim,)))
    dtype = trees.accumulator(value, proj, *scales)
    value, proj = value.reshape(dim, -1).astype(dtype), proj.reshape(-1, dim).astype(dtype)
    gamma, branch = (jnp.broadcast_to(scale.astype(dtype), (dim,)) for scale in scales)
    # [in, out], the transpose of P V.
    product = jnp.matmul(value, proj, precision="highest")
    product = product * gamma[:, None] * branch
    centred = product - jnp.mean(product, axis=0)
    return jnp.eye(dim, dtype=dtype) + centred.T


def linearize_mlp(
    fn: Callable[[Array], Array], key: Key, dim: int, *, num_samples: int = 100_000, chunk_size: int = 1000
) -> Array:
    r"""The linear map nearest to a function of normal numbers, such as an MLP up to its last layer.

    Formula:
      .. math:: M = \left( \sum_n y_n x_n^T \right) \left( \sum_n x_n x_n^T \right)^{-1}, \quad y_n = f(x_n), \quad
        x_n \sim N(0, I)

      the least squares of y = M x, without an intercept.

    Args:
      fn: ``fn(inputs [N, D]) -> outputs [N, H]``: what the MLP does before its last layer, such as
        ``lambda x: silu(x @ gate) * (x @ up)``, biases included or not.
      key: a random key.
      dim: D, at least 1.
      num_samples: at least D, default 100,000.
      chunk_size: how many samples are in memory together, default 1000.

    Returns:
      M, ``[H, D]``, in float32 or better: it acts on columns. `attention_linear_map` takes its transpose.

    Raises:
      ValueError: if ``fn`` is no function or returns no ``[N, H]``, there are fewer samples than dimensions, or an option is out
        of range.

    Cost:
      ``num_samples`` forward passes of ``fn`` and ``2 N D (D + H)`` FLOPs, as one compiled loop over chunks; then one solve of
      ``D^3``. XLA counts the body of the loop once.
      XLA at [1024, 256]: at most 1.5 times the FLOPs and 3.1 times the bytes of the function at as many inputs, and 0.31 times
      its memory more.

    Use:
      Part of: `attention_linear_map`, `singular_defect_directions`.
      When: For the part of an MLP before its last layer, gated ones included; normal inputs stand for normalised tokens.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> fit = rj.weights.linearize_mlp(lambda x: x @ jnp.array([[1.0], [2.0]]), jax.random.key(0), 2, num_samples=100)
      >>> [round(float(x), 4) for x in fit[0]]
      [1.0, 2.0]

    References:
      Wang et al., SINDER: Repairing the Singular Defects of DINOv2, 2024, arXiv 2407.16826. The authors' code was read for this
      part, not run.
    """
    name = "weights.linearize_mlp"
    checks.function(name, "fn", fn)
    checks.key(name, key)
    dim = checks.integer(name, "dim", dim, low=1)
    num_samples = checks.integer(name, "num_samples", num_samples, low=dim)
    chunk_size = min(checks.integer(name, "chunk_size", chunk_size, low=1), num_samples)
    out = jax.eval_shape(fn, jax.ShapeDtypeStruct((chunk_size, dim), jnp.float32))
    if not (hasattr(out, "shape") and len(out.shape) == 2 and out.shape[0] == chunk_size and trees.is_float(out)):
        checks.fail(name, "fn", "a function of inputs [N, D] that returns floating-point outputs [N, H]", out)
    dtype = trees.accumulator(out)
    chunks = -(-num_samples // chunk_size)

    def add(total: tuple[Array, Array], at: tuple[Key, Array]) -> Any:
        key, first = at
        x = jax.random.normal(key, (chunk_size, dim), jnp.float32)
        # Samples of the last chunk beyond their number count as 0.
        counts = (first + jnp.arange(chunk_size) < num_samples)[:, None]
        y = jnp.where(counts, fn(x).astype(dtype), 0)
        x = jnp.where(counts, x, 0).astype(dtype)
        gram = lambda a: jnp.einsum("ni,nj->ij", x, a, precision="highest")
        return (total[0] + gram(x), total[1] + gram(y)), None

    start = jnp.zeros((dim, dim), dtype), jnp.zeros((dim, out.shape[1]), dtype)
    (inputs, both), _ = jax.lax.scan(add, start, (jax.random.split(key, chunks), chunk_size * jnp.arange(chunks)))
    # Means, near the identity: a Cholesky solve loses little.
    fit = jax.scipy.linalg.solve(inputs / num_samples, both / num_samples, assume_a="pos")
    return fit.T


def singular_defect_directions(blocks: Array | Sequence[Array]) -> Array:
    r"""The direction of the tokens that grow most through the blocks up to each one: the left singular vectors.

    Formula:
      .. math:: C_l = B_l B_{l-1} \cdots B_1, \quad u_l = argmax_{\|u\| = 1} \|u^T C_l\|

      for the maps :math:`B_l` of the blocks, such as the product of `attention_linear_map` of the MLP and of the attention.

    Args:
      blocks: ``[L, D, D]``, or a sequence of L matrices ``[D, D]``, each acting on columns, in the order of the blocks.

    Returns:
      ``[L, D]`` in float32 or better, each row of length 1 with its largest entry above 0: singular vectors have no sign. It is
      constant: no gradient flows to the blocks. For `regjax.features.neighbor_smooth_loss`.

    Raises:
      ValueError: if ``blocks`` is no stack of square floating-point matrices.

    Cost:
      L products and singular value decompositions of ``[D, D]``; once for a model. XLA counts one of the products, and no
      decomposition.
      XLA at [12, 256, 256]: at most 51 times the FLOPs and 3.9 times the bytes of a copy of its arguments, and 1.7 times its
      memory more.

    Use:
      Part of: `neighbor_smooth_loss`, `SVDLinear`.
      When: Patch tokens of a pretrained vision transformer have high-norm artefacts that spoil dense features: the directions
        say where they come from, before the repair or just to check by cosine.
      Not when: The model was trained with register tokens or shows no outlier norms; biases and the division of the
        normalisation are left out, so it explains a direction, no sizes.
      Badly with: Weights that go on training: directions are constants of one checkpoint, so compute them again.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> blocks = jnp.stack([jnp.diag(jnp.array([1.0, 2.0])), jnp.diag(jnp.array([9.0, 1.0]))])
      >>> rj.weights.singular_defect_directions(blocks).tolist()
      [[0.0, 1.0], [1.0, 0.0]]

    References:
      Wang et al., SINDER: Repairing the Singular Defects of DINOv2, 2024, arXiv 2407.16826.
    """
    name = "weights.singular_defect_directions"
    if isinstance(blocks, (list, tuple)):
        shapes = {jnp.shape(block) for block in blocks}
        if len(shapes) != 1:
            checks.fail(name, "blocks", "matrices of one shape [D, D]", shapes)
        blocks = jnp.stack([checks.floating(name, "blocks", block, ndim=2) for block in blocks])
    blocks = checks.floating(name, "blocks", blocks, ndim=3)
    if not blocks.size or blocks.shape[1] != blocks.shape[2]:
        checks.fail(name, "blocks", "square matrices [L, D, D]", blocks)
    blocks = jax.lax.stop_gradient(blocks).astype(trees.accumulator(blocks))

    def product(total: Array, block: Array) -> Any:
        total = jnp.matmul(block, total, precision="highest")
        # Directions do not depend on the scale, which over many blocks may overflow.
        size = jnp.max(jnp.abs(total))
        total = total / jnp.where(size > 0, size, 1)
        return total, total

    _, products = jax.lax.scan(product, jnp.eye(blocks.shape[1], dtype=blocks.dtype), blocks)
    vectors = jnp.linalg.svd(products, full_matrices=False)[0][..., 0]
    largest = jnp.take_along_axis(vectors, jnp.argmax(jnp.abs(vectors), axis=-1, keepdims=True), axis=-1)
    return vectors * jnp.where(largest < 0, -1, 1).astype(vectors.dtype)
