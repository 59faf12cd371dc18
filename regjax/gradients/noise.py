"""Gaussian noise on the gradient, less in every step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from regjax.core import checks, trees
from regjax.core.sharding import explicit_sharding
from regjax.core.strength import resolve
from regjax.core.types import Key, PyTree, Strength
from regjax.gradients.updates import StepState, first_step, is_absent


def gradient_noise(key: Key, *, eta: Strength = 0.01, gamma: Any = 0.55) -> optax.GradientTransformationExtraArgs:
    r"""Adds annealed Gaussian noise to the gradient.

    Formula:
      .. math:: g \leftarrow g + \sigma_t \epsilon, \quad \epsilon \sim N(0, 1), \quad
                \sigma_t^2 = \frac{\eta}{(1 + t)^\gamma}, \quad t = 0, 1, \ldots

    Args:
      key: a random key. The noise follows from it, the step, and the place of a leaf among the floating ones.
      eta: the variance in the first step, at least 0, default 0.01; a number or a schedule of the step. The authors choose
        from 0.01, 0.3 and 1. 0 changes nothing.
      gamma: how fast it falls, at least 0, default 0.55.

    Returns:
      An optax transformation, the first of its chain; after a clipping its noise is not clipped. The state is a `StepState`:
      with the same key a restored one goes on with the same noise. Dtypes and shardings of the updates stay, updates that
      are no floats pass, and the noise is the same on however many devices the weights lie.

    Raises:
      ValueError: if ``key`` is none, or a number is negative or not finite.

    Cost:
      About 90 integer and floating operations for each weight, most of them for random bits: 1.03x the FLOPs of a step of a
      small network on 512 examples.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 1.3 times the FLOPs and 2 times the bytes of a plain training
      step, and 0.51 times its memory more.

    Use:
      For: unstable training.
      When: Very deep networks that are hard to start, poor initialisation, or full batches without noise of their own: the
        authors report gains there. Try a variance far below the default with normal-sized networks.
      Not when: Small batches, which bring noise enough: on the digits comparison it did not help, and the default variance
        hurt. As privacy: nothing is clipped for each example. Against overfitting: `dropout` or `gaussian_noise`.
      Badly with: Adam, whose second moments count the noise and shorten all steps, most where gradients are small. Clipping
        before it: put the noise first. Frozen or pruned weights, unless masked after it. `gradient_dropout`, which reads signs.

    Example:
      >>> import jax, jax.numpy as jnp, optax, regjax as rj
      >>> tx = optax.chain(rj.gradients.gradient_noise(jax.random.key(0), eta=0.3), optax.sgd(1.0))
      >>> params = {"kernel": jnp.zeros((100, 100))}
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> round(float(jnp.var(updates["kernel"])), 1)
      0.3

    References:
      Neelakantan et al., Adding Gradient Noise Improves Learning for Very Deep Networks, 2015, arXiv 1511.06807.
      ``optax.add_noise`` counts its steps from 1.
    """
    name = "gradients.gradient_noise"
    checks.key(name, key)
    checks.strength(name, "eta", eta, low=0.0)
    checks.number(name, "gamma", gamma, low=0.0)

    def update(updates: PyTree, state: StepState, params: PyTree = None, **extra_args: Any) -> tuple[PyTree, StepState]:
        structure: Any = jax.tree.structure(updates, is_leaf=is_absent)
        leaves = structure.flatten_up_to(updates)
        now = jax.random.fold_in(key, state.step)
        variance = resolve(eta, state.step, name, "eta")
        # Numbered among the leaves with a gradient: a counter beside them changes no random number.
        chosen = [i for i, leaf in enumerate(leaves) if not is_absent(leaf) and trees.is_float(leaf)]
        for number, i in enumerate(chosen):
            g = jnp.asarray(leaves[i])
            dtype = trees.accumulator(g)
            deviation = trees.safe_sqrt(jnp.asarray(variance, dtype)) * (1 + state.step.astype(dtype)) ** (
                -jnp.asarray(gamma, dtype) / 2
            )
            noise = jax.random.normal(jax.random.fold_in(now, number), g.shape, dtype, out_sharding=explicit_sharding(g))
            leaves[i] = (g.astype(dtype) + deviation * noise).astype(g.dtype)
        return jax.tree.unflatten(structure, leaves), StepState(optax.safe_increment(state.step))

    return optax.GradientTransformationExtraArgs(first_step, update)
