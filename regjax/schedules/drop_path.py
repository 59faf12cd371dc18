"""ScheduledDropPath: drop-path rates that grow with depth and over training."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from regjax.core import checks
from regjax.core.types import Array, Strength

_VERSIONS = ("v1", "v2", "v3")


def scheduled_drop_path_rate(
    step: Any, *, keep_prob: Strength = 0.6, layer: int, num_layers: int, total_steps: int, version: str = "v3"
) -> Array:
    r"""The drop-path rate of one layer at a step, growing with the layer's depth and linearly over training.

    Formula:
      .. math:: rate = (1 - keep\_prob)\, \frac{layer + 1}{num\_layers} \min\left(1, \frac{step}{total\_steps}\right)

      for ``version="v3"``; ``"v1"`` has no factor of depth and ``"v2"`` none of the step. Give it to
      `regjax.layers.drop_path` on the output of every operation of a cell but identities, before branches are added;
      at test nothing is dropped.

    Args:
      step: from 0, a number or an array of them, traced or not; rates are constant after ``total_steps``.
      keep_prob: the last layer's share of kept paths at the end of training, in [0, 1], or a schedule of it. Default 0.6, the
        authors' for CIFAR-10; 0.7 for the large model on ImageNet, and 1 for the mobile one.
      layer: the index of the layer (the cell) from 0.
      num_layers: how many there are, cells that reduce included.
      total_steps: the steps of training, at least 1.
      version: ``"v3"`` (default), ``"v1"`` or ``"v2"``.

    Returns:
      The rate, in the shape of ``step``, in float32 (float64 under x64). With all but ``step`` bound by
      ``functools.partial`` it is a schedule.

    Raises:
      ValueError: if ``keep_prob`` is outside [0, 1], ``layer`` is none of the layers, a count is below 1, or ``version`` is
        unknown.

    Cost:
      None. Drop path has to take a traced rate, as that of `regjax.layers` does.

    Use:
      For: few labels.
      When: Long trainings of cells with many parallel paths, NASNet or AmoebaNet, at 0.6 to 0.7 kept in the end, on every
        operation but identities. The authors find constant `drop_path` of no use there.
      Not when: Plain residual blocks or short runs: on the digits comparison it did no better than no drop-path at all. Tuning
        of a trained network, where it starts at 0 and ends at most noise.
      Badly with: `early_dropout`, which runs the other way. Learning rates that decay to 0: the most noise comes when steps are
        smallest. `drop_path_rates` on its result, which scales with depth again: use ``v1`` there.

    Example:
      >>> import regjax as rj
      >>> rate = rj.schedules.scheduled_drop_path_rate(250, keep_prob=0.7, layer=4, num_layers=5, total_steps=1000)
      >>> round(float(rate), 4)
      0.075

    References:
      Zoph et al., Learning Transferable Architectures for Scalable Image Recognition, 2017, arXiv 1707.07012. The paper has the
      growth over training; the factor of depth is that of the authors' code, whose default is v3. The code of AmoebaNet (Real
      et al., Regularized Evolution for Image Classifier Architecture Search, 2018, arXiv 1802.01548) defaults to v1. v2 at a
      constant rate is the rule of Huang et al., Deep Networks with Stochastic Depth, 2016, arXiv 1603.09382.
    """
    name = "schedules.scheduled_drop_path_rate"
    num_layers = checks.integer(name, "num_layers", num_layers, low=1)
    layer = checks.integer(name, "layer", layer, low=0, high=num_layers - 1)
    top = _top_rate(name, step, keep_prob, total_steps, version)
    # Divided last: the last layer's factor is exactly 1.
    return top if version == "v1" else top * ((layer + 1) / num_layers)


def scheduled_drop_path_rates(
    step: Any, *, keep_prob: Strength = 0.6, num_layers: int, total_steps: int, version: str = "v3"
) -> Array:
    r"""The drop-path rates of all layers at a step, growing with depth and linearly over training.

    Formula:
      `scheduled_drop_path_rate` for ``layer = 0, ..., num_layers - 1``.

    Args:
      step: from 0, a number or an array of them, traced or not.
      keep_prob: the last layer's share of kept paths at the end of training, in [0, 1], default 0.6, or a schedule of it.
      num_layers: how many layers (cells) there are, those that reduce included.
      total_steps: the steps of training, at least 1.
      version: ``"v3"`` (default), ``"v1"`` without the factor of depth, or ``"v2"`` without that of the step.

    Returns:
      The rates, ``[..., num_layers]`` for ``step [...]``, in float32 (float64 under x64).

    Raises:
      ValueError: if ``keep_prob`` is outside [0, 1], a count is below 1, or ``version`` is unknown.

    Cost:
      None.

    Use:
      Part of: `scheduled_drop_path_rate`.
      When: To get the rates of all cells in one call for `drop_path`.

    Example:
      >>> import regjax as rj
      >>> rates = rj.schedules.scheduled_drop_path_rates(250, keep_prob=0.7, num_layers=5, total_steps=1000)
      >>> [round(float(rate), 4) for rate in rates]
      [0.015, 0.03, 0.045, 0.06, 0.075]

    References:
      Zoph et al., Learning Transferable Architectures for Scalable Image Recognition, 2017, arXiv 1707.07012; see
      `scheduled_drop_path_rate`.
    """
    name = "schedules.scheduled_drop_path_rates"
    num_layers = checks.integer(name, "num_layers", num_layers, low=1)
    top = _top_rate(name, step, keep_prob, total_steps, version)
    depth = np.ones(num_layers) if version == "v1" else np.arange(1, num_layers + 1) / num_layers
    return top[..., None] * jnp.asarray(depth, top.dtype)


def _top_rate(function: str, step: Any, keep_prob: Any, total_steps: Any, version: str) -> Array:
    """The last layer's rate, in the shape of ``step``."""
    checks.strength(function, "keep_prob", keep_prob, low=0.0, high=1.0)
    total_steps = checks.integer(function, "total_steps", total_steps, low=1)
    checks.choice(function, "version", version, _VERSIONS)
    t = checks.array(function, "step", step).astype(float)
    rate = 1 - jnp.asarray(keep_prob(step) if callable(keep_prob) else keep_prob, float)
    return rate * (jnp.ones_like(t) if version == "v2" else jnp.clip(t / total_steps, 0, 1))
