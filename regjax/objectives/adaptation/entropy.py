"""Test-time adaptation: the entropy of the model's own predictions, minimised on the unlabelled stream it meets (Tent, EATA)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks, classes, trees
from regjax.core.strength import resolve
from regjax.core.types import Array, PyTree, Stateful, Strength
from regjax.objectives.adaptation.fisher_anchor import FisherAnchor, anchored_distance
from regjax.objectives.lift import AxisName


class EATAState(NamedTuple):
    """The memory of `eata`: the moving average ``[K]`` of selected predictions, all 0 before the first, and the anchor."""

    mean_probs: Array
    fisher: FisherAnchor | None


class EATAInfo(NamedTuple):
    """What `eata_loss` tells beside the loss, all constants.

    Attributes:
      entropy: the entropy of each example, in nats.
      selected: which examples count.
      num_selected: how many; at 0 the optimiser's step is to be left out.
      mean_probs: the moving average ``[K]`` for the next batch.
    """

    entropy: Array
    selected: Array
    num_selected: Array
    mean_probs: Array


def tent_loss(logits: Any, *, axis: int = -1, where: Any = None, mask: Any = None, axis_name: AxisName = None) -> Array:
    r"""The mean entropy of predictions: minimised by the normalisation layers on unlabelled test batches, it is Tent.

    Formula:
      .. math:: \frac{1}{B} \sum_i E_i, \quad E_i = -\sum_k p_{ik} \log p_{ik}, \quad p = softmax(z)

    Args:
      logits: float ``[..., K]``, classes on ``axis``, from a model whose batch normalisation uses the batch's statistics.
      axis: the class axis.
      where: boolean, broadcasts to ``logits``: the classes that exist.
      mask: boolean ``[...]``: the examples that count; None (default): all.
      axis_name: the mapped axis, or a tuple of them, over which the batch is split under ``shard_map`` or ``pmap``: sums and
        counts are added over it.

    Returns:
      A scalar in float32 or better, in nats; 0 where no example counts.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      A softmax. Adapting costs a backward pass for each test batch.
      XLA at [1024, 1000]: at most 6.9 times the FLOPs and 1.6 times the bytes of cross-entropy, and 0.69 times its memory more.

    Use:
      For: distribution shift.
      When: A trained network meets shifted, unlabelled test batches: train scale and bias of its normalisation layers on this
        alone. On a stream of noisy digits it beat the source network. Batches should mix the classes.
      Not when: Batches are single examples or of one class, or the source is wrong on most: entropy then sharpens errors. New
        classes appear. The stream is long or returns to clean data: `eata`.
      Badly with: BatchNorm by stored averages: use the batch's. Training all weights in place of those of `norm_affine_mask`.
        Calibration, as confidence only rises. `dropout` on while adapting.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> round(float(rj.objectives.tent_loss(jnp.array([[4.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))), 6)
      0.576326

    References:
      Wang et al., Tent: Fully Test-Time Adaptation by Entropy Minimization, 2021, arXiv 2006.10726. It trains scale and bias of
      the normalisation layers alone (`norm_affine_mask`); the predictions that count are those before the update.
    """
    name = "objectives.tent_loss"
    p = _predictions(name, logits, axis, where, mask, axis_name)
    total, count = _summed((jnp.sum(jnp.where(p.counts, p.entropy, 0)), jnp.sum(p.counts)), axis_name)
    return total / jnp.maximum(count, 1).astype(total.dtype)


def eata_loss(
    logits: Any,
    mean_probs: Any = None,
    *,
    entropy_margin: Any = None,
    diversity_margin: Any = 0.05,
    params: PyTree = None,
    fisher: FisherAnchor | None = None,
    fisher_weight: Strength = 2000.0,
    momentum: Any = 0.9,
    axis: int = -1,
    where: Any = None,
    mask: Any = None,
    axis_name: AxisName = None,
) -> tuple[Array, EATAInfo]:
    r"""The entropy of the reliable and new examples of a test batch, with an anchor against forgetting: EATA.

    Formula:
      .. math:: \frac{1}{n} \sum_i s_i \, sg(e^{E_0 - E_i}) \, E_i + w \sum_j F_j (\theta_j - \theta^0_j)^2, \quad
                n = \sum_i s_i,

      .. math:: s_i = [E_i < E_0] \, [\cos(p_i, \bar m) < d], \quad
                \bar m \leftarrow \gamma \bar m + (1 - \gamma) \frac{1}{n} \sum_i s_i p_i

      with E the entropy as in `tent_loss`. Before there is an average :math:`\bar m` every example is new, and the first
      becomes the average. If nothing is selected, loss and gradient are 0, the anchor's among them. Without the anchor it is ETA.

    Args:
      logits: float ``[..., K]``, classes on ``axis``.
      mean_probs: float ``[K]``, :math:`\bar m`; None (default) or zeros: none yet.
      entropy_margin: :math:`E_0`, above 0; None (default): 0.4 ln K, with K the number of classes that exist.
      diversity_margin: d, at least 0, default 0.05 (ImageNet; 0.4 on CIFAR-10); above 1 all are new.
      params: the parameters by which the loss is differentiated, for ``fisher``.
      fisher: F and :math:`\theta^0` from `fisher_importance` of parameters like ``params``; None (default): no anchor.
      fisher_weight: w, at least 0, default 2000 (ImageNet; 1 on CIFAR-10). 0 leaves the anchor out.
      momentum: :math:`\gamma`, in [0, 1], default 0.9.
      axis: the class axis.
      where: boolean, broadcasts to ``logits``: the classes that exist.
      mask: boolean ``[...]``: the examples that count; None (default): all.
      axis_name: the mapped axis, or a tuple of them, over which the batch is split under ``shard_map`` or ``pmap``: sums and
        counts are added over it.

    Returns:
      ``(loss, EATAInfo)``: a scalar in float32 or better, and the choice of examples. An optimiser with momentum moves at
      gradient 0 too: where ``info.num_selected`` is 0, keep parameters and its state. No gradient flows to ``mean_probs``,
      ``fisher`` or the info.

    Raises:
      ValueError: if a shape or dtype does not fit, a number is out of range, or ``fisher`` does not fit ``params``.

    Cost:
      A softmax and one pass over the anchored parameters. The backward pass is of the whole batch: shapes are fixed.
      XLA at [1024, 1000]: at most 9.1 times the FLOPs and 2.4 times the bytes of cross-entropy, and 0.69 times its memory more.

    Use:
      Part of: `eata`.
      When: Call it where you keep the mean prediction yourself, or for other axes and classes.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> loss, info = rj.objectives.eata_loss(jnp.array([[4.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
      >>> round(float(loss), 6), info.selected.tolist()
      (0.230465, [True, False])

    References:
      Niu et al., Efficient Test-Time Model Adaptation without Forgetting, 2022, arXiv 2204.02610. The margin is that of the
      authors' script; the default of their class is ln(1000) / 2 - 1. The CIFAR-10 values are the paper's, recalled.
    """
    name = "objectives.eata_loss"
    checks.number(name, "diversity_margin", diversity_margin, low=0.0)
    checks.number(name, "fisher_weight", fisher_weight, low=0.0)
    checks.number(name, "momentum", momentum, low=0.0, high=1.0)
    p = _predictions(name, logits, axis, where, mask, axis_name)
    dtype, num_classes = p.probs.dtype, p.probs.shape[-1]
    if entropy_margin is None:
        margin = 0.4 * jnp.log(jnp.maximum(p.num_classes, 1).astype(dtype))
    else:
        margin = jnp.asarray(checks.number(name, "entropy_margin", entropy_margin, low=0.0, open_low=True), dtype)
    past = jnp.zeros(num_classes, dtype)
    if mean_probs is not None:
        past = checks.floating(name, "mean_probs", mean_probs, shape=(num_classes,)).astype(dtype)
    past, probs, entropy = jax.lax.stop_gradient((past, p.probs, p.entropy))
    exists = jnp.any(past > 0)
    alike = jnp.sum(probs * past, -1) / (trees.safe_norm(probs, -1) * trees.safe_norm(past) + jnp.finfo(dtype).tiny)
    selected = p.counts & (entropy < margin) & ((alike < jnp.asarray(diversity_margin, dtype)) | ~exists)

    lift_weight = jnp.exp(jnp.where(selected, margin - entropy, 0))
    examples = tuple(range(probs.ndim - 1))
    total, chosen, count = _summed(
        (
            jnp.sum(jnp.where(selected, lift_weight * p.entropy, 0)),
            jnp.sum(jnp.where(selected[..., None], probs, 0), examples),
            jnp.sum(selected),
        ),
        axis_name,
    )
    some, n = count > 0, jnp.maximum(count, 1).astype(dtype)
    gamma = jnp.asarray(momentum, dtype)
    fresh = jnp.where(exists, gamma * past + (1 - gamma) * chosen / n, chosen / n)
    loss = total / n
    if fisher is not None:
        penalty = anchored_distance(name, params, fisher)
        loss = loss + (jnp.asarray(fisher_weight, penalty.dtype) * penalty).astype(dtype)
    constants = jax.lax.stop_gradient(EATAInfo(entropy, selected, count, jnp.where(some, fresh, past)))
    return jnp.where(some, loss, 0), constants


def eata(
    num_classes: int,
    *,
    entropy_margin: Any = None,
    diversity_margin: Any = 0.05,
    fisher_weight: Strength = 2000.0,
    momentum: Any = 0.9,
) -> Stateful:
    r"""`eata_loss` with its memory of what has been predicted so far, for a stream of test batches.

    Formula:
      That of `eata_loss`; the state holds :math:`\bar m`, F and :math:`\theta^0`.

    Args:
      num_classes: K.
      entropy_margin: :math:`E_0`, above 0; None (default): 0.4 ln K.
      diversity_margin: d, at least 0, default 0.05.
      fisher_weight: w, at least 0, default 2000; a number or a schedule. 0 is ETA.
      momentum: :math:`\gamma`, in [0, 1], default 0.9.

    Returns:
      ``init(fisher=None) -> EATAState`` with what `fisher_importance` gave, and ``apply(state, logits, params=None, *,
      step=None, where=None, mask=None, axis_name=None) -> ((loss, EATAInfo), state)`` with float logits ``[..., K]`` and, for
      the anchor, the parameters by which the loss is differentiated. Where ``info.num_selected`` is 0, the optimiser's step is
      to be left out. ``step`` is asked for by a schedule.

    Raises:
      ValueError: if a size or number is out of range; in ``apply``, if the state is not of this K, a shape or dtype does not
        fit, or a schedule is left without ``step``.

    Cost:
      That of `eata_loss`; a memory of K numbers and twice the anchored parameters.
      XLA at [1024, 1000]: at most 9.1 times the FLOPs and 2.4 times the bytes of cross-entropy, and 0.69 times its memory more.

    Use:
      For: distribution shift, forgetting.
      When: As `tent_loss`, for longer streams: it leaves unsure and repeated examples out and anchors the weights. It was ahead
        of Tent on a stream of noisy digits. Raise diversity_margin where classes are few.
      Not when: No data of the source are left for `fisher_importance`, unless fisher_weight=0. The shift is so strong that
        hardly any example is sure: nothing is selected. Batches are tiny, as for Tent.
      Badly with: Momentum where nothing was selected: leave the step out. The ImageNet values of fisher_weight and margins on
        small tasks. BatchNorm by stored averages. Weight decay besides the anchor.

    Example:
      >>> import jax, jax.numpy as jnp, optax, regjax as rj
      >>> memory, tx = rj.objectives.eata(3), optax.sgd(2.5e-4, momentum=0.9)
      >>> def step(params, opt_state, state, x):
      ...     def loss_fn(params):
      ...         logits = x * params["scale"]
      ...         (loss, info), new = memory.apply(state, logits, params)
      ...         return loss, (info, new, logits)
      ...     grads, (info, new, logits) = jax.grad(loss_fn, has_aux=True)(params)
      ...     updates, moved = tx.update(grads, opt_state, params)
      ...     after = optax.apply_updates(params, updates), moved
      ...     keep = lambda a, b: jnp.where(info.num_selected > 0, a, b)
      ...     return logits, new, *jax.tree.map(keep, after, (params, opt_state))
      >>> params = {"scale": jnp.ones(3)}
      >>> x = jnp.array([[4.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
      >>> logits, state, params, opt_state = jax.jit(step)(params, tx.init(params), memory.init(), x)
      >>> [round(float(m), 4) for m in state.mean_probs]
      [0.9647, 0.0177, 0.0177]

    References:
      Niu et al., Efficient Test-Time Model Adaptation without Forgetting, 2022, arXiv 2204.02610.
    """
    name = "objectives.eata"
    num_classes = checks.integer(name, "num_classes", num_classes, low=1)
    if entropy_margin is not None:
        checks.number(name, "entropy_margin", entropy_margin, low=0.0, open_low=True)
    checks.number(name, "diversity_margin", diversity_margin, low=0.0)
    checks.strength(name, "fisher_weight", fisher_weight, low=0.0)
    checks.number(name, "momentum", momentum, low=0.0, high=1.0)

    def init(fisher: FisherAnchor | None = None) -> EATAState:
        if fisher is not None and not isinstance(fisher, FisherAnchor):
            checks.fail(name, "fisher", "what fisher_importance() gives, or None", fisher)
        return EATAState(jnp.zeros(num_classes, jnp.float32), fisher)

    def apply(
        state: EATAState,
        logits: Any,
        params: PyTree = None,
        *,
        step: Any = None,
        where: Any = None,
        mask: Any = None,
        axis_name: AxisName = None,
    ) -> tuple[tuple[Array, EATAInfo], EATAState]:
        if not isinstance(state, EATAState):
            checks.fail(name, "state", "the EATAState that init() makes", state)
        checks.floating(name, "state.mean_probs", state.mean_probs, shape=(num_classes,))
        checks.floating(name, "logits", logits, min_ndim=1)
        if jnp.shape(logits)[-1] != num_classes:
            checks.fail(name, "logits", f"an array [..., {num_classes}]", logits)
        loss, info = eata_loss(
            logits,
            state.mean_probs,
            entropy_margin=entropy_margin,
            diversity_margin=diversity_margin,
            params=params,
            fisher=state.fisher,
            fisher_weight=resolve(fisher_weight, step, name, "fisher_weight"),
            momentum=momentum,
            where=where,
            mask=mask,
            axis_name=axis_name,
        )
        return (loss, info), state._replace(mean_probs=info.mean_probs.astype(state.mean_probs.dtype))

    return Stateful(init, apply)


class _Predictions(NamedTuple):
    probs: Array
    entropy: Array
    counts: Array
    num_classes: Array


def _predictions(name: str, logits: Any, axis: int, where: Any, mask: Any, axis_name: AxisName) -> _Predictions:
    """Probabilities with the class axis last, entropies, and which examples count."""
    checks.axis_name(name, axis_name)
    x = classes.class_inputs(name, logits, axis=axis, where=where)
    shifted, log_total = classes.normalise(x.logits, x.where)
    total = jnp.exp(log_total)
    # The exponential is exactly 0 from far above this bound on, which keeps 0 * -inf out. Divided after the sum: fewer passes.
    entropy = log_total - jnp.sum(jnp.exp(shifted) * jnp.maximum(shifted, -1e3), axis=-1) / total
    probs = jnp.exp(shifted) / total[..., None]
    number = jnp.asarray(x.logits.shape[-1]) if x.where is None else jnp.sum(x.where, -1)
    counts = jnp.any(shifted > -jnp.inf, -1)
    mask = checks.example_mask(name, "mask", mask, entropy.shape)
    return _Predictions(probs, entropy, counts if mask is None else counts & mask, number)


def _summed(sums: Any, axis_name: AxisName) -> Any:
    return sums if axis_name is None else jax.lax.psum(sums, axis_name)
