"""Penalties on what differs between domains: the best head (IRM), the loss (V-REx), the variance of gradients (Fishr)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks, classes, sharding, trees
from regjax.core.strength import resolve
from regjax.core.types import Array, Stateful, Strength
from regjax.objectives.lift import AxisName


def irm_penalty(
    logits: Any,
    labels: Any,
    *,
    split: bool = True,
    domains: Any = None,
    num_domains: int | None = None,
    where: Any = None,
    axis_name: AxisName = None,
) -> Array:
    r"""How far the logits of each domain are from the best scale for it: the penalty of invariant risk minimisation.

    Formula:
      The derivative of the mean cross-entropy of domain e by a factor on its logits, at 1, over a set of its examples,

      .. math:: g_e(I) = \frac{1}{n} \sum_{i \in I} \left( \sum_k p_{ik} z_{ik} - z_{iy_i} \right), \quad
        \frac{1}{E} \sum_e g_e(even) \, g_e(odd)

      where even and odd are every second of the examples of the domain in the batch: the product is an unbiased estimate
      of the square, and may be negative. Without ``split`` it is :math:`\frac{1}{E} \sum_e g_e(all)^2`.

    Args:
      logits: float ``[B, K]`` of one domain, or ``[E, B, K]``; with ``domains``, ``[B, K]`` of all.
      labels: integer class ids ``[B]`` or ``[E, B]``, or probabilities of the shape of ``logits``.
      split: whether the halves are multiplied (default) or the whole is squared.
      domains: integer ids ``[B]`` in [0, num_domains); another id among the counted examples makes the result NaN. None
        (default): the domains are axis 0 of ``logits``, or there is one.
      num_domains: how many domains there are; needed with ``domains``.
      where: boolean, of the shape of ``logits`` without K: which examples count; default all.
      axis_name: the mapped axis (or axes) of `jax.shard_map` or ``pmap`` over which the examples are split. Not needed
        under ``jit`` with sharded arrays.

    Returns:
      A scalar in float32 or better: the mean over the domains that have examples, in both halves with ``split``; 0 if
      none has.

    Raises:
      ValueError: if a shape, dtype or option does not fit.

    Cost:
      A softmax, and O(B E) with ``domains``. The positions of the halves are gathered from a sharded batch.
      XLA at [1024, 1000]: at most 7.2 times the FLOPs and 1.5 times the bytes of cross-entropy, and 0.55 times its memory more.

    Use:
      For: distribution shift.
      When: A cue goes with the label in all training domains but to different degrees, as colour does on coloured digits. Needs
        domain ids and a batch of each. Start weak and raise the weight once features are learnt.
      Not when: Domains differ in their inputs alone while the cue is equally good in all: nothing tells it apart. The network
        can fit every label: at zero loss the penalty is 0 whatever the features.
      Badly with: Adam's state of before the switch: make it new. `label_smoothing` or `logit_norm`, which set the scale of
        logits that it judges. `mixup` across domains. With split, the penalty as a report: it may be negative.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> logits, labels = jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.array([0, 0])
      >>> round(float(rj.objectives.irm_penalty(logits, labels)), 4)
      -0.1743

    References:
      Arjovsky et al., Invariant Risk Minimization, 2019, arXiv 1907.02893, as in DomainBed (Gulrajani and Lopez-Paz, In Search
      of Lost Domain Generalization, 2021, arXiv 2007.01434): weight 1 before step 500, then 100, with Adam's state made new at
      the switch.
    """
    name = "objectives.irm_penalty"
    checks.boolean(name, "split", split)
    checks.axis_name(name, axis_name)
    x = classes.class_inputs(name, logits, labels)
    leading = x.logits.shape[:-1]
    if len(leading) not in ((1,) if domains is not None else (1, 2)):
        expected = "an array [B, K]" + (" with domains" if domains is not None else " or [E, B, K]")
        checks.fail(name, "logits", expected, logits)
    where = checks.example_mask(name, "where", where, leading)
    if where is not None:  # an example that does not count may hold anything
        labels = jnp.where(where if x.is_ids else where[..., None], x.labels, 0)
        x = x._replace(logits=jnp.where(where[..., None], x.logits, 0), labels=labels)
    slopes, member = _by_domain(name, _scale_slope(x), domains, num_domains, where)
    if not split:
        slope, count = _domain_means(slopes, member, axis_name)
        return _mean_over(jnp.square(slope), count > 0)
    even = _position(member, axis_name) % 2 == 0
    (first, count), (second, other) = (_domain_means(slopes, member & half, axis_name) for half in (even, ~even))
    return _mean_over(first * second, (count > 0) & (other > 0))


def vrex_penalty(
    domain_losses: Any, *, domains: Any = None, num_domains: int | None = None, where: Any = None, axis_name: AxisName = None
) -> Array:
    r"""The variance of the loss over domains: the penalty of risk extrapolation.

    Formula:
      .. math:: \frac{1}{E} \sum_e (L_e - \bar L)^2, \quad \bar L = \frac{1}{E} \sum_e L_e

      The whole loss is :math:`\bar L` plus a weight times this.

    Args:
      domain_losses: float ``[E]``, the mean loss of each domain; or ``[E, B]``, its losses per example; or with
        ``domains``, ``[B]``, the losses of all examples.
      domains: integer ids ``[B]`` in [0, num_domains); another id among the counted examples makes the result NaN.
      num_domains: how many domains there are; needed with ``domains``.
      where: boolean, of the shape of ``domain_losses``: which losses count; default all.
      axis_name: the mapped axis (or axes) of `jax.shard_map` or ``pmap`` over which the examples are split. Not needed
        under ``jit`` with sharded arrays.

    Returns:
      A scalar in float32 or better, at least 0, over the domains that have a loss; 0 if fewer than two have.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      One pass over the losses, O(B E) with ``domains``.
      XLA at 2 times [1024]: at most 31 times the FLOPs and 9.3 times the bytes of a copy of its arguments, and 2.3 times its
      memory more.

    Use:
      For: distribution shift.
      When: Training domains differ in how hard they are for the wrong reasons, and a test domain may lie beyond them: equal
        losses are asked for. The cheapest of the domain penalties, for any loss.
      Not when: Domains differ in label noise or difficulty by nature: the easy ones are then made worse to match. Every domain
        is fitted to zero loss, where the variance is 0.
      Badly with: Batches with few examples of a domain, whose mean's noise is penalised. Samplers that give domains their own
        weights in the loss. `irm_penalty` at full weight besides. Adam's old moments when the weight jumps.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> float(rj.objectives.vrex_penalty(jnp.array([1.0, 2.0, 3.0, 6.0])))
      3.5
      >>> float(rj.objectives.vrex_penalty(jnp.array([1.0, 2.0, 3.0]), domains=jnp.array([0, 1, 0]), num_domains=2))
      0.0

    References:
      Krueger et al., Out-of-Distribution Generalization via Risk Extrapolation, 2021, arXiv 2003.00688, as in DomainBed
      (Gulrajani and Lopez-Paz, In Search of Lost Domain Generalization, 2021, arXiv 2007.01434): weight 1 before step 500, then
      10.
    """
    name = "objectives.vrex_penalty"
    losses = checks.floating(name, "domain_losses", domain_losses, min_ndim=1)
    if losses.ndim not in ((1,) if domains is not None else (1, 2)):
        checks.fail(name, "domain_losses", "an array [B] with domains" if domains is not None else "[E] or [E, B]", losses)
    where = checks.example_mask(name, "where", where, losses.shape)
    checks.axis_name(name, axis_name)
    if losses.ndim == 1 and domains is None:
        losses, where = losses[:, None], None if where is None else where[:, None]
    values, member = _by_domain(name, losses.astype(trees.accumulator(losses)), domains, num_domains, where)
    means, count = _domain_means(values, member, axis_name)
    centre = _mean_over(means, count > 0)
    return _mean_over(jnp.square(means - centre), count > 0)


class FishrState(NamedTuple):
    """The memory of `fishr`, float32: sums of variances of the gradients, of the weight ``[E, K, D]`` and bias ``[E, K]``."""

    weight: Array
    bias: Array


def fishr(num_domains: int, *, ema: Strength = 0.95) -> Stateful:
    r"""Aligns the variances, over examples, of the gradients at the classifier head between domains.

    Formula:
      The gradients of the cross-entropy of example i are :math:`(p_i - y_i) h_i^T` for the weight and :math:`p_i - y_i` for
      the bias. With :math:`v_e` the biased variance of each of their P coordinates over the examples of domain e:

      .. math:: s_e \leftarrow \gamma \, sg(s_e) + v_e, \quad
        \frac{1}{E} \sum_e \frac{1}{P} \lVert s_e - \bar s \rVert^2, \quad \bar s = \frac{1}{E} \sum_e s_e

      over the E domains that have examples in the batch. The scale of the gradient does not depend on :math:`\gamma`, and
      from an empty memory :math:`s_e = v_e`.

    Args:
      num_domains: how many domains there are, at least 1.
      ema: :math:`\gamma`, the share of the past, in [0, 1], default 0.95; a number or a schedule. 0 has no memory.

    Returns:
      ``init(weight) -> FishrState`` for a head of that shape, and ``apply(state, features, weight, bias, labels, domains, *,
      where=None, step=None, axis_name=None) -> (penalty, state)`` with float ``features [B, D]``, ``weight [K, D]`` (the
      transpose of a Flax kernel) and ``bias [K]``, class ids ``labels [B]`` or probabilities ``[B, K]``, and integer
      ``domains [B]`` in [0, num_domains). ``where``, boolean ``[B]``, names the examples that count; ``step`` is asked for by
      a schedule; ``axis_name`` is the mapped axis over which the batch is split. A domain without examples leaves its memory
      alone and takes no part; a wrong label or domain makes the penalty NaN. Gradient to features, weight and bias.

    Raises:
      ValueError: if a number is out of range; in ``apply``, if the state is not of this head, a shape or dtype does not fit,
        or a schedule is left without ``step``.

    Cost:
      Three products ``[E K, B] x [B, D]`` of closed-form gradients, none of which is kept per example; 4 E K D bytes of memory.
      XLA at [1024, 512]: at most 16 times the FLOPs and 14 times the bytes of the loss of the head and its gradient, and 4.2
      times its memory more.

    Use:
      For: distribution shift.
      When: Training data come from several named domains and the test from another. It compares the gradients' variances at a
        linear head in closed form, so only features and logits are needed. Switch it on after a plain start.
      Not when: There is one domain or domains are unknown. Batches hold a handful of each domain: variances are noise, and the
        memory helps only partly.
      Badly with: A head that is not linear with cross-entropy. `mixup` across domains. `label_smoothing` in the task's loss,
        unless the smoothed labels are given here too. Adam's old moments when a large weight is switched on.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> memory = rj.objectives.fishr(2)
      >>> weight, features = jnp.zeros((2, 1)), jnp.array([[1.0], [3.0], [2.0], [2.0]])
      >>> labels, domains = jnp.array([0, 0, 0, 1]), jnp.array([0, 0, 1, 1])
      >>> penalty, state = memory.apply(memory.init(weight), features, weight, jnp.zeros(2), labels, domains)
      >>> round(float(penalty), 4)
      0.0781

    References:
      Rame et al., Fishr: Invariant Gradient Variances for Out-of-Distribution Generalization, 2022, arXiv 2109.02934, as in
      DomainBed: weight 0 before step 1500, then 1000. The code keeps :math:`(1 - \gamma) s_e` and divides by
      :math:`1 - \gamma`; it is the same for a constant share.
    """
    name = "objectives.fishr"
    num_domains = checks.integer(name, "num_domains", num_domains, low=1)
    checks.strength(name, "ema", ema, low=0.0, high=1.0)

    def init(weight: Any) -> FishrState:
        shape = getattr(weight, "shape", None)
        if shape is None or len(shape) != 2:
            checks.fail(name, "weight", "an array [K, D]", weight)
        return FishrState(jnp.zeros((num_domains, *shape), jnp.float32), jnp.zeros((num_domains, shape[0]), jnp.float32))

    def apply(
        state: FishrState,
        features: Any,
        weight: Any,
        bias: Any,
        labels: Any,
        domains: Any,
        *,
        where: Any = None,
        step: Any = None,
        axis_name: AxisName = None,
    ) -> tuple[Array, FishrState]:
        weight = checks.floating(name, "weight", weight, ndim=2)
        bias = checks.floating(name, "bias", bias, shape=weight.shape[:1])
        features = checks.floating(name, "features", features, shape=(None, weight.shape[1]))
        if not isinstance(state, FishrState) or state.weight.shape != (num_domains, *weight.shape):
            checks.fail(name, "state", "the FishrState that init() makes for this weight", state)
        where = checks.example_mask(name, "where", where, features.shape[:1])
        checks.axis_name(name, axis_name)
        gamma = checks.number(name, "ema", resolve(ema, step, name, "ema"), low=0.0, high=1.0)
        dtype = trees.accumulator(features, weight, bias)
        member, wrong = _membership(name, domains, num_domains, where, features.shape[0])
        h = features.astype(dtype)
        if where is not None:
            h = jnp.where(where[:, None], h, 0)
        with jax.default_matmul_precision("highest"):  # variances are differences
            logits = jnp.einsum("bd,kd->bk", h, weight.astype(dtype)) + bias.astype(dtype)
            x = classes.class_inputs(name, logits, labels)
            error = jax.nn.softmax(x.logits) - classes.one_hot(x.labels, x.is_ids, logits.shape[1], dtype)
            if x.is_ids:
                unknown = (x.labels < 0) | (x.labels >= logits.shape[1])
                wrong = wrong | (unknown if where is None else unknown & where)
            elif where is not None:
                error = jnp.where(where[:, None], error, 0)
            spread, counts = _gradient_variances(h, error, member.T.astype(dtype), domains, axis_name)
        decay = jnp.asarray(gamma, dtype)
        past = jax.lax.stop_gradient(state)
        sums = [decay * old.astype(dtype) + v for old, v in zip(past, spread, strict=True)]
        present = counts > 0
        distance = jnp.zeros((), dtype)
        for s in sums:
            here = present.reshape(-1, *(1,) * (s.ndim - 1))
            mean = jnp.sum(jnp.where(here, s, 0), axis=0) / jnp.maximum(jnp.sum(present), 1)
            distance = distance + jnp.sum(jnp.square(jnp.where(here, s - mean, 0)))
        penalty = distance / (jnp.maximum(jnp.sum(present), 1) * (weight.size + bias.size))
        bad = jnp.sum(wrong)
        bad = bad if axis_name is None else jax.lax.psum(bad, axis_name)
        kept = [
            jnp.where(present.reshape(-1, *(1,) * (s.ndim - 1)), jax.lax.stop_gradient(s).astype(old.dtype), old)
            for s, old in zip(sums, past, strict=True)
        ]
        return jnp.where(bad > 0, jnp.nan, penalty).astype(dtype), FishrState(*kept)

    return Stateful(init, apply)


def _scale_slope(x: classes.ClassInputs) -> Array:
    """The derivative of each example's cross-entropy by a factor on its logits: their mean less that of the label."""
    parts = classes.normalise(x.logits)
    # Far below the largest logit the probability is exactly 0; the bound keeps 0 * -inf out.
    mean = jnp.sum(jnp.exp(parts.shifted) * jnp.maximum(parts.shifted, -1e3), axis=-1) / jnp.exp(parts.log_total)
    mass = 1 if x.is_ids else jnp.sum(x.labels, axis=-1)
    return mass * mean - classes.expected_under(parts.shifted, x.labels, x.is_ids)


