"""Averages of the weights over time, and the batch statistics that an average needs."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from regjax.core import checks, trees
from regjax.core.strength import resolve
from regjax.core.types import Array, PyTree, Stateful, Strength


class EMAState(NamedTuple):
    """The memory of `ema`: the average, floating leaves in float32 or better, others as they last were.

    Attributes:
      average: the average so far.
      steps: int32, the updates so far.
      weight: float32, the weight of what is in the average: 1, or rising to 1 where the bias is corrected.
    """

    average: PyTree
    steps: Array
    weight: Array


class SWAState(NamedTuple):
    """The memory of `swa`: the mean, floating leaves in float32 or better, and of how many parameters it is, int32."""

    average: PyTree
    size: Array


def ema(decay: Strength = 0.999, *, debias: bool = False, warmup: bool = False) -> Stateful:
    r"""An exponential moving average of the parameters: the slow copy that teaches, or that is tested.

    Formula:
      .. math:: a \leftarrow \gamma a + (1 - \gamma) \theta

      starting with a from the parameters that ``init`` gets. With ``debias`` those do not count, and the average is

      .. math:: a_t = \frac{\sum_{s \le t} c_s \theta_s}{\sum_{s \le t} c_s}, \quad
        c_s = (1 - \gamma_s) \gamma_{s+1} ... \gamma_t

      With ``warmup`` the decay of update t, from 0, is :math:`\min(\gamma, \frac{1 + t}{10 + t})`, so that the first weights
      are soon forgotten. Leaves that are no floats (counters, keys) are those of the latest parameters.

    Args:
      decay: :math:`\gamma`, in [0, 1], default 0.999; a number or a schedule. 0 is the parameters themselves. ELR+ takes
        ``lambda step: 0.997 * sigmoid_rampup(step + 1, 40_000)`` on CIFAR and
        ``lambda step: jnp.minimum(1 - 1 / (step + 1), 0.9999)`` elsewhere.
      debias: whether to leave the parameters of ``init`` out, default False.
      warmup: whether to begin with a smaller decay, default False.

    Returns:
      ``init(params) -> EMAState``, and ``apply(state, params, *, step=None) -> (average, state)``, to be called after the
      update; ``step`` is asked for by a schedule. The average has the dtypes of ``params``, the state float32 or better:
      in bfloat16 a decay above 0.996 would never move. No gradient flows to either.

    Raises:
      ValueError: if ``decay`` lies outside [0, 1] or an option is no bool; in ``apply``, if the state is not of these parameters,
        or a schedule is left without ``step``.

    Cost:
      A copy of the parameters and one pass over them; sharded as they are.
      XLA at 16 times [512, 512]: at most 1.7 times the FLOPs and 1.4 times the bytes of a copy of its arguments, and 0 times
      its memory more.

    Use:
      For: noisy labels, unstable training.
      When: A slow teacher is wanted (`elr_plus`, `mesa`, self-supervision), or test weights that do not jitter at a constant or
        slowly falling rate. Set ``warmup`` or ``debias`` if the run is not many times 1 / (1 - decay) steps long.
      Not when: The learning rate decays to 0: the last weights hardly move and the average adds nothing. Short runs at the
        default decay still hold the initial weights.
      Badly with: Batch statistics that are not averaged or measured along with it (`recompute_batch_stats`); growing masks as
        in `prune`, whose removed weights live on in the average until `apply_mask`; spheres and orthonormal sets, which a mean
        leaves.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> teacher = rj.weights.ema(0.9)
      >>> state = teacher.init({"kernel": jnp.zeros(2)})
      >>> average, state = teacher.apply(state, {"kernel": jnp.ones(2)})
      >>> [round(float(x), 4) for x in average["kernel"]]
      [0.1, 0.1]

    References:
      Tarvainen and Valpola, Mean Teachers Are Better Role Models: Weight-averaged Consistency Targets Improve Semi-supervised
      Deep Learning Results, 2017, arXiv 1703.01780; the schedules are those of the code of Liu et al., Early-Learning
      Regularization Prevents Memorization of Noisy Labels, 2020, arXiv 2007.00151. The correction of the bias is that of Kingma
      and Ba, Adam: A Method for Stochastic Optimization, 2014, arXiv 1412.6980, for any schedule; the warm-up is common
      practice, of no paper.
    """
    name = "weights.ema"
    checks.strength(name, "decay", decay, low=0.0, high=1.0)
    checks.boolean(name, "debias", debias)
    checks.boolean(name, "warmup", warmup)

    def init(params: PyTree) -> EMAState:
        start = jnp.zeros if debias else jnp.ones
        return EMAState(_start(params), jnp.zeros((), jnp.int32), start((), jnp.float32))

    def apply(state: EMAState, params: PyTree, *, step: Any = None) -> tuple[PyTree, EMAState]:
        params = _frozen(params)
        _check_state(name, EMAState, state, params)
        gamma = resolve(decay, step, name, "decay")
        if warmup:
            gamma = jnp.minimum(jnp.asarray(gamma, jnp.float32), (1 + state.steps) / (10 + state.steps))
        weight = state.weight
        if debias:
            # The average of the state is the corrected one, so its own decay is smaller: 0 at the first update.
            gamma = jnp.asarray(gamma, jnp.float32)
            weight = gamma * state.weight + (1 - gamma)
            gamma = jnp.where(weight > 0, gamma * state.weight / jnp.where(weight > 0, weight, 1), 1)

        def leaf(old: Any, new: Any) -> Any:
            if not trees.is_float(new):
                return new
            g = jnp.asarray(gamma, old.dtype)
            # At 0 exactly the new value, whatever the old one holds.
            return jnp.where(g == 0, trees.widen(new), g * old + (1 - g) * trees.widen(new))

        average = jax.tree.map(leaf, state.average, params)
        return _narrow(average, params), EMAState(average, state.steps + 1, weight)

    return Stateful(init, apply)


def swa(*, start: int = 0, period: int = 1) -> Stateful:
    r"""Stochastic weight averaging: the mean of the parameters that training at a constant rate passes through.

    Formula:
      .. math:: a \leftarrow a + \frac{\theta - a}{n + 1}, \quad n \leftarrow n + 1
        \quad at \quad t = t_0, t_0 + c, t_0 + 2 c, ...

      for the average a, the start :math:`t_0` and the period c. Leaves that are no floats (counters, keys) are those of the
      latest parameters.

    Args:
      start: the step of the first parameters that count, at least 0, default 0; the authors take 75% of the training.
      period: the number of steps between two that count, at least 1, default 1; the authors take an epoch.

    Returns:
      ``init(params) -> SWAState``, and ``apply(state, params, *, step) -> (average, state)``, to be called after the update. The
      average has the dtypes of ``params``, and is ``params`` before ``start``; the state is in float32 or better. No gradient
      flows to either. The running statistics of batch normalisation are not averaged but measured: `recompute_batch_stats`.

    Raises:
      ValueError: if ``start`` or ``period`` is out of range; in ``apply``, if the state is not of these parameters or ``step`` is
        no number.

    Cost:
      A copy of the parameters and one pass over them; sharded as they are.
      XLA at 16 times [512, 512]: at most 2.8 times the FLOPs and 1.7 times the bytes of a copy of its arguments, and 0.01 times
      its memory more.

    Use:
      For: sharp minima, few labels.
      When: The last quarter of training runs at a constant or cyclic rate that is large enough for the weights to wander;
        average once per epoch, or with `sgdr` at the end of each cycle by ``period``.
      Not when: The rate falls to 0 as in `one_cycle`: there is nothing to average. From step 0 the mean holds weights of the
        untrained network: set ``start``.
      Badly with: Batch normalisation without `recompute_batch_stats`; `ema` of the same run, two averages of one thing; growing
        masks as in `prune`, and constraint sets that are not convex, such as spheres.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> averager = rj.weights.swa(start=1)
      >>> state = averager.init(jnp.float32(0.0))
      >>> for step, w in enumerate([9.0, 1.0, 2.0, 6.0]):
      ...     average, state = averager.apply(state, jnp.float32(w), step=step)
      >>> float(average)
      3.0

    References:
      Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization, 2018, arXiv 1803.05407. The authors
      average once for each epoch of the last quarter, at a constant learning rate of 0.05.
    """
    name = "weights.swa"
    checks.integer(name, "start", start, low=0)
    checks.integer(name, "period", period, low=1)

    def init(params: PyTree) -> SWAState:
        return SWAState(_start(params), jnp.zeros((), jnp.int32))

    def apply(state: SWAState, params: PyTree, *, step: Any) -> tuple[PyTree, SWAState]:
        params = _frozen(params)
        _check_state(name, SWAState, state, params)
        step = jnp.asarray(checks.number(name, "step", step, low=0.0))
        counts = (step >= start) & ((step - start) % period == 0)
        size = state.size + counts.astype(jnp.int32)

        def leaf(old: Any, new: Any) -> Any:
            if not trees.is_float(new):
                return new
            mean = old + (trees.widen(new) - old) / jnp.maximum(size, 1).astype(old.dtype)
            # The first is taken as it is, whatever the old one holds.
            return jnp.where(counts, jnp.where(size == 1, trees.widen(new), mean), old)

        average = jax.tree.map(leaf, state.average, params)
        shown = jax.tree.map(lambda a, x: jnp.where(size > 0, a.astype(x.dtype), x) if trees.is_float(x) else x, average, params)
        return shown, SWAState(average, size)

    return Stateful(init, apply)


def recompute_batch_stats(apply: Callable[[PyTree, Any], PyTree], params: PyTree, batches: Iterable[Any]) -> PyTree:
    r"""The statistics of batch normalisation for new weights: the mean over batches of those that each batch has.

    Formula:
      .. math:: s \leftarrow s + \frac{b}{n + b} (s_{batch} - s), \quad n \leftarrow n + b

      for batches of b examples. Averaged or interpolated weights need it: the running statistics of the models that went into
      them do not fit.

    Args:
      apply: ``apply(params, batch) -> statistics``, a tree of the means and variances of that batch alone, such as the
        ``batch_stats`` that a Linen model updates with momentum 0. Pass it through ``jax.jit``.
      params: the new weights, as ``apply`` takes them.
      batches: the batches of one epoch, trees of arrays with the examples on axis 0; any iterable, taken one by one.

    Returns:
      The statistics, a tree as ``apply`` returns it, in its dtypes, accumulated in float32 or better; leaves that are no floats
      are those of the last batch. No gradient flows to them.

    Raises:
      ValueError: if ``apply`` is no function or returns trees that differ, ``batches`` is no iterable or empty, or a batch has no
        array or no axis of examples.

    Cost:
      One forward pass over the batches.
      XLA at [1024, 512]: at most 1.2 times the FLOPs and 1.6 times the bytes of a forward pass, and 0.16 times its memory more.

    Use:
      Part of: `swa`, `ema`, `uniform_soup`, `interpolate`.
      When: After any average, interpolation or projection of weights in a model with batch normalisation, before evaluation.
        Models with layer or group normalisation do not need it.
      Badly with: Small batches: the variance is the mean of the batches' own and misses that between their means. Feed the
        training inputs without `mixup` or erasing if the model is tested without.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> batches = [jnp.array([[1.0], [3.0]]), jnp.array([[8.0]])]
      >>> stats = rj.weights.recompute_batch_stats(lambda w, x: {"mean": jnp.mean(w * x, axis=0)}, 1.0, batches)
      >>> [round(float(x), 4) for x in stats["mean"]]
      [4.0]

    References:
      Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization, 2018, arXiv 1803.05407: the pass that
      their code makes after training. The variance is the mean of the batches' own, as there, without that of their means.
    """
    name = "weights.recompute_batch_stats"
    checks.function(name, "apply", apply)
    if not isinstance(batches, Iterable) or isinstance(batches, (str, Mapping, jax.Array, np.ndarray)):
        checks.fail(name, "batches", "an iterable of batches", batches)
    mean = like = None
    seen = 0
    for batch in batches:
        size = _batch_size(name, batch)
        like = _frozen(apply(params, batch))
        if seen:
            checks.same_structure(name, "apply", like, mean, "the first batch's statistics")
        seen += size
        mean = like if not seen - size else mean
        share = size / seen
        mean = jax.tree.map(
            lambda m, x, share=share: trees.widen(m) + share * (trees.widen(x) - trees.widen(m)) if trees.is_float(x) else x,
            mean,
            like,
        )
    if not seen:
        checks.fail(name, "batches", "an iterable of one batch or more", batches)
    return _narrow(mean, like)


def _batch_size(name: str, batch: Any) -> int:
    """How many examples a batch has."""
    leaves = [leaf for leaf in jax.tree.leaves(batch) if jnp.ndim(leaf)]
    if not leaves or not len(leaves[0]):
        checks.fail(name, "batches", "batches of arrays with one example or more on axis 0", batch)
    return len(leaves[0])


def _narrow(tree: PyTree, like: PyTree) -> PyTree:
    """A tree in the dtypes of another."""
    return jax.tree.map(lambda a, x: a.astype(x.dtype), tree, like)


def _frozen(params: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jax.lax.stop_gradient(jnp.asarray(x)), params)


def _start(params: PyTree) -> PyTree:
    """The first average."""
    return trees.widen(_frozen(params))


def _check_state(name: str, kind: Any, state: Any, params: PyTree) -> None:
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    if not isinstance(state, kind) or shapes(state.average) != shapes(params):
        checks.fail(name, "state", f"the {kind.__name__} that init() makes of these parameters", state)
