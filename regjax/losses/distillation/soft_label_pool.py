"""Data sets distilled class by class, and a small pool of soft labels computed beforehand."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.types import Array, Key, Strength


def batchnorm_matching(activations: Any, mean: Any, variance: Any, *, where: Any = None, axis_name: Any = None) -> Array:
    r"""The distance of a batch's statistics in one layer from given ones, such as those of one class.

    Formula:
      .. math:: \| \sigma^2(a) - v \|_2 + \| \mu(a) - m \|_2

      with the mean and the biased variance of every channel over examples and positions. Both norms are over channels, not
      squared, and have gradient 0 at 0. No gradient flows to m and v.

    Args:
      activations: float ``[B, ..., C]``, a: the input of a batch-norm layer of the teacher, for synthetic images of one
        class.
      mean: float ``[C]``, m: of the real images of that class, or the layer's running mean.
      variance: float ``[C]``, v: likewise.
      where: boolean ``[B]``: the examples that count. Default all.
      axis_name: the mapped axis, or a tuple of them, over which the batch is split under ``shard_map`` or ``pmap``: the
        statistics are those of the whole batch. Not needed under ``jit`` with sharded arrays.

    Returns:
      A scalar in float32 or better; 0 where no example counts.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      Two passes over the activations each way. Synthesis takes a forward and a backward pass of the teacher for each step.
      XLA at [64, 16, 16, 256]: at most 11 times the FLOPs and 5 times the bytes of a copy of its arguments, and 0.01 times its
      memory more.

    Use:
      For: compute budget, few labels.
      When: Images are synthesised from a trained teacher with batch norm, to distil a data set or without its data. One class a
        batch, with that class's statistics, keeps images of a class apart; 0.01 of it beside the teacher's loss.
      Not when: The network has no batch norm. Real images may be used: they are better. Batches of a few images, whose variance
        comes out too small.
      Badly with: Batches of several classes against statistics of one. The teacher in training mode, whose running statistics
        then follow the synthetic images. A mean over microbatches, as statistics are those of a part.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> activations = jnp.array([[1.0], [3.0]])
      >>> float(rj.losses.batchnorm_matching(activations, jnp.array([1.0]), jnp.array([0.5])))
      1.5

    References:
      Xiao and He, Are Large-scale Soft Labels Necessary for Large-scale Dataset Distillation?, 2024, arXiv 2410.15919. As in
      the authors' code: a batch holds images of one class; the sum over layers, the first one times 10, is added with 0.01
      to the teacher's cross-entropy; the teacher itself normalises by its own running statistics. Yin et al., Dreaming to
      Distill: Data-free Knowledge Transfer via DeepInversion, 2019, arXiv 1912.08795, with running statistics.
    """
    name = "losses.batchnorm_matching"
    activations = checks.floating(name, "activations", activations, min_ndim=2)
    if 0 in activations.shape[1:]:
        checks.fail(name, "activations", "an array [B, ..., C] of at least one position and channel", activations)
    channels = activations.shape[-1:]
    mean = checks.floating(name, "mean", mean, shape=channels)
    variance = checks.floating(name, "variance", variance, shape=channels)
    counts = checks.example_mask(name, "where", where, activations.shape[:1])
    checks.axis_name(name, axis_name)
    dtype = trees.accumulator(activations, mean, variance)
    x = activations.astype(dtype)
    mean, variance = (jax.lax.stop_gradient(v).astype(dtype) for v in (mean, variance))
    axes = tuple(range(x.ndim - 1))
    everyone = lambda v: v if axis_name is None else jax.lax.psum(v, axis_name)
    mask = None if counts is None else counts.reshape(counts.shape + (1,) * (x.ndim - 1))
    total = lambda v: everyone(jnp.sum(v if mask is None else jnp.where(mask, v, 0), axis=axes))
    examples = jnp.asarray(x.shape[0], dtype) if counts is None else jnp.sum(counts, dtype=dtype)
    count = everyone(examples) * math.prod(x.shape[1:-1])
    among = jnp.maximum(count, 1)
    batch_mean = total(x) / among
    batch_variance = total(jnp.square(x - batch_mean)) / among
    distance = trees.safe_norm(batch_variance - variance) + trees.safe_norm(batch_mean - mean)
    return jnp.where(count > 0, distance, 0)


def prune_soft_labels(num_labels: int, ratio: Strength, step: Any, key: Key) -> Array:
    r"""Which entry of a pruned pool of soft labels to train on at this step.

    Formula:
      .. math:: 0 \le i < n = \max(1, floor((1 - r) N))

      uniform, and drawn anew at each step, with replacement. An entry is a whole batch: images, parameters of their
      augmentation and the teacher's probabilities belong together.

    Args:
      num_labels: N, from 1 to 2^30: the entries of the whole pool, of which the first n are kept.
      ratio: r in [0, 1], the share that is dropped, a number or a traced scalar. 0 keeps all.
      step: the step of training, an integer of at least 0 or a traced one.
      key: a random key, the same at every step.

    Returns:
      The index, int32 ``[]``, in [0, n).

    Raises:
      ValueError: if ``num_labels`` or ``ratio`` is out of range, ``step`` is no integer of at least 0, or
        ``key`` is no key.

    Cost:
      One random number. The pool shrinks by the factor 1 - r, exactly so up to a million entries: beyond, float32 decides by a
      few in ten million.

    Use:
      For: compute budget.
      When: Soft labels of many augmented epochs, stored beforehand, take more room than the images: keep a tenth, and draw from
        it. On digits a tenth of the pool taught as well as all of it.
      Not when: The teacher fits beside the student: fresh labels cost no storage. The pool is small: a few entries are learned
        by heart. Synthetic images were made across classes, which the authors find to bear less pruning.
      Badly with: Augmentations drawn anew: an entry's labels belong to its own. A pool sorted by class or time, of which the
        first part is kept: shuffle it first.

    Example:
      >>> import jax, regjax as rj
      >>> index = rj.losses.prune_soft_labels(100, 0.9, 7, jax.random.key(0))
      >>> 0 <= int(index) < 10
      True

    References:
      Xiao and He, Are Large-scale Soft Labels Necessary for Large-scale Dataset Distillation?, 2024, arXiv 2410.15919. The
      pool is pruned before it is used: first whole epochs of it, then batches. The student minimises the divergence from
      the soft labels at temperature 20, on ImageNet without the factor of the squared temperature.
    """
    name = "losses.prune_soft_labels"
    checks.integer(name, "num_labels", num_labels, low=1, high=2**30)
    checks.number(name, "ratio", ratio, low=0.0, high=1.0)
    if isinstance(step, jax.Array):
        checks.integers(name, "step", step, shape=())
    else:
        checks.integer(name, "step", step, low=0)
    checks.key(name, key)
    return jax.random.randint(jax.random.fold_in(key, step), (), 0, _kept(num_labels, ratio), jnp.int32)


def _kept(num_labels: int, ratio: Any) -> Array:
    """How many entries are kept."""
    # The ratio 0.9 is no number of float32, nor are most: its rounding and that of the product, together less than the
    # spacing below 1 allows for, may not cost an entry of (1 - 0.9) 100.
    share = 1 - jnp.asarray(ratio, jnp.float32) + jnp.finfo(jnp.float32).eps
    return jnp.clip(jnp.floor(share * num_labels).astype(jnp.int32), 1, num_labels)
