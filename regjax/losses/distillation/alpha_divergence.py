"""Distillation by alpha-divergences: from covering the teacher's modes to seeking one, and the worse of the two."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, classes
from regjax.core.types import Array, Strength
from regjax.losses.distillation._pairs import pair, probabilities

# As near as this to 0 and 1 the divergence is its limit, as in the authors' code.
_NEAR = 1e-3


def alpha_divergence(
    student_logits: Any,
    teacher_logits: Any,
    *,
    alpha: Strength,
    clip: Any = 1e3,
    axis: int = -1,
    where: Any = None,
) -> Array:
    r"""The alpha-divergence of a student from its teacher, with bounded coefficients.

    Formula:
      .. math:: \frac{1}{\alpha (\alpha - 1)} \sum_k q_k \left( \min(r_k^{\alpha}, c) - 1 \right), \quad r_k = p_k / q_k,
                \quad p = softmax(t), \quad q = softmax(s)

      At :math:`\alpha` = 1 it is KL(p, q), nothing clipped; at 0 it is KL(q, p), :math:`-\sum_k q_k \log \min(r_k, c)`; each
      within 1e-3 of it. The gradient is that of :math:`-\sum_k c_k \log q_k` with the coefficients held fixed:
      :math:`c_k = q_k \min(r_k^{\alpha}, c) / \alpha + q_k / (\alpha (\alpha - 1))`; at 1, :math:`p_k`; at 0,
      :math:`q_k (\log \min(r_k, c) - 1)`. Where nothing is clipped, that is the derivative of the value.

    Args:
      student_logits: float ``[..., K]``, s, classes on ``axis``.
      teacher_logits: float, of the shape of ``student_logits``: t. No gradient flows to them.
      alpha: a finite number or a traced scalar. Negative values punish doubt where the teacher is sure, values of 1 and
        more punish what the student misses.
      clip: c, at least 1, default 1000: the bound on :math:`r^{\alpha}`, and by it on the gradient.
      axis: the class axis.
      where: boolean, broadcasts to ``student_logits``: the classes that exist, for both.

    Returns:
      The divergence of each example, ``[...]``, in float32 or better; 0 where no class exists. In float32 its rounding
      error grows as :math:`1 / |\alpha (\alpha - 1)|`, to some 1e-4 beside 0 and 1.

    Raises:
      ValueError: if a shape or dtype does not fit, ``alpha`` is not finite or ``clip`` is below 1.

    Cost:
      A softmax of each; the teacher's forward pass is the caller's.
      XLA at [1024, 1000]: at most 6.9 times the FLOPs and 2.4 times the bytes of cross-entropy, and 0.55 times its memory more.

    Use:
      For: compute budget.
      When: Distillation where KL covers too much or too little: negative alpha punishes a doubting student, alpha of 1 and more
        one that misses classes. Fix alpha by what goes wrong.
      Not when: It is not known which: `adaptive_alpha_divergence` takes the worse side. Alpha is near 0 or 1 but not there:
        rounding grows, so use 0 or 1.
      Badly with: A large ``clip`` without gradient clipping: small student probabilities give huge coefficients. Line searches:
        where ratios are clipped the gradient is not that of the value. `distillation`, which is alpha = 1.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> student, teacher = jnp.array([2.0, 1.0, 0.0]), jnp.array([1.0, 3.0, 0.0])
      >>> [round(float(rj.losses.alpha_divergence(student, teacher, alpha=a)), 4) for a in (-1.0, 0.0, 1.0)]
      [1.5696, 0.938, 0.8112]

    References:
      Wang et al., AlphaNet: Improved Training of Supernets with Alpha-Divergence, 2021, arXiv 2102.07954; the clipping and
      the gradient are those of the authors' code.
    """
    name = "losses.alpha_divergence"
    checks.number(name, "alpha", alpha)
    student, teacher = _inputs(name, student_logits, teacher_logits, clip, axis, where)
    value, coefficients, _ = _side(student, teacher, alpha, clip)
    return _with_slope(jnp.sum(value, axis=-1), coefficients, *student)


def adaptive_alpha_divergence(
    student_logits: Any,
    teacher_logits: Any,
    *,
    alpha_min: Strength = -1.0,
    alpha_max: Strength = 1.0,
    clip: Any = 5.0,
    axis: int = -1,
    where: Any = None,
    surrogate: bool = False,
) -> Array:
    r"""The larger of two alpha-divergences, chosen for each example.

    Formula:
      .. math:: \max\left( D_{\alpha_{min}}(p, q), D_{\alpha_{max}}(p, q) \right)

      with D and its gradient those of `alpha_divergence`, both with the same clip; of equal ones the second. A student that
      doubts what the teacher is sure of is taught by the first, one that misses what the teacher sees by the second.

    Args:
      student_logits: float ``[..., K]``, classes on ``axis``: of a subnetwork.
      teacher_logits: float, of the shape of ``student_logits``: of the largest network. No gradient flows to them.
      alpha_min: the first alpha, default -1, a number or a traced scalar. 0 is allowed.
      alpha_max: the second, default 1, a number or a traced scalar.
      clip: at least 1, default 5: the bound on the ratio's power. The side :math:`\alpha` = 1 is not clipped.
      axis: the class axis.
      where: boolean, broadcasts to ``student_logits``: the classes that exist, for both.
      surrogate: return the number whose derivative the gradient is, which the authors print, in place of the divergence;
        default False. It may be negative and measures nothing; the gradient is the same.

    Returns:
      The loss of each example, ``[...]``, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, an alpha is not finite, ``clip`` is below 1 or ``surrogate`` is not a
        bool.

    Cost:
      A softmax of each, and two more powers for each logit. In a supernet each step trains the largest network by
      cross-entropy and three smaller ones by this loss alone, gradients added; the authors clip the elements of the sum at 1.
      XLA at [1024, 1000]: at most 11 times the FLOPs and 3.7 times the bytes of cross-entropy, and 1.7 times its memory more.

    Use:
      For: compute budget.
      When: Supernets by the sandwich rule: the largest network trains by labels, three smaller ones by this alone, with the
        elements of the summed gradient clipped at 1 as the authors do.
      Not when: One student of a fixed teacher: plain `distillation` with labels is simpler. The largest network is untrained:
        give it some epochs first. Values are to be compared over time: the side changes.
      Badly with: Leaving out ``optax.clip``. Cross-entropy in the small networks, which the recipe leaves out.
        `label_smoothing` in them, whereas in the largest it belongs. Line searches, whose values do not follow the gradient.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> student, teacher = jnp.array([2.0, 1.0, 0.0]), jnp.array([1.0, 3.0, 0.0])
      >>> round(float(rj.losses.adaptive_alpha_divergence(student, teacher)), 4)
      1.2951

    References:
      Wang et al., AlphaNet: Improved Training of Supernets with Alpha-Divergence, 2021, arXiv 2102.07954. As the authors'
      code, except that there an ``alpha_min`` of 0 falls back to the default.
    """
    name = "losses.adaptive_alpha_divergence"
    checks.number(name, "alpha_min", alpha_min)
    checks.number(name, "alpha_max", alpha_max)
    checks.boolean(name, "surrogate", surrogate)
    student, teacher = _inputs(name, student_logits, teacher_logits, clip, axis, where)
    left, left_coefficients, left_own = _side(student, teacher, alpha_min, clip)
    right, right_coefficients, right_own = _side(student, teacher, alpha_max, clip)
    left, right = jnp.sum(left, axis=-1), jnp.sum(right, axis=-1)
    is_left = left > right
    value = jnp.where(is_left, left, right)
    coefficients = jnp.where(is_left[..., None], left_coefficients, right_coefficients)
    if surrogate:
        held = jax.lax.stop_gradient(student)
        log_q = jnp.where(held.shifted > -jnp.inf, held.shifted - held.log_total[..., None], 0)
        own = jnp.where(is_left, left_own, right_own)[..., None] * probabilities(held)
        value = -jnp.sum((coefficients + own) * log_q, axis=-1)
    return _with_slope(value, coefficients, *student)


def _inputs(
    name: str, student: Any, teacher: Any, clip: Any, axis: int, where: Any
) -> tuple[classes.Normalised, classes.Normalised]:
    checks.number(name, "clip", clip, low=1.0)
    x, fixed = pair(name, student, teacher, arguments=("student_logits", "teacher_logits"), axis=axis, where=where)
    return classes.normalise(x.logits, x.where), classes.normalise(jax.lax.stop_gradient(fixed), x.where)


def _side(student: classes.Normalised, teacher: classes.Normalised, alpha: Any, clip: Any) -> tuple[Array, Array, Array]:
    """What each class adds to the divergence, and its coefficient in the surrogate, less a multiple of q: that too.

    A multiple of q gives the surrogate no gradient, and it is large for alpha near 0 and 1, where it would cost digits.
    """
    student = jax.lax.stop_gradient(student)
    p, q = probabilities(teacher), probabilities(student)
    log_p, log_q = (part.shifted - part.log_total[..., None] for part in (teacher, student))
    # Probabilities are never divided: q underflows. A class that neither has, -inf in both, has ratio 1.
    log_r = jnp.where(log_p == log_q, 0, log_p - log_q)
    bound = jnp.log(jnp.asarray(clip, p.dtype))
    a = jnp.asarray(alpha, p.dtype)
    forward, reverse = jnp.abs(a - 1) < _NEAR, jnp.abs(a) < _NEAR
    a = jnp.where(forward | reverse, 2, a)  # no division by 0 in the branch that is not chosen
    slope = jnp.expm1(jnp.minimum(a * log_r, bound)) / a
    # Where q is 0 the logarithm of the ratio may still be -inf.
    slope = jnp.where(reverse, jnp.where(q > 0, jnp.minimum(log_r, bound), 0), slope)
    value = jnp.where(forward, p * jnp.where(p > 0, log_r, 0), q * slope / jnp.where(reverse, -1, a - 1))
    own = jnp.where(forward, 0, 1 / jnp.where(reverse, -1, a - 1))
    return value, jnp.where(forward, p, q * slope), own


@jax.custom_jvp
def _with_slope(value: Array, coefficients: Array, shifted: Array, log_total: Array) -> Array:
    """The value, with the gradient of the surrogate: minus the coefficients times the log-probabilities."""
    return value


@_with_slope.defjvp
def _with_slope_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    value, coefficients, _, _ = primals
    _, _, shifted, log_total = tangents
    return value, jnp.sum(coefficients, axis=-1) * log_total - jnp.sum(coefficients * shifted, axis=-1)