def _membership(name: str, domains: Any, num_domains: int, where: Array | None, rows: int) -> tuple[Array, Array]:
    """Which examples count in which domain ``[E, B]``, and which have a domain that does not exist ``[B]``."""
    domains = checks.integers(name, "domains", domains, shape=(rows,)).astype(jnp.int32)
    member = domains[None, :] == jnp.arange(num_domains)[:, None]
    wrong = (domains < 0) | (domains >= num_domains)
    return (member, wrong) if where is None else (member & where[None, :], wrong & where)


def _by_domain(name: str, values: Array, domains: Any, num_domains: Any, where: Array | None) -> tuple[Array, Array]:
    """Values and who counts as ``[E, B]``, from ``[B]`` and ids, ``[E, B]``, or ``[B]`` of one domain."""
    if domains is None:
        if num_domains is not None:
            checks.fail(name, "num_domains", "None without domains", num_domains)
        values = values if values.ndim == 2 else values[None]
        if where is None:
            return values, sharding.placed_like(jnp.ones(values.shape, bool), values)
        return values, where.reshape(values.shape) if where.ndim == 2 else where[None]
    num_domains = checks.integer(name, "num_domains", num_domains, low=1)
    member, wrong = _membership(name, domains, num_domains, where, values.shape[0])
    return jnp.where(wrong, jnp.nan, values)[None, :], member | wrong[None, :]


