"""Side branches merged into the kernels they stand beside."""

from typing import Any

import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.types import Array


def fold_parallel_adapter(kernel: Any, adapter: Any) -> Array:
    r"""One convolution for a convolution and the pointwise adapter beside it.

    Formula:
      .. math:: conv(x, k) + conv(x, a) = conv(x, k'), \qquad k'_{c} = k_{c} + a

      at the centre c; the other taps stay. The adapter starts again from 0.

    Args:
      kernel: float ``[..., I, O]``, k, of one or more spatial axes of odd length, such as ``[3, 3, I, O]``.
      adapter: float ``[..., I, O]``, a, of as many spatial axes of length 1, such as ``[1, 1, I, O]``.

    Returns:
      The folded kernel, of the shape and dtype of ``kernel``; added in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, or a spatial axis of ``kernel`` has even length.

    Cost:
      One pass over the kernel, once after training; every later forward pass saves the adapter's. The two are equal where
      the windows are centred: with stride 1 under ``"SAME"``, else with (length - 1) / 2 of padding on each side. JAX's
      ``"SAME"`` at stride 2 pads even lengths on one side alone.
      XLA at [3, 3, 64, 64]: at most 0.99 times the FLOPs and 1.1 times the bytes of a copy of its arguments, and 0 times its
      memory more.

    Use:
      Part of: `ssre`.
      When: At the end of a task, to merge a 1x1 adapter beside a convolution into it, at no change of outputs; equally for
        RepVGG-like branches.
      Badly with: Batch normalisation inside a branch, unless fused first; stride 2 under ``SAME`` with even lengths; a
        nonlinearity between the branch and the sum.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> kernel = rj.weights.fold_parallel_adapter(jnp.ones((3, 3, 1, 1)), jnp.full((1, 1, 1, 1), 0.5))
      >>> kernel[..., 0, 0].tolist()
      [[1.0, 1.0, 1.0], [1.0, 1.5, 1.0], [1.0, 1.0, 1.0]]

    References:
      Zhu et al., Self-Sustaining Representation Expansion for Non-Exemplar Class-Incremental Learning, 2022,
      arXiv 2203.06359: in a new task the adapters and the classifier train alone. Batch norm is fused into the convolution
      beforehand. Ding et al., RepVGG: Making VGG-style ConvNets Great Again, 2021, arXiv 2101.03697.
    """
    name = "weights.fold_parallel_adapter"
    kernel = checks.floating(name, "kernel", kernel, min_ndim=3)
    spatial = kernel.shape[:-2]
    if any(length % 2 == 0 for length in spatial):
        checks.fail(name, "kernel", "an array [..., I, O] with spatial axes of odd length", kernel)
    adapter = checks.floating(name, "adapter", adapter, shape=(1,) * len(spatial) + kernel.shape[-2:])
    dtype = trees.accumulator(kernel, adapter)
    around = [(length // 2, length // 2) for length in spatial] + [(0, 0), (0, 0)]
    return (kernel.astype(dtype) + jnp.pad(adapter.astype(dtype), around)).astype(kernel.dtype)
