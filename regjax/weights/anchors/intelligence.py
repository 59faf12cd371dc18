"""Consolidation by what each parameter did for the loss on its way: synaptic intelligence."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks, sharding
from regjax.core.types import Array, PyTree, Strength, Where
from regjax.weights.anchors import _memory


class SIState(NamedTuple):
    """The memory of `si`: trees as the parameters, with None for leaves that are not consolidated.

    Attributes:
      minimum: the parameters after the last task, at first 0.
      importance: the prior's precision and the importances of all tasks so far.
      start: the parameters at the start of the current task.
      path: what each parameter has taken from the loss in the current task.
    """

    minimum: PyTree
    importance: PyTree
    start: PyTree
    path: PyTree


def si_init(params: PyTree, *, precision: Strength = 1.0, where: Where = "all") -> SIState:
    r"""The memory of `si` before the first task: a normal prior around zero.

    Formula:
      .. math:: m = 0, \quad H = \pi, \quad \theta_0 = \theta, \quad \omega = 0

      so that the penalty of the first task is :math:`\frac{\pi}{2} \|\theta\|^2`.

    Args:
      params: the parameters that the first task starts from, :math:`\theta`.
      precision: :math:`\pi`, at least 0, default 1; with 0 the first task has no penalty, as in the authors' method.
      where: which leaves: "all" (default), None or "kernels", a predicate ``(path, leaf) -> bool``, or a tree of booleans. The
        memory keeps the choice.

    Returns:
      An `SIState` in float32 or better.

    Raises:
      ValueError: if ``precision`` is negative or no number, or the choice of leaves is none.

    Cost:
      Four copies of the parameters.
      XLA at 32 times [512, 512]: at most 0 times the FLOPs and 1.1 times the bytes of a copy of its results, and 0 times its
      memory more.

    Use:
      Part of: `si`.
      When: Once, with the parameters that the first task starts from. ``precision=0`` is the authors' method, above 0 adds a
        decay in the first task.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> state = rj.weights.si_init(jnp.array([1.0, 2.0]), precision=0.5)
      >>> state.importance.tolist(), state.start.tolist()
      ([0.5, 0.5], [1.0, 2.0])

    References:
      See `si`.
    """
    name = "weights.si_init"
    checks.number(name, "precision", precision, low=0.0)
    full = lambda value: _memory.memory(name, params, where, lambda x: jnp.zeros_like(x) + jnp.asarray(value, x.dtype))
    # A copy: the caller may donate the parameters.
    return SIState(full(0.0), full(precision), _memory.memory(name, params, where, jnp.copy), full(0.0))


def si_step(state: SIState, gradients: PyTree, updates: PyTree) -> SIState:
    r"""Counts one training step in the memory of `si`: how much each parameter has lowered the loss.

    Formula:
      .. math:: \omega_i \leftarrow \omega_i - g_i \, \delta_i

    Args:
      state: the `SIState` so far.
      gradients: g, the gradient of the task's loss alone, without the penalty; a tree as the parameters. So the penalty stands in
        the chain of the optimiser (`regjax.gradients.add_penalty`), not in the loss.
      updates: :math:`\delta`, what the optimiser adds to the parameters in this step; a tree as the parameters.

    Returns:
      The `SIState` after the step.

    Raises:
      ValueError: if ``state`` or ``updates`` is not of the parameters of ``gradients``.

    Cost:
      One pass over the parameters.
      XLA at 48 times [512, 512]: at most 0.37 times the FLOPs and 0.37 times the bytes of a copy of its arguments, and 0 times
      its memory more.

    Use:
      Part of: `si`.
      When: In every training step, after the optimiser has given its updates and before or after they are applied; carry the
        state in the compiled step.
      Badly with: Gradients that hold the penalty, and projections after the step (`proximal_step` outside the chain), whose
        move is then missing from the updates.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> state = rj.weights.si_init(jnp.zeros(2))
      >>> state = rj.weights.si_step(state, gradients=jnp.array([2.0, 0.0]), updates=jnp.array([-0.5, 1.0]))
      >>> state.path.tolist()
      [1.0, 0.0]

    References:
      See `si`.
    """
    name = "weights.si_step"
    _memory.check_state(name, state, SIState, "si_init()")
    path = _memory.along(name, "state.path", state.path, gradients)
    moves = _memory.along(name, "updates", updates, gradients)

    def leaf(old: Any, gradient: Any, move: Any) -> Any:
        if old is None or move is None:
            return old
        g, d = (jax.lax.stop_gradient(jnp.asarray(x)).astype(old.dtype) for x in (gradient, move))
        return old - g * d

    after = [leaf(*args) for args in zip(path, jax.tree.leaves(gradients), moves, strict=True)]
    return state._replace(path=jax.tree.unflatten(jax.tree.structure(gradients), after))


def si_update(state: SIState, params: PyTree, *, xi: float = 0.1, nonnegative: bool = False) -> SIState:
    r"""Closes a task in the memory of `si`: what each parameter did for the loss, over the square of how far it went.

    Formula:
      .. math:: H_i \leftarrow H_i + \frac{\omega_i}{(\theta_i - \theta_{0,i})^2 + \xi}, \quad m \leftarrow \theta,
        \quad \theta_0 \leftarrow \theta, \quad \omega \leftarrow 0

    Args:
      state: the `SIState` at the end of the task.
      params: the parameters at the end of the task, :math:`\theta`, from which the next one starts.
      xi: :math:`\xi`, above 0, default 0.1: what a parameter that did not move is divided by.
      nonnegative: whether a task's importances below 0, of parameters that moved against the gradient, count as 0; default
        False. They would draw a parameter away from its minimum.

    Returns:
      The `SIState` with which the next task starts.

    Raises:
      ValueError: if ``state`` is not of these parameters, ``xi`` is no number above 0, or ``nonnegative`` is no bool.

    Cost:
      One pass over the parameters and the memory, once for each task.
      XLA at 40 times [512, 512]: at most 1.1 times the FLOPs and 1.7 times the bytes of a copy of its arguments, and 0.13 times
      its memory more.

    Use:
      Part of: `si`.
      When: Once at the end of each task. Search ``xi`` with the strength: it bounds the importance of weights that hardly
        moved.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> state = rj.weights.si_init(jnp.zeros(1), precision=0.0)
      >>> state = rj.weights.si_step(state, gradients=jnp.array([2.0]), updates=jnp.array([-0.5]))
      >>> [round(float(x), 4) for x in rj.weights.si_update(state, jnp.array([-0.5]), xi=0.25).importance]
      [2.0]

    References:
      See `si`. The authors take 0.1 and 0.001 for :math:`\xi`; ``nonnegative`` is not in the paper's formula.
    """
    name = "weights.si_update"
    checks.number(name, "xi", xi, low=0.0, open_low=True)
    checks.boolean(name, "nonnegative", nonnegative)
    _memory.check_state(name, state, SIState, "si_init()")
    found = [_memory.along(name, f"state.{field}", getattr(state, field), params) for field in SIState._fields]

    def leaf(w: Any, minimum: Any, importance: Any, start: Any, path: Any) -> tuple[Any, ...]:
        if importance is None:
            return minimum, importance, start, path
        here = sharding.placed_like(jax.lax.stop_gradient(jnp.asarray(w)).astype(start.dtype), start)
        new = path / (jnp.square(here - start) + jnp.asarray(xi, path.dtype))
        new = jnp.maximum(new, 0) if nonnegative else new
        # Copies: the caller may donate the parameters, and the state.
        return jnp.copy(here), jax.lax.stop_gradient(importance + new), jnp.copy(here), jnp.zeros_like(path)

    after = [leaf(*args) for args in zip(jax.tree.leaves(params), *found, strict=True)]
    rebuild = lambda leaves: jax.tree.unflatten(jax.tree.structure(params), leaves)
    return SIState(*(rebuild([places[i] for places in after]) for i in range(len(SIState._fields))))


def si(params: PyTree, state: SIState, *, weight: Strength = 1.0) -> Array:
    r"""Keeps what earlier tasks have taught: parameters that lowered their losses are held near their old values (SI).

    Formula:
      .. math:: \frac{w}{2} \sum_i H_i (\theta_i - m_i)^2

      with the memory of `si_init`, `si_step` at every training step and `si_update` at the end of a task, constant. No pass
      over the data of a finished task is needed.

    Args:
      params: a parameter tree, :math:`\theta`.
      state: the `SIState`. ``partial(si, state=state)`` is a penalty ``f(params) -> scalar``: build it inside the compiled
        step, which carries the state.
      weight: w, at least 0, default 1; 0 is fine-tuning. The authors' c is w / 2.

    Returns:
      A scalar in float32 or better.

    Raises:
      ValueError: if ``state`` is not of these parameters, or ``weight`` is negative or no number.

    Cost:
      One pass over the parameters and the memory each way.
      XLA at 40 times [512, 512]: at most 1.6 times the FLOPs and 0.89 times the bytes of a copy of its arguments, and 0.056
      times its memory more.

    Use:
      For: forgetting.
      When: Tasks come one after another and no pass over a finished task's data is possible: importance is gathered during
        training. In the continual study it was level with `ewc`, for a linear head and for an MLP.
      Not when: The head is small enough for `quadratic_consolidation`, which kept more; or the model comes trained, with no
        path of its first task to count.
      Badly with: The penalty inside the loss: `si_step` wants the gradient of the task alone, so put it in the chain with
        `add_penalty`. Large momentum and noisy steps make importances negative: use ``nonnegative=True``.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> state = rj.weights.si_init(jnp.zeros(2), precision=2.0)
      >>> float(rj.weights.si(jnp.array([2.0, 1.0]), state, weight=0.5))
      2.5

    References:
      Zenke et al., Continual Learning through Synaptic Intelligence, 2017, arXiv 1703.04200; the prior, and the half, as in the
      code of Zhu and Kuruoglu, On Sequential Loss Approximation for Continual Learning, 2024, arXiv 2405.16498, where the path
      has the other sign: here, as in the paper, a parameter that lowers the loss gains importance.
    """
    name = "weights.si"
    checks.number(name, "weight", weight, low=0.0)
    _memory.check_state(name, state, SIState, "si_init()")
    minimum = _memory.along(name, "state.minimum", state.minimum, params)
    importance = _memory.along(name, "state.importance", state.importance, params)
    return _memory.diagonal(params, *_memory.both(minimum, importance), weight)