def _domain_means(values: Array, member: Array, axis_name: AxisName) -> tuple[Array, Array]:
    """Means ``[E]``, 0 for a domain without examples, and counts."""
    total = jnp.sum(jnp.where(member, values, 0), axis=1)
    count = jnp.sum(member, axis=1, dtype=total.dtype)
    if axis_name is not None:
        total, count = jax.lax.psum((total, count), axis_name)
    return total / jnp.maximum(count, 1), count


def _mean_over(values: Array, present: Array) -> Array:
    """The mean over the domains that are there; 0 if none is."""
    return jnp.sum(jnp.where(present, values, 0)) / jnp.maximum(jnp.sum(present), 1).astype(values.dtype)


def _position(member: Array, axis_name: AxisName) -> Array:
    """The position of each example among those of its domain, over all devices."""
    counted = sharding.replicate(member).astype(jnp.int32)
    position = jnp.cumsum(counted, axis=1) - counted
    if axis_name is not None:
        each = jax.lax.all_gather(jnp.sum(counted, axis=1), axis_name)
        before = jnp.arange(each.shape[0]) < jax.lax.axis_index(axis_name)
        position = position + jnp.sum(jnp.where(before[:, None], each, 0), axis=0)[:, None]
    return sharding.placed_like(position, member)


