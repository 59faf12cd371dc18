"""Pixelated butterfly: a linear layer of block-sparse butterfly strides and a low-rank part."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from regjax.core import checks, trees
from regjax.core.types import Array


def flat_block_butterfly_mask(
    in_features: int, out_features: int, *, butterfly_size: int, n_factors: int, block: int = 32, global_size: int = 0
) -> np.ndarray:
    r"""Which blocks of a kernel a flat block butterfly keeps.

    Formula:
      Blocks (i, j) of a square pattern with ``butterfly_size`` rows are kept where :math:`i = j` or
      :math:`i \oplus j = 2^f` for f = 0, ..., n_factors - 1 (bitwise exclusive or: the sum of the butterfly factors of
      strides 1, 2, 4, ...). The pattern is stretched over the kernel, and its first ``global_size`` rows and columns are
      added; a block with any kept entry is kept.

    Args:
      in_features: the inputs; rounded up to a multiple of ``block``.
      out_features: the outputs, likewise.
      butterfly_size: the rows of the pattern, a power of 2, at most the rounded sizes.
      n_factors: the number of strides, from 0 to log2(butterfly_size).
      block: the side of a block, default 32.
      global_size: how many first inputs and outputs are connected to all, default 0.

    Returns:
      A NumPy boolean ``[in_blocks, out_blocks]``.

    Raises:
      ValueError: if a size is below 1, ``butterfly_size`` is no power of 2 or too large, or ``n_factors`` is out of range.

    Cost:
      One boolean for each weight, on the host.

    Use:
      Part of: `PixelatedButterfly`.
      When: To see or count the pattern before a layer is built, or as the mask of `fixed_mask` on an ordinary kernel (repeated
        over each block).

    Example:
      >>> import regjax as rj
      >>> mask = rj.layers.flat_block_butterfly_mask(4, 4, butterfly_size=4, n_factors=2, block=1)
      >>> mask.astype(int).tolist()
      [[1, 1, 1, 0], [1, 1, 0, 1], [1, 0, 1, 1], [0, 1, 1, 1]]

    References:
      Dao et al., Pixelated Butterfly: Simple and Efficient Sparse Training for Neural Network Models, 2022,
      arXiv 2112.00029. Where ``butterfly_size`` does not divide a size, entry e is in row ``e * butterfly_size // size``.
    """
    return _mask("layers.flat_block_butterfly_mask", in_features, out_features, butterfly_size, n_factors, block, global_size)


def _mask(
    name: str, in_features: int, out_features: int, butterfly_size: int, n_factors: int, block: int, global_size: int
) -> Any:
    sizes = dict(in_features=in_features, out_features=out_features, butterfly_size=butterfly_size, block=block)
    for argument, value in sizes.items():
        checks.integer(name, argument, value, low=1)
    rows, columns = (math.ceil(size / block) * block for size in (in_features, out_features))
    if butterfly_size & (butterfly_size - 1) or butterfly_size > min(rows, columns):
        checks.fail(name, "butterfly_size", f"a power of 2 of at most {min(rows, columns)}", butterfly_size)
    checks.integer(name, "n_factors", n_factors, low=0, high=butterfly_size.bit_length() - 1)
    checks.integer(name, "global_size", global_size, low=0)
    i = np.arange(rows)[:, None] * butterfly_size // rows
    j = np.arange(columns)[None, :] * butterfly_size // columns
    kept = np.isin(i ^ j, [0, *(1 << f for f in range(n_factors))])
    kept[:global_size] = True
    kept[:, :global_size] = True
    return kept.reshape(rows // block, block, columns // block, block).any(axis=(1, 3))


def block_sparse_apply(x: Any, blocks: Any, *, mask: Any, out_features: int) -> Array:
    r"""The product of inputs and a kernel of which only some blocks are stored.

    Formula:
      .. math:: y = x W, \quad W_{(i, j)} = blocks_n \text{ for the n-th kept block } (i, j), \; 0 \text{ else}

      Kept blocks are numbered along the rows of ``mask``.

    Args:
      x: float ``[..., in]``; padded with zeros to whole blocks.
      blocks: float ``[kept, block, block]``, inputs before outputs.
      mask: which blocks are kept, a NumPy boolean ``[in_blocks, out_blocks]``, constant.
      out_features: the outputs; those of the last block beyond it are left out.

    Returns:
      ``[..., out_features]`` in the common dtype of ``x`` and ``blocks``; sums are in float32 or better.

    Raises:
      ValueError: if the blocks do not fit the mask or ``x``.

    Cost:
      The product's FLOPs times the share of kept blocks; a copy of the inputs for each kept block of their rows, and the sum of
      the products in each column of blocks.
      XLA at [1024, 512]: at most 0.41 times the FLOPs and 6.1 times the bytes of a dense layer with its gradient, and 4.2 times
      its memory more.

    Use:
      Part of: `PixelatedButterfly`.
      When: For a block pattern of one's own, constant during training.
      Not when: Most blocks are kept: inputs are copied for each kept block, so that the dense product moves less.

    Example:
      >>> import jax.numpy as jnp, numpy as np, regjax as rj
      >>> mask = np.array([[True, False], [True, True]])
      >>> blocks = jnp.array([1.0, 2.0, 3.0]).reshape(3, 1, 1)
      >>> rj.layers.block_sparse_apply(jnp.array([1.0, 10.0]), blocks, mask=mask, out_features=2).tolist()
      [21.0, 30.0]

    References:
      See `PixelatedButterfly`.
    """
    name = "layers.block_sparse_apply"
    x = checks.floating(name, "x", x, min_ndim=1)
    blocks = checks.floating(name, "blocks", blocks, ndim=3)
    mask = checks.concrete(name, "mask", mask, "as the pattern is part of the program")
    if mask.dtype != np.bool_ or mask.ndim != 2:
        checks.fail(name, "mask", "a boolean [in_blocks, out_blocks]", mask)
    size = blocks.shape[1]
    if blocks.shape != (int(mask.sum()), size, size):
        checks.fail(name, "blocks", f"[{int(mask.sum())}, block, block], one for each kept block of the mask", blocks)
    checks.integer(name, "out_features", out_features, low=1, high=mask.shape[1] * size)
    padding = mask.shape[0] * size - x.shape[-1]
    if not 0 <= padding < max(size, 1):
        checks.fail(name, "x", f"an array of {mask.shape[0]} blocks of {size} inputs on its last axis", x)
    dtype = trees.accumulator(x, blocks)
    rows, columns = np.nonzero(mask)
    tiles = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, padding)]).reshape(*x.shape[:-1], mask.shape[0], size)
    parts = jnp.einsum("...ki,kij->...kj", jnp.take(tiles, rows, axis=-2), blocks, preferred_element_type=dtype)
    # The kept blocks of a column are summed by a product with a constant 0/1 matrix, of which XLA makes no scatter.
    join = jnp.asarray(columns[:, None] == np.arange(mask.shape[1]), dtype)
    y = jnp.einsum("...kj,kc->...cj", parts, join, precision="highest")
    return y.reshape(*x.shape[:-1], -1)[..., :out_features].astype(jnp.result_type(x, blocks))


class PixelatedButterfly(nnx.Module):
    r"""A linear layer of a flat block butterfly and a low-rank part, as a Flax NNX module.

    Formula:
      .. math:: y = (1 - g) \, x W_{sparse} + g \, x U V + b, \quad g = \sigma(x w_g + b_g)

      W_sparse has the blocks of `flat_block_butterfly_mask`; g is per example, or 1 / 2 where ``gated=False``.

    Args:
      in_features: the inputs.
      out_features: the outputs.
      butterfly_size: the rows of the butterfly's pattern, a power of 2; None (default): the largest for which every row has a
        block.
      n_factors: the number of strides; None (default): all, log2(butterfly_size).
      block: the side of a block, default 32: what the device multiplies well.
      global_size: how many first inputs and outputs are connected to all, default 0.
      rank: of the low-rank part: a float is a share of min(in, out), an integer absolute; default 0.1. 0: none.
      gated: whether g is learned from the example; default True.
      use_bias: whether there is a bias; default True.
      rngs: ``nnx.Rngs``, for the initial weights.

    Returns:
      A call ``layer(x)`` with ``[..., in]`` gives ``[..., out]``.

    Raises:
      ValueError: if a size, ``rank`` or an option is out of range.

    Cost:
      The dense layer's FLOPs and weights times the share of kept blocks (``layer.density``), and rank (in + out) more.
      XLA at [1024, 512]: at most 0.69 times the FLOPs and 9.2 times the bytes of a dense layer with its gradient, and 3.8 times
      its memory more.

    Use:
      For: compute budget, sparsity budget.
      When: Wide square dense layers trained from scratch at a fixed share of their weights, blocks as large as the device
        multiplies well. In tests a quarter of the weights plus a low-rank part is within a point of dense.
      Not when: Layers of a few hundred units or small batches: it moves several times the bytes of the dense layer, so FLOPs
        saved are not time saved. A trained model (`prune`), whose weights do not lie on the pattern.
      Badly with: Penalties and projections that read a kernel as a matrix, `spectral_penalty` or `orthonormality`: they get the
        stored blocks. `prune` and `topk_mask` on top, which break the blocks.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> from flax import nnx
      >>> layer = rj.layers.PixelatedButterfly(64, 64, block=4, n_factors=2, rank=4, rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((2, 64))).shape, round(layer.density, 3)
      ((2, 64), 0.188)

    References:
      Dao et al., Pixelated Butterfly: Simple and Efficient Sparse Training for Neural Network Models, 2022,
      arXiv 2112.00029. The paper weighs the parts by a learned scalar; its authors' code gates by example, as here. Sparse
      weights start as dense ones times the root of 1 / (share kept of their output), so that outputs vary as a dense
      layer's; the bias starts at 0.
    """

    _name = "layers.PixelatedButterfly"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        butterfly_size: int | None = None,
        n_factors: int | None = None,
        block: int = 32,
        global_size: int = 0,
        rank: float | int = 0.1,
        gated: bool = True,
        use_bias: bool = True,
        rngs: nnx.Rngs,
    ):
        name = self._name
        for argument, value in (("in_features", in_features), ("out_features", out_features), ("block", block)):
            checks.integer(name, argument, value, low=1)
        if not isinstance(rngs, nnx.Rngs):
            checks.fail(name, "rngs", "nnx.Rngs", rngs)
        if butterfly_size is not None:
            checks.integer(name, "butterfly_size", butterfly_size, low=1)
        fewest = math.ceil(min(in_features, out_features) / block)
        if butterfly_size is None:
            butterfly_size = 1 << (fewest.bit_length() - 1)
        if n_factors is None:
            n_factors = max(int(butterfly_size).bit_length() - 1, 0)
        mask = _mask(name, in_features, out_features, butterfly_size, n_factors, block, global_size)
        self.in_features, self.out_features = in_features, out_features
        self.rank = _rank(name, rank, min(in_features, out_features))
        self.gated = checks.boolean(name, "gated", gated)
        # Nested tuples: static attributes of a module are hashed and compared.
        self.mask = tuple(map(tuple, mask.tolist()))
        bound = 1 / math.sqrt(in_features)
        uniform = lambda shape, bound: jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound)
        kept = mask.sum(axis=0)
        gain = np.sqrt(mask.shape[0] / np.maximum(kept, 1))[np.nonzero(mask)[1]]
        self.blocks = nnx.Param(uniform((int(mask.sum()), block, block), bound) * jnp.asarray(gain[:, None, None], jnp.float32))
        if self.rank:
            self.u = nnx.Param(uniform((in_features, self.rank), bound))
            self.v = nnx.Param(uniform((self.rank, out_features), 1 / math.sqrt(self.rank)))
        if self.rank and self.gated:
            self.gate = nnx.Linear(in_features, 1, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros(out_features)) if checks.boolean(name, "use_bias", use_bias) else nnx.data(None)

    @property
    def density(self) -> float:
        """The share of blocks that are kept."""
        return float(np.mean(self.mask))

    def __call__(self, x: Any) -> Array:
        """The layer's output."""
        x = checks.floating(self._name, "x", x, min_ndim=1)
        if x.shape[-1] != self.in_features:
            checks.fail(self._name, "x", f"an array with {self.in_features} inputs on its last axis", x)
        y = block_sparse_apply(x, self.blocks[...], mask=np.array(self.mask), out_features=self.out_features)
        if self.rank:
            low_rank = (x @ self.u[...]) @ self.v[...]
            g = jax.nn.sigmoid(self.gate(x)) if self.gated else 0.5
            y = y + g * (low_rank - y)
        return y if self.bias is None else y + self.bias[...]


def _rank(name: str, rank: Any, largest: int) -> int:
    if isinstance(rank, int) and not isinstance(rank, bool):
        return checks.integer(name, "rank", rank, low=0, high=largest)
    if isinstance(rank, jax.Array):
        checks.fail(name, "rank", "a Python number, as it is a shape", rank)
    share = checks.number(name, "rank", rank, low=0.0, high=1.0)
    return round(float(share) * largest)
