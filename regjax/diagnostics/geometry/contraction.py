"""How much a noisy layer contracts differences between distributions: coefficients of generalization bounds."""

import math
from typing import Any

import jax.numpy as jnp
from jax.scipy.special import erf

from regjax.core import checks, trees
from regjax.core.types import Array, Strength


def sdpi_contraction(
    kind: str,
    *,
    rate: Strength = None,
    std: Strength = None,
    bound: Any = None,
    fan_in: int | None = None,
    fan_out: int | None = None,
) -> Array:
    r"""An upper bound on the share of a KL divergence that a noisy layer lets through.

    Formula:
      .. math::
        \eta_{dropout} = 1 - rate^{fan\_in}, \quad \eta_{drop\_connect} = 1 - rate^{fan\_in\, fan\_out}, \quad
        \eta_{gaussian} = 1 - 2 Q\left(\frac{bound \sqrt{fan\_out}}{std}\right)

      with Q the upper tail of the standard normal: for any two distributions of the input, KL(outputs) is at most eta times
      KL(inputs). The bound of a network is the product of its layers' coefficients, by which a bound on the generalization
      error through the KL divergence shrinks with depth.

    Args:
      kind: ``"dropout"`` on the layer's ``fan_in`` inputs; ``"drop_connect"`` on its ``fan_in * fan_out`` weights; or
        ``"gaussian"``, noise added after the activation of its ``fan_out`` units.
      rate: the drop rate in [0, 1], a number or a traced scalar, for ``"dropout"`` and ``"drop_connect"``.
      std: the noise's standard deviation, at least 0, a number or a traced scalar, for ``"gaussian"``.
      bound: the largest absolute value of the activation, for ``"gaussian"``: 1 for tanh; None (default) if there is none, as
        of a ReLU: then eta is 1.
      fan_in: the number of inputs, at least 1; ``"gaussian"`` does not need it.
      fan_out: the number of outputs, at least 1; ``"dropout"`` does not need it.

    Returns:
      eta, a scalar in [0, 1], in float32 or better: 1 without noise.

    Raises:
      ValueError: if ``kind`` is misspelt, or an argument is out of range, missing, or of the other kind of noise.

    Cost:
      None.

    Use:
      For: few labels.
      When: Theory of narrow noisy layers: what dropout or bounded noise in each layer does to a bound through the KL
        divergence. Codes of a few units behind tanh, with noise of their size.
      Not when: Layers are of usual width: 1 less the rate to the power of the width is 1 in float32 from some 25 inputs on at
        rate 0.5. As a measure of generalisation, or to choose a rate.
      Badly with: ReLU and other unbounded activations, for which Gaussian noise gives 1. Residual connections, which pass the
        input around the layer.

    Example:
      >>> import regjax as rj
      >>> round(float(rj.diagnostics.sdpi_contraction("dropout", rate=0.5, fan_in=3)), 4)
      0.875
      >>> round(float(rj.diagnostics.sdpi_contraction("gaussian", std=2.0, bound=1.0, fan_out=4)), 4)
      0.6827

    References:
      He et al., Information-Theoretic Generalization Bounds for Deep Neural Networks, 2024, arXiv 2404.03176. The
      coefficients are reconstructed by coupling and Dobrushin's coefficient: they hold as stated, but the paper's own
      constants, and whether its masks act on inputs or outputs, are uncertain.
    """
    name = "diagnostics.sdpi_contraction"
    checks.choice(name, "kind", kind, ("dropout", "drop_connect", "gaussian"))
    gaussian = kind == "gaussian"
    for argument, value in (("rate", rate),) if gaussian else (("std", std), ("bound", bound)):
        if value is not None:
            checks.fail(name, argument, f"left out for kind={kind!r}", value)
    needed = {"dropout": ("fan_in",), "drop_connect": ("fan_in", "fan_out"), "gaussian": ("fan_out",)}[kind]
    for argument, value in (("fan_in", fan_in), ("fan_out", fan_out)):
        if value is not None or argument in needed:
            checks.integer(name, argument, value, low=1)
    if not gaussian:
        checks.number(name, "rate", rate, low=0.0, high=1.0)
        count = math.prod({"fan_in": fan_in, "fan_out": fan_out}[argument] or 1 for argument in needed)
        delta = jnp.asarray(rate, trees.accumulator(rate))
        dropped = delta > 0
        # Not 1 - delta**count: for a rate near 1 that would be the difference of two nearly equal numbers.
        return jnp.where(dropped, -jnp.expm1(count * jnp.log(jnp.where(dropped, delta, 1))), 1)
    checks.number(name, "std", std, low=0.0)
    sigma = jnp.asarray(std, trees.accumulator(std))
    if bound is None:
        return jnp.ones_like(sigma)
    distance = jnp.asarray(checks.number(name, "bound", bound, low=0.0), sigma.dtype) * math.sqrt(fan_out or 1)
    noisy = sigma > 0
    return jnp.where(noisy, erf(distance / (math.sqrt(2) * jnp.where(noisy, sigma, 1))), 1)