def _gradient_variances(h: Array, error: Array, member: Array, domains: Array, axis_name: AxisName) -> tuple[Any, Array]:
    """The biased variances of ``error h^T`` ``[E, K, D]`` and ``error`` ``[E, K]`` in each domain, and the counts."""
    total = lambda t: t if axis_name is None else jax.lax.psum(t, axis_name)
    groups, dim, outputs = member.shape[1], h.shape[1], error.shape[1]
    member = sharding.rows_like(member, h)
    counts = total(jnp.sum(member, axis=0))
    share = member / jnp.maximum(counts, 1)
    own = lambda means: sharding.take_rows(means, jnp.clip(jnp.asarray(domains), 0, groups - 1))

    def mean(left: Array, right: Array) -> Array:
        split = sharding.reshape_rows(share[:, :, None] * left[:, None, :], (groups * outputs,))
        return total(sharding.contract_rows(split, right)).reshape(groups, outputs, dim)

    # The features are centred first: E[x^2] - E[x]^2 of all would lose what is small beside a large mean.
    centre = total(sharding.contract_rows(share, h))
    h = h - own(centre)
    error_mean = total(sharding.contract_rows(share, error))
    bias = total(sharding.contract_rows(share, jnp.square(error - own(error_mean))))
    first = mean(error, h)
    covariance = mean(jnp.square(error), h) - first * error_mean[:, :, None]
    centre = centre[:, None, :]
    weight = mean(jnp.square(error), jnp.square(h)) - jnp.square(first)
    return (weight + jnp.square(centre) * bias[:, :, None] + 2 * centre * covariance, bias), counts
