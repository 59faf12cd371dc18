"""Super weights: the single weights of a language model on which all it does hangs, found by one forward pass."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks, classes, sharding, trees
from regjax.core.types import Array


class SuperWeights(NamedTuple):
    """What `find_super_weights` returns, each ``[L]``: places, the two super activations, and whether the layer has one."""

    layer: Array
    in_index: Array
    out_index: Array
    in_value: Array
    out_value: Array
    flag: Array


def find_super_weights(
    down_inputs: Any, down_outputs: Any, *, threshold: Any = 50.0, relative: Any = None, where: Any = None
) -> SuperWeights:
    r"""Finds the weights whose single product drives a spike through a network, from one forward pass of any prompt.

    Formula:
      Record input and output of the down projection of every MLP. In each layer, over tokens and channels,

      .. math:: (t, i) = \arg\max |x_{ti}|, \quad (s, o) = \arg\max |y_{so}|

      Where both values exceed the threshold in size, ``kernel[i, o]`` of the down projection is a super weight. To find
      several: set the one that was found to zero, run the model again, and repeat until no layer is flagged.

    Args:
      down_inputs: float ``[L, ..., D_in]``, x: one row for each token of each layer.
      down_outputs: float ``[L, ..., D_out]``, y, of the same tokens.
      threshold: above 0, default 50, which is for language models in float16.
      relative: instead of ``threshold`` a factor above 0 of the median over layers of each layer's largest value, for inputs
        and outputs apart: about 10, for small models. Default None.
      where: boolean ``[...]``, the shape of the tokens: which count (no padding); default all.

    Returns:
      ``SuperWeights(layer, in_index, out_index, in_value, out_value, flag)``, each ``[L]``: the places ``(in_index,
      out_index)`` in the kernel ``[in, out]``, the signed values there in float32 or better, and whether both are spikes. Of
      equal channels the first counts. No gradient flows.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``threshold`` or ``relative`` is not positive and finite.

    Cost:
      Two passes over the recorded arrays; the model's forward pass is the caller's.
      XLA at [12, 512, 512]: at most 2.3 times the FLOPs and 1.2 times the bytes of a copy of its arguments, and 0.01 times its
      memory more.

    Use:
      For: sparsity budget, compute budget.
      When: A pretrained language model is quantised or pruned: find them first, and keep them by `restore_super`. With a
        planted one on digits, zeroing it cost more than zeroing the next hundred.
      Not when: Small networks in float32 with the default threshold, which flags none: take ``relative`` about 10. Networks
        without MLPs that project down.
      Badly with: Inputs recorded before a gate is multiplied in, or outputs after the residual sum: both must be those of the
        down projection. Padding without ``where``.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> inputs = jnp.zeros((2, 4, 3)).at[1, 2, 0].set(80.0)
      >>> outputs = jnp.zeros((2, 4, 5)).at[1, 2, 3].set(-900.0)
      >>> found = rj.diagnostics.find_super_weights(inputs, outputs)
      >>> found.flag.tolist(), int(found.in_index[1]), int(found.out_index[1]), float(found.out_value[1])
      ([False, True], 0, 3, -900.0)

    References:
      Yu et al., The Super Weight in Large Language Models, 2024, arXiv 2411.07191: removing one such weight raises perplexity
      by three orders of magnitude. The authors write (row, column) of a kernel [out, in], here it is [in, out]. ``relative``
      and ``where`` are additions. `regjax.weights.restore_super` keeps a super weight through quantisation.
    """
    name = "diagnostics.find_super_weights"
    x = checks.floating(name, "down_inputs", down_inputs, min_ndim=2)
    y = checks.floating(name, "down_outputs", down_outputs, shape=(*x.shape[:-1], None))
    for argument, value in (("down_inputs", x), ("down_outputs", y)):
        if value.size == 0:
            checks.fail(name, argument, "an array [L, ..., D] that is not empty", value)
    checks.number(name, "threshold", threshold, low=0.0, open_low=True)
    if relative is not None:
        checks.number(name, "relative", relative, low=0.0, open_low=True)
    where = checks.example_mask(name, "where", where, x.shape[1:-1])
    in_index, in_value = _spikes(x, where)
    out_index, out_value = _spikes(y, where)
    flag = _exceeds(in_value, threshold, relative) & _exceeds(out_value, threshold, relative)
    return SuperWeights(jnp.arange(x.shape[0], dtype=jnp.int32), in_index, out_index, in_value, out_value, flag)


def _spikes(x: Array, where: Array | None) -> tuple[Array, Array]:
    """The channel of each layer's largest entry in size, and the entry."""
    x = jax.lax.stop_gradient(x).astype(trees.accumulator(x))
    if where is not None:
        x = jnp.where(where[None, ..., None], x, 0)  # a zero is nowhere the largest, unless all are
    tokens = tuple(range(1, x.ndim - 1))
    # Maxima over the tokens first: they may be sharded, and no index among them is asked for.
    high, low = (sharding.replicate(extreme(x, axis=tokens)) for extreme in (jnp.max, jnp.min))
    index = jnp.argmax(jnp.maximum(high, -low), axis=-1).astype(jnp.int32)
    high, low = classes.pick(high, index), classes.pick(low, index)
    return index, jnp.where(high >= -low, high, low)


def _exceeds(values: Array, threshold: Any, relative: Any) -> Array:
    sizes = jnp.abs(values)
    bound = jnp.asarray(threshold if relative is None else relative, sizes.dtype)
    return sizes > (bound if relative is None else bound * jnp.median(sizes))
