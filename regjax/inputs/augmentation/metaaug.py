"""A learned transform of calibration images for quantisation after training: MetaAug."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from regjax.core import checks, trees
from regjax.core.neighbours import neighbour_divergence
from regjax.core.partners import mix_partner
from regjax.core.strength import resolve
from regjax.core.types import Array, Key, PyTree, Stateful, Strength
from regjax.inputs.mixing.pairs import sample_partner, symmetric_beta


def meta_augment_objective(
    transform_fn: Callable[..., Any],
    student_step_fn: Callable[..., Any],
    student_fn: Callable[..., Any],
    teacher_fn: Callable[..., Any],
    *,
    kl_weight: Strength = 5.0,
    distance_weight: Strength = 0.5,
    pkt_weight: Strength = 3e4,
    margin: Strength = 0.1,
    temperature: Strength = 4.0,
    alpha: float = 4.0,
    share_mixup: bool = True,
    eps: float = 1e-7,
    has_aux: bool = False,
) -> Callable[..., Any]:
    r"""The loss of a transform of calibration images: a student calibrated on its output should agree with the teacher.

    Formula:
      With :math:`x' = T(x)` and :math:`\theta'` the student after one step on x', through which the gradient flows:

      .. math::
         L = w_1 KL(softmax(z_t / \tau), softmax(z_s / \tau)) + w_2 \max(0, \mu - mean((x' - x)^2))
         + w_3 PKT(f(mix(x')), f(mix(x)))

      with logits :math:`z_t, z_s` of teacher and student :math:`\theta'` on other images x_val, f the features of the
      teacher, PKT as in ``features.probabilistic_knowledge_transfer``, and mix a mixup with
      :math:`\lambda = max(l, 1 - l)`, :math:`l \sim Beta(\alpha, \alpha)`. The second term keeps x' AWAY from x, up to the
      margin; the third keeps its meaning.

    Args:
      transform_fn: T, ``f(transform_params, x) -> x'`` of the shape of x. Let it start as the identity: a residual branch
        whose last layer is zero, or a network that was fitted to return its input.
      student_step_fn: ``f(x', *student) -> student'``: one differentiable step of the student's calibration, as
        `adam_student_step` makes.
      student_fn: ``f(student', x_val) -> logits [B, K]``.
      teacher_fn: ``f(x) -> (logits [B, K], features [B, ...])``. What it says of x_val and of mix(x) is constant.
      kl_weight: :math:`w_1`, at least 0, default 5; a number or a schedule, as all strengths here.
      distance_weight: :math:`w_2`, at least 0, default 0.5.
      pkt_weight: :math:`w_3`, at least 0, default 3e4.
      margin: :math:`\mu`, at least 0, default 0.1, in squared units of x.
      temperature: :math:`\tau`, above 0, default 4; the divergence is not multiplied by its square.
      alpha: of the Beta distribution, above 0, default 4.
      share_mixup: whether x' and x are mixed alike (default), or each with its own lambda and partners.
      eps: of PKT, above 0, default 1e-7.
      has_aux: whether the three terms, before their weights, are returned too.

    Returns:
      ``loss(transform_params, x, x_val, key, *student, step=None) -> scalar`` in float32 or better, or ``(scalar, terms)``
      with the terms ``"kl"``, ``"distance"`` and ``"pkt"``. ``x`` and ``x_val`` are float ``[B, ...]``, two batches of
      original images; ``student`` is passed to ``student_step_fn``; ``step`` is where schedules are read.

    Raises:
      ValueError: if a function is none, a number is out of range, a function returns another shape than it should, or a
        schedule is called without ``step``.

    Cost:
      A step of the student's calibration and its derivative, a pass of the student and three of the teacher forward, one of
      each backward: about 5 forward and 3 backward passes. The mixup permutes the batch, which gathers a sharded one.
      XLA at 2 times [256, 256]: at most 4.6 times the FLOPs and 5.8 times the bytes of the student's gradient, and 1.8 times
      its memory more.

    Use:
      For: few labels, compute budget.
      When: Post-training quantisation to 2 to 4 bits from some dozens of calibration images, to which the quantised network
        overfits. On digits one step on the learned images left a 2-bit student nearer to the teacher.
      Not when: Calibration images are plenty, or 8 bits lose nothing. The transform does not start near the identity: the first
        steps then calibrate on noise.
      Badly with: A student step that cannot be differentiated by the images: hard rounding without a straight-through or soft
        form, or a fresh Adam state, whose step is nearly a sign. A margin in other units than squared x.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> transform = lambda t, x: x + t * x**2
      >>> teacher = lambda x: (x, jnp.tanh(x))
      >>> calibrate = lambda x, theta: theta - 0.1 * jax.grad(lambda th: jnp.mean((th * x - x) ** 2))(theta)
      >>> student = lambda theta, x: theta * x
      >>> loss = rj.inputs.meta_augment_objective(transform, calibrate, student, teacher, pkt_weight=1.0, has_aux=True)
      >>> x, x_val = jnp.eye(4), jnp.flip(jnp.eye(4), 1)
      >>> value, terms = loss(jnp.array(0.1), x, x_val, jax.random.key(0), jnp.array(0.5))
      >>> round(float(terms["distance"]), 4)
      0.0975

    References:
      Pham et al., MetaAug: Meta-Data Augmentation for Post-Training Quantization, 2024, arXiv 2407.14726. The weights are
      those of the authors' published run, not the defaults of their functions (1, 1, 1 and margin 0.2). Their code draws
      the two mixups apart, so that PKT compares unlike pairs: ``share_mixup=False``. They train a U-Net by Adam at 5e-6
      with the gradient clipped to norm 0.1, and at last calibrate the student on x and x' together.
    """
    name = "inputs.meta_augment_objective"
    functions = {
        "transform_fn": transform_fn,
        "student_step_fn": student_step_fn,
        "student_fn": student_fn,
        "teacher_fn": teacher_fn,
    }
    for argument, fn in functions.items():
        checks.function(name, argument, fn)
    strengths: dict[str, tuple[Strength, bool]] = {
        "kl_weight": (kl_weight, False),
        "distance_weight": (distance_weight, False),
        "pkt_weight": (pkt_weight, False),
        "margin": (margin, False),
        "temperature": (temperature, True),
    }
    for argument, (value, positive) in strengths.items():
        checks.strength(name, argument, value, low=0.0, open_low=positive)
    checks.number(name, "alpha", alpha, low=0.0, open_low=True)
    checks.boolean(name, "share_mixup", share_mixup)
    checks.number(name, "eps", eps, low=0.0, open_low=True)
    checks.boolean(name, "has_aux", has_aux)

    def loss(transform_params: PyTree, x: Any, x_val: Any, key: Key, *student: Any, step: Any = None) -> Any:
        x = checks.floating(name, "x", x, min_ndim=1)
        x_val = checks.floating(name, "x_val", x_val, min_ndim=1)
        checks.key(name, key)
        dtype = trees.accumulator(x, x_val)
        at = {a: jnp.asarray(resolve(value, step, name, a), dtype) for a, (value, _) in strengths.items()}
        moved = checks.floating(name, "transform_fn", transform_fn(transform_params, x), shape=x.shape)

        updated = student_step_fn(moved, *student)
        wanted = jax.lax.stop_gradient(_teach(name, teacher_fn, x_val)[0].astype(dtype))
        logits = checks.floating(name, "student_fn", student_fn(updated, x_val), shape=wanted.shape).astype(dtype)
        log_t, log_s = (jax.nn.log_softmax(z / at["temperature"], axis=-1) for z in (wanted, logits))
        p = jnp.exp(log_t)
        kl = jnp.mean(jnp.sum(jnp.where(p > 0, p * (jnp.where(p > 0, log_t, 0) - log_s), 0), axis=-1))

        squared = jnp.mean(jnp.square(moved.astype(dtype) - x.astype(dtype)))
        distance = jnp.maximum(at["margin"] - squared, 0)

        first, second = jax.random.split(key)
        mixed, original = _mixup(first, moved, alpha), _mixup(first if share_mixup else second, x, alpha)
        features, target = (_teach(name, teacher_fn, images)[1] for images in (mixed, original))
        pkt = neighbour_divergence(features.astype(dtype), target.astype(dtype), eps=eps)

        total = at["kl_weight"] * kl + at["distance_weight"] * distance + at["pkt_weight"] * pkt
        return (total, {"kl": kl, "distance": distance, "pkt": pkt}) if has_aux else total

    return loss


def adam_student_step(
    loss_fn: Callable[..., Any],
    *,
    learning_rate: Strength = 1e-3,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 1e-16,
) -> Stateful:
    r"""One step of Adam that can be differentiated by the images it was taken on: the inner step of MetaAug.

    Formula:
      ``optax.adam`` on :math:`g = \nabla_\theta f(\theta, x)`:

      .. math:: \theta' = \theta - \eta \frac{\hat m(g)}{\sqrt{\hat v(g) + \epsilon_0} + \epsilon}

      On a new state the step is nearly the sign of g, and says little about x: keep the state of the calibration.

    Args:
      loss_fn: f, ``f(params, x, ...) -> scalar``: how far the quantised student is from the teacher on x.
      learning_rate: :math:`\eta`, at least 0, default 1e-3: a number, scalar array, or schedule of Adam's own count. 0 leaves
        the parameters as they are.
      b1: the decay of the first moment, in [0, 1).
      b2: the decay of the second moment, in [0, 1).
      eps: :math:`\epsilon`, at least 0, default 1e-8.
      eps_root: :math:`\epsilon_0`, above 0, default 1e-16: without it the derivative at a zero gradient is infinite.

    Returns:
      ``init(params) -> state`` and ``apply(state, params, x, ...) -> (params, state)``, the rest passed to ``loss_fn``. For
      `meta_augment_objective`: ``lambda x, params, state: step.apply(state, params, x)[0]``.

    Raises:
      ValueError: if ``loss_fn`` is no function, or a number is out of range.

    Cost:
      One forward and backward pass of ``loss_fn``; differentiated, about two more.
      XLA at 2 times [256, 256]: at most 1.2 times the FLOPs and 1.8 times the bytes of the student's gradient, and 0 times its
      memory more.

    Use:
      Part of: `meta_augment_objective`.
      When: Call it as the inner step, with the state of the student's running calibration carried along.
      Badly with: A new state at each step, of which the derivative by the images is next to nothing.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> step = rj.inputs.adam_student_step(lambda theta, x: jnp.mean((theta - x) ** 2), learning_rate=0.1)
      >>> theta, state = step.apply(step.init(jnp.array(0.0)), jnp.array(0.0), jnp.array([1.0, 3.0]))
      >>> round(float(theta), 4)
      0.1

    References:
      Pham et al., MetaAug: Meta-Data Augmentation for Post-Training Quantization, 2024, arXiv 2407.14726. Kingma and Ba,
      Adam: A Method for Stochastic Optimization, 2014, arXiv 1412.6980, which has no :math:`\epsilon_0`.
    """
    name = "inputs.adam_student_step"
    checks.function(name, "loss_fn", loss_fn)
    checks.strength(name, "learning_rate", learning_rate, low=0.0)
    checks.number(name, "b1", b1, low=0.0, high=1.0, open_high=True)
    checks.number(name, "b2", b2, low=0.0, high=1.0, open_high=True)
    checks.number(name, "eps", eps, low=0.0)
    checks.number(name, "eps_root", eps_root, low=0.0, open_low=True)
    optimizer = optax.adam(learning_rate, b1, b2, eps, eps_root)

    def apply(state: PyTree, params: PyTree, x: Any, *args: Any) -> tuple[PyTree, PyTree]:
        gradient = jax.grad(loss_fn)(params, x, *args)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    return Stateful(optimizer.init, apply)


def _teach(name: str, teacher_fn: Callable[..., Any], images: Array) -> tuple[Array, Array]:
    """Logits and flat features of the teacher."""
    out = teacher_fn(images)
    if not (isinstance(out, tuple) and len(out) == 2):
        checks.fail(name, "teacher_fn", "a function that returns (logits [B, K], features [B, ...])", out)
    logits = checks.floating(name, "teacher_fn", out[0], shape=(images.shape[0], None))
    features = checks.floating(name, "teacher_fn", out[1], min_ndim=2)
    if features.shape[0] != images.shape[0]:
        checks.fail(name, "teacher_fn", f"a function whose features have one row for each of {images.shape[0]} images", features)
    return logits, features.reshape(features.shape[0], -1)


def _mixup(key: Key, images: Array, alpha: Any) -> Array:
    """Mixup of images alone, with one weight of at least 1/2 for the batch."""
    lam_key, partner_key = jax.random.split(key)
    lam = symmetric_beta(lam_key, jnp.asarray(alpha, jnp.float32), ())
    partner = sample_partner(partner_key, images.shape[0], "permutation", None)
    return mix_partner(images, jnp.maximum(lam, 1 - lam), partner)
