"""Distillation from several teachers at once: teacher dropping, the loss of one teacher, and the scale of its features."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from regjax.core import checks, sharding, trees
from regjax.core.strength import resolve
from regjax.core.types import Array, Key, Stateful, Strength


def teacher_dropping(
    key: Key,
    losses: Any,
    *,
    drop_prob: Strength = 0.5,
    normalize: str = "global",
    where: Any = None,
    axis_name: Any = None,
) -> tuple[Array, Array]:
    r"""Averages the losses of several teachers, dropping at random those that an example already follows well.

    Formula:
      .. math:: L = \frac{\sum_{t,b} c_{tb} \, \ell_{tb}}{\sum_{t,b} c_{tb}}, \quad
                c_{tb} = 1[t = \arg\max_s \ell_{sb}] \lor 1[u_{tb} \ge p], \quad u_{tb} \sim U(0, 1)

      For each example the teacher of the largest loss, the first of equal ones, always stays; each other one is dropped
      with probability p. The coefficients are constants for the gradient. With ``normalize="example"`` the mean over
      examples of the mean over their kept teachers.

    Args:
      key: a random key.
      losses: float ``[T, B]``, the loss of each teacher and example, as of `unic_teacher_loss`.
      drop_prob: p in [0, 1], default 0.5, a number or a traced scalar. 0 is the plain mean, 1 the mean of the largest losses.
      normalize: ``"global"`` (default) over all kept pairs, so that examples that keep more teachers weigh more, or
        ``"example"``.
      where: boolean ``[B]``: the examples that count; the others have coefficient 0. Default all.
      axis_name: the mapped axis, or a tuple of them, over which the batch is split under ``shard_map`` or ``pmap``: sums and
        counts are added over it. Fold the device's index into the key there. Not needed under ``jit`` with sharded arrays.

    Returns:
      ``(loss, coefficients)``: a scalar and ``[T, B]`` of 0 and 1, in float32 or better; the loss is 0 where no example counts.

    Raises:
      ValueError: if a shape or dtype does not fit, ``drop_prob`` lies outside [0, 1], or ``normalize`` is misspelt.

    Cost:
      O(T B); the forward pass of every teacher is the caller's.
      XLA at [4, 8192]: at most 75 times the FLOPs and 13 times the bytes of a copy of its arguments, and 0.7 times its memory
      more.

    Use:
      For: compute budget, unstable training.
      When: Several teachers, of which the easy ones are soon learned and the hard ones left behind: the worst of each example
        always stays. It evened the teachers out in a small test, the more the larger the probability.
      Not when: One teacher, or losses on different scales, where the worst is always the same: `teacher_normalizer` first. A
        teacher is useless on the data: it is then always kept.
      Badly with: Weights of teachers on top, which fight the dropping. One key on all devices in ``shard_map``. Tiny batches:
        the share of kept pairs varies, and with it the loss.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> losses = jnp.array([[0.9, 0.2], [0.1, 0.8]])
      >>> loss, coefficients = rj.losses.teacher_dropping(jax.random.key(0), losses, drop_prob=1.0)
      >>> round(float(loss), 4), coefficients.tolist()
      (0.85, [[1.0, 0.0], [0.0, 1.0]])

    References:
      Sariyildiz et al., UNIC: Universal Classification Models via Multi-teacher Distillation, 2024, arXiv 2408.05088. As in
      the authors' code, which divides by the number of kept pairs; a comment there says that examples weigh alike, which
      ``normalize="example"`` does.
    """
    name = "losses.teacher_dropping"
    checks.key(name, key)
    losses = _check_losses(name, losses)
    # In float32 whatever the losses: uniforms of bfloat16 have 256 levels.
    uniforms = jax.random.uniform(key, losses.shape, jnp.float32, out_sharding=sharding.explicit_sharding(losses))
    return _dropped(name, losses, uniforms, drop_prob, normalize, where, axis_name)


def apply_teacher_dropping(
    losses: Any,
    uniforms: Any,
    *,
    drop_prob: Strength = 0.5,
    normalize: str = "global",
    where: Any = None,
    axis_name: Any = None,
) -> tuple[Array, Array]:
    r"""Teacher dropping with the random numbers given: the core of `teacher_dropping`.

    Formula:
      That of `teacher_dropping`, with the uniforms u: a teacher that is not the worst is dropped where u < p.

    Args:
      losses: float ``[T, B]``.
      uniforms: float ``[T, B]`` in [0, 1).
      drop_prob: p in [0, 1], default 0.5, a number or a traced scalar.
      normalize: ``"global"`` (default) or ``"example"``.
      where: boolean ``[B]``: the examples that count. Default all.
      axis_name: the mapped axis, or a tuple of them, over which the batch is split.

    Returns:
      ``(loss, coefficients)``, a scalar and ``[T, B]``, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, ``drop_prob`` lies outside [0, 1], or ``normalize`` is misspelt.

    Cost:
      O(T B).
      XLA at 2 times [4, 8192]: at most 8.7 times the FLOPs and 2.7 times the bytes of a copy of its arguments, and 0.07 times
      its memory more.

    Use:
      Part of: `teacher_dropping`.
      When: Call it with your own uniforms: one draw for all examples of a batch, the same draw in both passes of an objective,
        or fixed ones in a test.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> losses = jnp.array([[0.9, 0.2], [0.1, 0.8], [0.4, 0.5]])
      >>> uniforms = jnp.array([[0.9, 0.1], [0.2, 0.3], [0.4, 0.7]])
      >>> loss, _ = rj.losses.apply_teacher_dropping(losses, uniforms)
      >>> round(float(loss), 4)
      0.7333

    References:
      Sariyildiz et al., UNIC: Universal Classification Models via Multi-teacher Distillation, 2024, arXiv 2408.05088.
    """
    name = "losses.apply_teacher_dropping"
    losses = _check_losses(name, losses)
    uniforms = checks.floating(name, "uniforms", uniforms, shape=losses.shape)
    return _dropped(name, losses, uniforms, drop_prob, normalize, where, axis_name)


def unic_teacher_loss(student: Any, teacher: Any, *, cosine_weight: Strength = 0.5, smooth_l1_weight: Strength = 0.5) -> Array:
    r"""The distance of a student's features from one teacher's: in direction and in value.

    Formula:
      .. math:: w_c (1 - \cos(s, t)) + w_s \frac{1}{D} \sum_d h(s_d - t_d), \quad
                h(x) = \min(|x|, 1) \left( |x| - \tfrac{1}{2} \min(|x|, 1) \right)

      h is the smooth L1 distance: :math:`x^2 / 2` up to 1, and :math:`|x| - 1/2` beyond. Of tokens the mean.
      UNIC takes the mean of this loss on class tokens and of this loss on patch tokens.

    Args:
      student: float ``[B, ..., D]``: one vector for each example, or tokens between the two axes.
      teacher: float, of the shape of ``student``; no gradient flows to it. Standardise it first: `teacher_normalizer`.
      cosine_weight: :math:`w_c`, at least 0, default 0.5, a number or a traced scalar.
      smooth_l1_weight: :math:`w_s`, at least 0, default 0.5, a number or a traced scalar.

    Returns:
      The loss of each example, ``[B]``, in float32 or better. A vector shorter than 1e-8 has cosine 0, without a gradient.

    Raises:
      ValueError: if a shape or dtype does not fit, or a weight is negative or not finite.

    Cost:
      Four sums over the features, and as many terms of the gradient.
      XLA at 2 times [64, 64, 256]: at most 21 times the FLOPs and 4.2 times the bytes of a copy of its arguments, and 0.56
      times its memory more.

    Use:
      For: compute budget, fine-tuning.
      When: A student of one or several frozen encoders, by their features: cosine for direction, smooth L1 for size. Class
        tokens and patch tokens each by a loss of their own, through a `LadderProjector`.
      Not when: Teachers are not standardised: one with large features then rules. The student's width differs and has no
        projector. Logits are meant: take `distillation`.
      Badly with: Features divided by their norms, for which the second part says the same again. Teachers and student on
        different crops. Raw teacher features: `teacher_normalizer` first.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> round(float(rj.losses.unic_teacher_loss(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 2.0]]))[0]), 4)
      1.0

    References:
      Sariyildiz et al., UNIC: Universal Classification Models via Multi-teacher Distillation, 2024, arXiv 2408.05088. The
      authors' code bounds the norms in the cosine from below by 1e-8, which gives a zero vector a gradient of 1e8; here it
      gets none from the cosine.
    """
    name = "losses.unic_teacher_loss"
    student = checks.floating(name, "student", student, min_ndim=2)
    if 0 in student.shape[1:]:
        checks.fail(name, "student", "an array [B, ..., D] with at least one token and one dimension", student)
    teacher = checks.floating(name, "teacher", teacher, shape=student.shape)
    checks.number(name, "cosine_weight", cosine_weight, low=0.0)
    checks.number(name, "smooth_l1_weight", smooth_l1_weight, low=0.0)
    dtype = trees.accumulator(student, teacher)
    s, t = student.astype(dtype), jax.lax.stop_gradient(teacher).astype(dtype)
    distance = jnp.asarray(cosine_weight, dtype) * (1 - _cosine(s, t))
    distance += jnp.asarray(smooth_l1_weight, dtype) * jnp.mean(optax.losses.huber_loss(s, t), axis=-1)
    return jnp.mean(distance, axis=tuple(range(1, distance.ndim)))


def _cosine(s: Array, t: Array, eps: float = 1e-8) -> Array:
    """The cosine from three sums, so that no vector of length 1 is stored; 0 without a gradient where one is shorter."""
    product, squares = jnp.sum(s * t, axis=-1), [jnp.sum(jnp.square(v), axis=-1) for v in (s, t)]
    some = (squares[0] > eps**2) & (squares[1] > eps**2)
    first, second = (jax.lax.rsqrt(jnp.where(some, square, 1)) for square in squares)
    return jnp.where(some, product * first * second, 0)


class TeacherNormalizerState(NamedTuple):
    """The memory of `teacher_normalizer`.

    Attributes:
      mean: float32 ``[D]``, the running mean, first 0.
      std: float32 ``[D]``, the running standard deviation, first 1.
      step: the number of batches so far, at which a schedule is read.
    """

    mean: Array
    std: Array
    step: Array


def teacher_normalizer(dim: int, *, momentum: Strength, eps: Any = 1e-6, axis_name: Any = None) -> Stateful:
    r"""Standardises a teacher's features by running statistics, so that teachers of any scale weigh alike.

    Formula:
      .. math:: \tilde x = \frac{x - \mu}{\sigma + \epsilon}, \qquad
                \mu \leftarrow (1 - m) \mu + m \bar x, \quad \sigma \leftarrow (1 - m) \sigma + m \, std(x)

      :math:`\mu` and :math:`\sigma` are those before this batch: 0 and 1 at first. The batch's statistics are over examples
      and tokens, the standard deviation with n - 1.

    Args:
      dim: D, the dimension of the teacher's features.
      momentum: m in [0, 1], a number or a schedule of the batches seen. The authors go from 1 to 0.001 by a cosine:
        ``optax.cosine_decay_schedule(1.0, total_steps, alpha=0.001)``. 0 keeps the statistics.
      eps: added to the standard deviation, at least 0, default 1e-6.
      axis_name: the mapped axis, or a tuple of them, over which the batch is split under ``shard_map`` or ``pmap``; the
        statistics are those of the whole batch. Not needed under ``jit`` with sharded arrays.

    Returns:
      ``init() -> TeacherNormalizerState`` and ``apply(state, features, *, where=None) -> (features, state)`` with features
      ``[B, ..., D]``, standardised in float32 or better, and the mask ``where`` ``[B]`` of the examples that enter the
      statistics. No gradient flows. One for each teacher and kind of token. A single vector leaves the deviation as it
      is, and an empty batch leaves both.

    Raises:
      ValueError: if ``dim`` is below 1, ``momentum`` outside [0, 1] or ``eps`` negative; in ``apply``, if the state is not
        of this D or a shape or dtype does not fit.

    Cost:
      Three passes over the features, 2 D numbers of memory; with ``axis_name``, two sums of D numbers over devices.
      XLA at [64, 64, 256]: at most 6.6 times the FLOPs and 2.3 times the bytes of a copy of its arguments, and 0.01 times its
      memory more.

    Use:
      Part of: `unic_teacher_loss`, `teacher_dropping`.
      When: Call it for each teacher and kind of token before their losses are compared or added. The first batch passes
        unchanged: momentum must start at 1.
      Not when: The teacher ends in a layer norm and stands alone: its scale is fixed then.
      Badly with: A constant small momentum from the start, with which the first statistics stay those of the start. Shards
        without ``axis_name``. Evaluation passes that update it.

    Example:
      >>> import jax.numpy as jnp, optax, regjax as rj
      >>> momentum = optax.cosine_decay_schedule(1.0, 100, alpha=0.001)
      >>> normalizer = rj.losses.teacher_normalizer(1, momentum=momentum)
      >>> features, state = normalizer.apply(normalizer.init(), jnp.array([[1.0], [3.0]]))
      >>> features, state = normalizer.apply(state, jnp.array([[1.0], [3.0]]))
      >>> [round(float(x), 4) for x in features[:, 0]]
      [-0.7071, 0.7071]

    References:
      Sariyildiz et al., UNIC: Universal Classification Models via Multi-teacher Distillation, 2024, arXiv 2408.05088; the
      details are those of the authors' code.
    """
    name = "losses.teacher_normalizer"
    checks.integer(name, "dim", dim, low=1)
    checks.strength(name, "momentum", momentum, low=0.0, high=1.0)
    checks.number(name, "eps", eps, low=0.0)
    checks.axis_name(name, axis_name)

    def init() -> TeacherNormalizerState:
        return TeacherNormalizerState(jnp.zeros(dim, jnp.float32), jnp.ones(dim, jnp.float32), jnp.zeros((), jnp.int32))

    def apply(state: TeacherNormalizerState, features: Any, *, where: Any = None) -> tuple[Array, TeacherNormalizerState]:
        if not isinstance(state, TeacherNormalizerState):
            checks.fail(name, "state", "the TeacherNormalizerState that init() makes", state)
        mean, std = (checks.floating(name, f"state.{n}", getattr(state, n), shape=(dim,)) for n in ("mean", "std"))
        features = checks.floating(name, "features", features, min_ndim=2)
        if features.shape[-1] != dim:
            checks.fail(name, "features", f"an array [B, ..., {dim}]", features)
        counts = checks.example_mask(name, "where", where, features.shape[:1])
        dtype = trees.accumulator(features)
        mean, std, x = (jax.lax.stop_gradient(v).astype(dtype) for v in (mean, std, features))
        out = (x - mean) / (std + jnp.asarray(eps, dtype))
        m = jnp.asarray(resolve(momentum, state.step, name, "momentum"), dtype)
        batch_mean, batch_std = _statistics(x, mean, std, counts, axis_name)
        moved = lambda old, now: ((1 - m) * old + m * now).astype(jnp.float32)
        new = TeacherNormalizerState(moved(mean, batch_mean), moved(std, batch_std), optax.safe_increment(state.step))
        return out, new

    return Stateful(init, apply)


def _statistics(x: Array, mean: Array, std: Array, where: Array | None, axis_name: Any) -> tuple[Array, Array]:
    """Mean and unbiased deviation over all axes but the last; those given where too few vectors tell them."""
    axes = tuple(range(x.ndim - 1))
    total = lambda v: v if axis_name is None else jax.lax.psum(v, axis_name)
    if where is None:
        counts, among = jnp.asarray(x.size // x.shape[-1], x.dtype), lambda v: v
    else:
        mask = where.reshape(where.shape + (1,) * (x.ndim - 1))
        counts = jnp.sum(where, dtype=x.dtype) * (x.size // (x.shape[0] * x.shape[-1]) if x.shape[0] else 0)
        among = lambda v: jnp.where(mask, v, 0)
    counts = total(counts)
    batch_mean = total(jnp.sum(among(x), axis=axes)) / jnp.maximum(counts, 1)
    squares = total(jnp.sum(among(jnp.square(x - batch_mean)), axis=axes))
    batch_std = jnp.sqrt(squares / jnp.maximum(counts - 1, 1))
    return jnp.where(counts > 0, batch_mean, mean), jnp.where(counts > 1, batch_std, std)


def _check_losses(name: str, losses: Any) -> Array:
    losses = checks.floating(name, "losses", losses, ndim=2)
    if losses.shape[0] < 1:
        checks.fail(name, "losses", "an array [T, B] with at least one teacher", losses)
    return losses


def _dropped(
    name: str, losses: Array, uniforms: Array, drop_prob: Any, normalize: Any, where: Any, axis_name: Any
) -> tuple[Array, Array]:
    checks.number(name, "drop_prob", drop_prob, low=0.0, high=1.0)
    checks.choice(name, "normalize", normalize, ("global", "example"))
    counts = checks.example_mask(name, "where", where, losses.shape[1:])
    checks.axis_name(name, axis_name)
    dtype = trees.accumulator(losses)
    losses = losses.astype(dtype)
    teachers = jax.lax.broadcasted_iota(jnp.int32, losses.shape, 0)
    worst = teachers == jnp.argmax(jax.lax.stop_gradient(losses), axis=0)[None].astype(jnp.int32)
    # "Not below" rather than "at least": at a probability of NaN all stay.
    keep = worst | ~(uniforms < jnp.asarray(drop_prob, jnp.float32))
    keep = keep if counts is None else keep & counts[None]
    coefficients = keep.astype(dtype)
    # A dropped loss may be infinite, and the loss of an example that does not count anything: neither is multiplied.
    kept = jnp.where(keep, losses, 0)
    if normalize == "global":
        sums = (jnp.sum(kept), jnp.sum(coefficients))
    else:
        each = jnp.sum(kept, axis=0) / jnp.maximum(jnp.sum(coefficients, axis=0), 1)
        sums = (jnp.sum(each), jnp.sum(jnp.max(coefficients, axis=0)))
    value, weight = sums if axis_name is None else jax.lax.psum(sums, axis_name)
    return value / jnp.maximum(weight, 1), coefficients
