"""Averages of the weights over time."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.strength import resolve
from regjax.core.types import PyTree, Stateful, Strength


class EMAState(NamedTuple):
    """The memory of `ema`: the average, floating leaves in float32 or better, others as they last were."""

    average: PyTree


def ema(decay: Strength = 0.999) -> Stateful:
    r"""An exponential moving average of the parameters: the slow copy that teaches, or that is tested.

    Formula:
      .. math:: \bar\theta \leftarrow \gamma \bar\theta + (1 - \gamma) \theta

      starting from the parameters that ``init`` gets, so that no bias needs correcting. Leaves that are no floats (counters,
      keys) are those of the latest parameters.

    Args:
      decay: :math:`\gamma`, in [0, 1], default 0.999; a number or a schedule. 0 is the parameters themselves. ELR+ takes
        ``lambda step: 0.997 * sigmoid_rampup(step + 1, 40_000)`` on CIFAR and
        ``lambda step: jnp.minimum(1 - 1 / (step + 1), 0.9999)`` elsewhere.

    Returns:
      ``init(params) -> EMAState``, and ``apply(state, params, *, step=None) -> (average, state)``, to be called after the
      update; ``step`` is asked for by a schedule. The average has the dtypes of ``params``, the state float32 or better:
      in bfloat16 a decay above 0.996 would never move. No gradient flows to either.

    Raises:
      ValueError: if ``decay`` lies outside [0, 1]; in ``apply``, if the state is not of these parameters, or a schedule is
        left without ``step``.

    Cost:
      A copy of the parameters and one pass over them; sharded as they are.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> teacher = rj.weights.ema(0.9)
      >>> state = teacher.init({"kernel": jnp.zeros(2)})
      >>> average, state = teacher.apply(state, {"kernel": jnp.ones(2)})
      >>> [round(float(x), 4) for x in average["kernel"]]
      [0.1, 0.1]

    References:
      Tarvainen and Valpola, Mean Teachers Are Better Role Models, 2017, arXiv 1703.01780; the schedules are those of the code
      of Liu et al., Early-Learning Regularization Prevents Memorization of Noisy Labels, 2020, arXiv 2007.00151.
    """
    name = "weights.ema"
    checks.strength(name, "decay", decay, low=0.0, high=1.0)

    def wide(x: Any) -> Any:
        return x.astype(trees.accumulator(x)) if trees.is_float(x) else x

    def init(params: PyTree) -> EMAState:
        return EMAState(jax.tree.map(lambda x: jax.lax.stop_gradient(wide(jnp.asarray(x))), params))

    def apply(state: EMAState, params: PyTree, *, step: Any = None) -> tuple[PyTree, EMAState]:
        params = jax.tree.map(lambda x: jax.lax.stop_gradient(jnp.asarray(x)), params)
        shapes = lambda tree: jax.tree.map(jnp.shape, tree)
        if not isinstance(state, EMAState) or shapes(state.average) != shapes(params):
            checks.fail(name, "state", "the EMAState that init() makes of these parameters", state)
        gamma = resolve(decay, step, name, "decay")

        def leaf(old: Any, new: Any) -> Any:
            if not trees.is_float(new):
                return new
            g = jnp.asarray(gamma, old.dtype)
            # At 0 exactly the new value, whatever the old one holds.
            return jnp.where(g == 0, wide(new), g * old + (1 - g) * wide(new))

        average = jax.tree.map(leaf, state.average, params)
        return jax.tree.map(lambda a, x: a.astype(x.dtype), average, params), EMAState(average)

    return Stateful(init, apply)
