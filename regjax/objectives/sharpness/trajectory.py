"""Sharpness-aware training for free: penalties on the divergence from a model's own past."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks, classes, examples, sharding, trees
from regjax.core.strength import resolve
from regjax.core.types import Array, PyTree, Stateful, Strength


class SAFState(NamedTuple):
    """The memory of `saf`: what the network said of each example in the last epochs.

    Attributes:
      logits: ``[N, lag + 1, K]``, one slot for each epoch in turn; each row's largest is 0.
      epochs: int32 ``[N, lag + 1]``, the epoch in which a slot was filled, -1 where it never was.
    """

    logits: Array
    epochs: Array


class MESAState(NamedTuple):
    """The memory of `mesa`: the moving average of the parameters, floating leaves in float32 or better."""

    average: PyTree


class MESA(NamedTuple):
    """The three functions of `mesa`: the start, the penalty, and the average after an update."""

    init: Callable[[PyTree], MESAState]
    apply: Callable[..., Array]
    update: Callable[[MESAState, PyTree], MESAState]


def trajectory_kl(logits: Any, past_logits: Any, *, temperature: Strength = 5.0, where: Any = None) -> Array:
    r"""The divergence of a model's predictions from those of its past: how far the loss fell in between.

    Formula:
      .. math:: \frac{T^2}{B} \sum_i \sum_k q_{ik} (\log q_{ik} - \log p_{ik}), \quad q = softmax(sg(z') / T),
        \quad p = softmax(z / T)

      with the gradient :math:`\frac{T}{B} (p - q)` to the logits z. For a large T it is half the squared distance of the
      centred logits, over K.

    Args:
      logits: float ``[..., K]``, z, classes last.
      past_logits: float ``[..., K]`` of the same shape, z', a constant.
      temperature: T, above 0, default 5.
      where: boolean ``[...]``: which examples count, default all; the mean is over those.

    Returns:
      A scalar in float32 or better; 0 if no example counts.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``temperature`` is not above 0.

    Cost:
      Two softmaxes; no extra pass of the model.
      XLA at [1024, 1000]: at most 8 times the FLOPs and 2.6 times the bytes of cross-entropy, and 0.55 times its memory more.

    Use:
      Part of: `saf`, `mesa`.
      When: Call it with past logits of your own keeping, such as those of a snapshot of the weights.
      Badly with: Logits of other augmentations or partners of mixing than the past ones.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> now, then = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])
      >>> round(float(rj.objectives.trajectory_kl(now, then, temperature=5.0)), 4)
      0.4983

    References:
      Du et al., Sharpness-Aware Training for Free, 2022, arXiv 2205.14083. The authors' code takes the logarithm of the
      softmax, which is minus infinity for small probabilities; here it is a log-softmax.
    """
    name = "objectives.trajectory_kl"
    x = classes.class_inputs(name, logits)
    past = checks.floating(name, "past_logits", past_logits, shape=jnp.shape(logits))
    where = checks.example_mask(name, "where", where, x.logits.shape[:-1])
    past, now = (v if where is None else jnp.where(where[..., None], v, 0) for v in (past, x.logits))
    each = _divergence(name, now, past, temperature)
    return jnp.mean(each) if where is None else _mean(each, where)


def saf(
    *,
    num_examples: int,
    num_classes: int,
    weight: Strength = 0.3,
    temperature: Strength = 5.0,
    lag: int = 3,
    start_epoch: int = 5,
    end_epoch: int | None = None,
    dtype: Any = "float32",
) -> Stateful:
    r"""SAF: holds each example's prediction to the one some epochs ago, which keeps training on a flat path, at no extra pass.

    Formula:
      .. math:: w \frac{T^2}{B} \sum_i KL(softmax(z'_i / T) \,\|\, softmax(z_i / T))

      with the logits z of the batch and z' of the same examples ``lag`` epochs before, a constant; added to the cross-entropy
      where ``start_epoch < epoch < end_epoch``. An example that was not seen in that epoch adds 0.

    Args:
      num_examples: N, the size of the training set.
      num_classes: K.
      weight: w, at least 0, default 0.3; a number or a schedule. 0 adds nothing, with the memory kept.
      temperature: T, above 0, default 5; a number or a schedule.
      lag: how many epochs back, at least 1, default 3.
      start_epoch: the penalty acts after this epoch, at least 0, default 5; epochs count from 0.
      end_epoch: and before this one; None (default): to the end.
      dtype: a floating dtype of the memory, default float32. float16 halves it: the logits are stored relative to each
        example's largest, so that they do not overflow.

    Returns:
      ``init() -> SAFState``, and ``apply(state, logits, indices, epoch, *, step=None, mask=None) -> (penalty, state)`` with the
      logits ``[B, K]`` of the training pass (of the augmented inputs), the integer positions ``[B]`` of the examples in the
      training set (no two alike), and the epoch, an integer or traced scalar. ``step`` is asked for by schedules; ``mask``,
      boolean ``[B]``, names the examples that count: the others, of a padded batch, add 0 and leave the memory alone. A
      position outside [0, N) gives a NaN penalty and writes nothing. With mixed inputs the memory holds the logits of the
      mixtures, under the position of the first image.

    Raises:
      ValueError: if a size, strength or dtype does not fit; in ``apply``, if the state is not of these sizes, a shape or dtype
        does not fit, NumPy positions lie outside [0, N), or a schedule is left without ``step``.

    Cost:
      No forward or backward pass: 1.02 times the FLOPs. A memory of ``4 N K (lag + 1)`` bytes in float32, B rows of which are
      read and written; a jit that donates it updates it in place. It may be sharded over N: ``jax.jit(memory.init,
      out_shardings=...)()``. XLA counts the write as a pass over the whole memory.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 1.2 times the FLOPs and 5.9 times the bytes of a plain training
      step, and 0 times its memory more.

    Use:
      For: sharp minima, compute budget.
      When: A flatter path is wanted at the time of a plain step and the logits of the training set fit in memory. On digits it
        was flatter at equal loss; with wrong labels it gained little, unevenly over seeds, above the default weight.
      Not when: Data is streamed or drawn with repetition, or training has few epochs beyond start_epoch and lag. Examples times
        classes is too much memory: `mesa`.
      Badly with: `mixup` and `cutmix`, whose past mixtures had other partners. `elr` and `ps_kd`, which hold to past
        predictions too. Positions that are drawn anew each epoch. `importance_sampling`, which repeats examples in a batch.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> memory = rj.objectives.saf(num_examples=100, num_classes=2, weight=1.0, lag=1, start_epoch=0)
      >>> state = memory.init()
      >>> _, state = memory.apply(state, jnp.array([[0.0, 1.0]]), jnp.array([42]), 0)
      >>> penalty, state = memory.apply(state, jnp.array([[1.0, 0.0]]), jnp.array([42]), 1)
      >>> round(float(penalty), 4)
      0.4983

    References:
      Du et al., Sharpness-Aware Training for Free, 2022, arXiv 2205.14083. The defaults are those of the authors' text; their
      code's are a weight of 0.16 and the runs on ImageNet a lag of 2. Their memory does not say in which epoch a slot was
      filled: here an example that was left out of an epoch is not compared with an older one.
    """
    name = "objectives.saf"
    size = checks.integer(name, "num_examples", num_examples, low=1)
    num_classes = checks.integer(name, "num_classes", num_classes, low=1)
    checks.strength(name, "weight", weight, low=0.0)
    checks.strength(name, "temperature", temperature, low=0.0, open_low=True)
    slots = checks.integer(name, "lag", lag, low=1) + 1
    _check_epochs(name, start_epoch, end_epoch)
    try:
        stored = jnp.dtype(dtype)
    except TypeError:
        checks.fail(name, "dtype", "a floating-point dtype", dtype)
    if not jnp.issubdtype(stored, jnp.floating):
        checks.fail(name, "dtype", "a floating-point dtype", dtype)
    if stored == jnp.float64 and jnp.result_type(float) != jnp.float64:
        checks.fail(name, "dtype", "float32 or narrower unless jax_enable_x64 is set", dtype)

    def init() -> SAFState:
        return SAFState(jnp.zeros((size, slots, num_classes), stored), jnp.full((size, slots), -1, jnp.int32))

    def apply(
        state: SAFState, logits: Any, indices: Any, epoch: Any, *, step: Any = None, mask: Any = None
    ) -> tuple[Array, SAFState]:
        if not isinstance(state, SAFState):
            checks.fail(name, "state", "the SAFState that init() makes", state)
        checks.floating(name, "state.logits", state.logits, shape=(size, slots, num_classes))
        checks.integers(name, "state.epochs", state.epochs, shape=(size, slots))
        z = checks.floating(name, "logits", logits, shape=(None, num_classes))
        counts = checks.example_mask(name, "mask", mask, z.shape[:1])
        rows = examples.rows(name, "indices", indices, len(z), size, counts)
        now = jnp.asarray(checks.number(name, "epoch", epoch, low=0.0)).astype(jnp.int32)

        read, write, known = (sharding.rows_like(r, z) for r in (rows.read, rows.write, rows.known))
        past, seen = sharding.take_rows(state.logits, read), sharding.take_rows(state.epochs, read)
        z = sharding.rows_like(z, past)
        known = sharding.along(known, past)
        counts = jnp.ones_like(known) if counts is None else sharding.along(counts, past)
        z = jnp.where(counts[:, None], z, 0)  # padding may hold anything

        slot = jnp.arange(slots, dtype=jnp.int32) + jnp.zeros_like(seen)
        then = (slot == (now - lag) % slots) & (seen == now - lag) & (now >= lag)
        reference = jnp.sum(jnp.where(then[..., None], past, 0), axis=1)  # one slot at most
        each = _divergence(name, z, reference, resolve(temperature, step, name, "temperature"))
        scale = jnp.asarray(checks.number(name, "weight", resolve(weight, step, name, "weight"), low=0.0), each.dtype)
        acts = _acts(now, start_epoch, end_epoch) & (scale != 0)
        each = jnp.where(jnp.any(then, axis=1) & acts, each, 0)
        penalty = scale * _mean(jnp.where(known, each, jnp.nan), counts)

        here = slot == now % slots
        current = _centred(jax.lax.stop_gradient(z), past.dtype)
        # What is written comes from what was read: so the compiler knows that it may write in place.
        logits = jnp.where(here[..., None], current[:, None, :], past)
        epochs = jnp.where(here, now, seen)
        return penalty, SAFState(sharding.set_rows(state.logits, write, logits), sharding.set_rows(state.epochs, write, epochs))

    return Stateful(init, apply)


def mesa(*, weight: Strength = 0.8, temperature: Strength = 5.0, decay: Strength = 0.9995, start_epoch: int = 5) -> MESA:
    r"""MESA: holds predictions to those of the moving average of the weights, SAF without a memory of the examples.

    Formula:
      .. math:: w \frac{T^2}{B} \sum_i KL(softmax(z'_i / T) \,\|\, softmax(z_i / T)),
        \quad a \leftarrow \gamma a + (1 - \gamma) \theta

      with the logits z' of the averaged weights a on the same inputs, a constant; added to the cross-entropy where
      ``epoch > start_epoch``.

    Args:
      weight: w, at least 0, default 0.8; a number or a schedule. 0 adds nothing.
      temperature: T, above 0, default 5; a number or a schedule.
      decay: :math:`\gamma`, in [0, 1], default 0.9995; a number or a schedule.
      start_epoch: the penalty acts after this epoch, at least 0, default 5; epochs count from 0.

    Returns:
      Three functions. ``init(params) -> MESAState``, whose ``average`` are the parameters to evaluate.
      ``apply(state, logits, ema_logits, epoch, *, step=None, mask=None) -> penalty`` with the logits ``[B, K]`` of the training
      pass and those of ``state.average`` on the same augmented batch, in evaluation mode (running statistics, no dropout);
      ``mask``, boolean ``[B]``, names the examples that count. ``update(state, params, *, step=None) -> MESAState``, to be called
      after the optimiser. ``step`` is asked for by schedules.

    Raises:
      ValueError: if a strength or epoch does not fit; in the functions, if the state is not of these parameters, a shape or dtype
        does not fit, or a schedule is left without ``step``.

    Cost:
      One forward pass for ``ema_logits``, a third more FLOPs, and a float32 copy of the parameters; SAF needs no pass and a
      memory of the training set instead.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 1.5 times the FLOPs and 1.7 times the bytes of a plain training
      step, and 0.17 times its memory more.

    Use:
      For: sharp minima.
      When: As `saf`, where data is a stream or the set is too large for a memory of logits, and an average of the weights is
        kept for evaluation anyway.
      Not when: The run is short beside the average, which at the default decay looks thousands of steps back. A forward pass
        more is too dear: `saf`.
      Badly with: `ema` beside it, a second average of the same weights: evaluate the state's own. BatchNorm without averages of
        its own for the averaged weights. Other random inputs for the two passes: both must see the same augmented batch.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> method = rj.objectives.mesa(weight=1.0, decay=0.9, start_epoch=0)
      >>> state = method.init({"kernel": jnp.zeros(1)})
      >>> round(float(method.apply(state, jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]]), 1)), 4)
      0.4983
      >>> round(float(method.update(state, {"kernel": jnp.ones(1)}).average["kernel"][0]), 4)
      0.1

    References:
      Du et al., Sharpness-Aware Training for Free, 2022, arXiv 2205.14083. The authors' text has a weight of 0.8, their code
      0.3; the decay is 0.9995 in the paper (as recalled) and 0.9998 in the code.
    """
    name = "objectives.mesa"
    checks.strength(name, "weight", weight, low=0.0)
    checks.strength(name, "temperature", temperature, low=0.0, open_low=True)
    checks.strength(name, "decay", decay, low=0.0, high=1.0)
    _check_epochs(name, start_epoch, None)

    def init(params: PyTree) -> MESAState:
        return MESAState(trees.widen(jax.tree.map(lambda x: jax.lax.stop_gradient(jnp.asarray(x)), params)))

    def apply(state: MESAState, logits: Any, ema_logits: Any, epoch: Any, *, step: Any = None, mask: Any = None) -> Array:
        if not isinstance(state, MESAState):
            checks.fail(name, "state", "the MESAState that init() makes", state)
        z = checks.floating(name, "logits", logits, ndim=2)
        past = checks.floating(name, "ema_logits", ema_logits, shape=z.shape)
        counts = checks.example_mask(name, "mask", mask, z.shape[:1])
        now = jnp.asarray(checks.number(name, "epoch", epoch, low=0.0))
        if counts is not None:
            z, past = (jnp.where(counts[:, None], v, 0) for v in (z, past))
        each = _divergence(name, z, past, resolve(temperature, step, name, "temperature"))
        scale = jnp.asarray(checks.number(name, "weight", resolve(weight, step, name, "weight"), low=0.0), each.dtype)
        mean = jnp.mean(each) if counts is None else _mean(each, counts)
        return jnp.where(_acts(now, start_epoch, None) & (scale != 0), scale * mean, 0)

    def update(state: MESAState, params: PyTree, *, step: Any = None) -> MESAState:
        shapes = lambda tree: jax.tree.map(jnp.shape, tree)
        if not isinstance(state, MESAState) or shapes(state.average) != shapes(params):
            checks.fail(name, "state", "the MESAState that init() makes of these parameters", state)
        gamma = checks.number(name, "decay", resolve(decay, step, name, "decay"), low=0.0, high=1.0)

        def leaf(old: Any, new: Any) -> Any:
            new = trees.widen(jax.lax.stop_gradient(jnp.asarray(new)))
            if not trees.is_float(new):
                return new
            g = jnp.asarray(gamma, old.dtype)
            return jnp.where(g == 0, new, g * old + (1 - g) * new)

        return MESAState(jax.tree.map(leaf, state.average, params))

    return MESA(init, apply, update)


def _divergence(name: str, logits: Array, past: Array, temperature: Any) -> Array:
    """``T^2 KL(past || now)`` for each example, in float32 or better."""
    checks.number(name, "temperature", temperature, low=0.0, open_low=True)
    dtype = trees.accumulator(logits)
    t = jnp.asarray(temperature, dtype)
    now = classes.normalise(logits.astype(dtype) / t)
    then = classes.normalise(jax.lax.stop_gradient(past).astype(dtype) / t)
    q = jnp.exp(then.shifted)
    # Divided after the sum, so that no array of probabilities is kept for the backward pass.
    apart = jnp.sum(q * jnp.where(q > 0, then.shifted - now.shifted, 0), axis=-1) / jnp.exp(then.log_total)
    return jnp.square(t) * (apart + now.log_total - then.log_total)


def _mean(values: Array, counts: Array) -> Array:
    """The mean over the examples that count."""
    total = jnp.sum(jnp.where(counts, values, 0))
    return total / jnp.maximum(jnp.sum(counts, dtype=values.dtype), 1)


def _centred(logits: Array, dtype: Any) -> Array:
    """Logits relative to the largest, which no softmax sees, and within the range of a dtype."""
    z = logits.astype(trees.accumulator(logits))
    z = z - jnp.max(z, axis=-1, keepdims=True)
    return jnp.maximum(z, jnp.asarray(jnp.finfo(dtype).min, z.dtype)).astype(dtype)


def _check_epochs(name: str, start_epoch: Any, end_epoch: Any) -> None:
    checks.integer(name, "start_epoch", start_epoch, low=0)
    if end_epoch is not None:
        checks.integer(name, "end_epoch", end_epoch, low=0)


def _acts(epoch: Array, start_epoch: int, end_epoch: int | None) -> Array:
    return (epoch > start_epoch) if end_epoch is None else (epoch > start_epoch) & (epoch < end_epoch)
