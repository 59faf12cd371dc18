"""Directions made of the gradients at the weights and at perturbed weights: GSAM, and LookSAM with its memory."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.sharding import placed_like, varying_like
from regjax.core.strength import accepts
from regjax.core.types import Array, PyTree, Stateful, Strength, Where
from regjax.objectives.lift import (
    AxisName,
    BoundLoss,
    LossFn,
    attach_gradient,
    freeze,
    is_zero,
    lift,
    shift,
    strength_at,
)
from regjax.objectives.sharpness._perturbations import (
    AUX_FROM,
    accumulated,
    ascent,
    check_ascent,
    orthogonal_part,
    scales_of,
)


def gsam(
    loss_fn: LossFn,
    *,
    rho: Strength,
    alpha: Strength = 0.4,
    adaptive: bool | Literal["asam"] = False,
    eta: float = 0.01,
    scale_mask: Where = None,
    axis_name: AxisName = None,
    has_aux: bool = False,
    aux_from: Literal["clean", "perturbed"] = "clean",
    with_info: bool = False,
    norm_eps: float = 1e-12,
) -> LossFn:
    r"""Sharpness-aware minimisation that also closes the gap between the perturbed and the plain loss: GSAM.

    Formula:
      .. math:: d = g_s - \alpha v, \quad v = g_0 - \frac{\langle g_0, g_s \rangle}{\|g_s\|^2} g_s, \quad
                g_0 = \nabla f(w), \quad g_s = (\nabla f)(w + \epsilon)

      with the :math:`\epsilon` of `sam`. The step along :math:`-d` lowers the perturbed loss as SAM does, and at right angles to
      that it raises the plain loss, so that the two meet. ``jax.grad(gsam(loss_fn, rho=rho))`` is d; the value is the perturbed
      loss :math:`f(w + \epsilon)`.

    Args:
      loss_fn: ``loss_fn(params, *args, **kwargs) -> scalar``, or ``(scalar, aux)`` with ``has_aux=True``. Only floating leaves of
        ``params`` are perturbed, best in float32.
      rho: the radius, at least 0; a number, or a schedule read at the keyword ``step`` of the call. The paper lets it follow the
        learning rate: `regjax.schedules.gsam_rho`. 0 is ``loss_fn``.
      alpha: the weight of the part at right angles, at least 0, default 0.4; a number or a schedule. 0 is `sam`.
      adaptive: False (default), True, or ``"asam"``, as in `sam`.
      eta: what ``"asam"`` adds to the weights' sizes, at least 0, default 0.01.
      scale_mask: which leaves ``"asam"`` scales, as in `sam`.
      axis_name: the mapped axis (or axes) of `jax.shard_map` or ``vmap`` over which both gradients are averaged; None (default):
        each device perturbs by its own examples.
      has_aux: whether ``loss_fn`` returns ``(scalar, aux)``.
      aux_from: the pass whose aux is returned: ``"clean"`` (default) or ``"perturbed"``.
      with_info: adds ``{"clean_loss", "surrogate_gap", "gradient_norm", "perturbation_norm"}``: the result is
        ``(loss, (aux, info))``, or ``(loss, info)`` without ``has_aux``. The gap is the perturbed minus the clean loss.
      norm_eps: added to the norm, at least 0, default 1e-12.

    Returns:
      A loss function with the signature of ``loss_fn`` that also accepts ``step``. Its value is the perturbed loss; by other
      arguments than ``params`` its gradient is that of this value. It must not be differentiated twice.

    Raises:
      ValueError: if a strength or option does not fit, ``loss_fn`` returns no scalar, or a schedule is called without ``step``.

    Cost:
      One more forward and backward pass: 2.03 times the FLOPs, and two copies of the weights.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 2.3 times the FLOPs and 2.6 times the bytes of a plain training
      step, and 0.088 times its memory more.

    Use:
      For: sharp minima, noisy labels.
      When: `sam` lowers the perturbed loss while the gap to the plain one stays wide (see with_info), or rho follows the
        learning rate by `gsam_rho`. With a small alpha it was somewhat ahead of `sam` on noisy digits.
      Not when: alpha stays at its default beside a large rho: on the digits that ended at chance at the radius at which a
        quarter of it did best. On a long tail it was not ahead of `sam`.
      Badly with: Transforms that differentiate it twice, and line searches: its gradient is not that of its value.
        `orthogonal_gradient`, a second projection of the same direction. BatchNorm averages from the perturbed pass.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> loss_fn = lambda w: (w[0] ** 2 + 4 * w[1] ** 2) / 2
      >>> gradient = jax.grad(rj.objectives.gsam(loss_fn, rho=0.5, alpha=0.4))(jnp.array([1.0, 1.0]))
      >>> [round(float(g), 4) for g in gradient]
      [1.0266, 5.9581]

    References:
      Zhuang et al., Surrogate Gap Minimization Improves Sharpness-Aware Training, 2022, arXiv 2203.08065. The authors' code adds
      1e-12 to each norm of the projection; here a zero gradient has no component along it.
    """
    name = "objectives.gsam"
    checks.strength(name, "rho", rho, low=0.0)
    checks.strength(name, "alpha", alpha, low=0.0)
    check_ascent(name, adaptive, eta, norm_eps)
    checks.axis_name(name, axis_name)
    checks.choice(name, "aux_from", aux_from, AUX_FROM)
    checks.boolean(name, "with_info", with_info)

    def objective(loss: BoundLoss, params: PyTree, step: Any) -> Any:
        radius = strength_at(name, "rho", rho, step, low=0.0)
        weight = strength_at(name, "alpha", alpha, step, low=0.0)
        if is_zero(radius) and not with_info:
            return loss.result(*loss(params))
        clean = loss.gradient(params, axis_name)
        offset = ascent(clean.gradient, radius, norm_eps, scales_of(name, params, adaptive, eta, scale_mask))
        active = jnp.asarray(radius) != 0
        moved = shift(freeze(params), offset, active)
        sharp = accumulated(loss.gradient(moved, axis_name).gradient)
        aside = orthogonal_part(accumulated(clean.gradient), sharp)
        turn = lambda v: jnp.where(active, jnp.asarray(weight, v.dtype) * v, 0)
        direction = [g - turn(v) for g, v in zip(sharp, aside, strict=True)]
        # The same pass as above, whose value the compiler shares, for the gradient by the other arguments.
        value, aux = loss(moved)
        info = {
            "clean_loss": clean.value,
            "surrogate_gap": jax.lax.stop_gradient(value) - clean.value,
            "gradient_norm": trees.global_norm(clean.gradient),
            "perturbation_norm": trees.global_norm(offset),
        }
        value = value + attach_gradient(jnp.zeros_like(value), direction, trees.float_leaves(params))
        aux = clean.aux if aux_from == "clean" else aux
        return (value, (aux, info) if has_aux else info) if with_info else loss.result(value, aux)

    return lift(name, loss_fn, has_aux, objective)


class LookSamState(NamedTuple):
    """The memory of `look_sam`: the last turn of the SAM gradient away from the plain one, and the number of steps."""

    turn: PyTree
    step: Array


def look_sam(
    loss_fn: LossFn,
    *,
    rho: Strength = 0.1,
    alpha: Strength = 0.7,
    period: int = 10,
    norm: Literal["global", "leaf"] = "global",
    axis_name: AxisName = None,
    has_aux: bool = False,
    norm_eps: float = 1e-12,
) -> Stateful:
    r"""SAM whose second pass is made in one of several steps; between them the last turn towards flatness is used again.

    Formula:
      .. math:: d_t = g_s, \quad v = g_s - \frac{\langle g_s, g \rangle}{\|g\|^2} g \qquad \text{in steps } 0, k, 2k, ...

      .. math:: d_t = g + \alpha \frac{\|g\|}{\|v\| + 10^{-8}} v \qquad \text{in the others}

      with :math:`g = \nabla f(w)`, :math:`g_s = (\nabla f)(w + \rho g / \|g\|)`, the period k, and v kept in the memory.

    Args:
      loss_fn: ``loss_fn(params, *args, **kwargs) -> scalar``, or ``(scalar, aux)`` with ``has_aux=True``. Only floating leaves of
        ``params`` are perturbed, best in float32.
      rho: the radius, at least 0, default 0.1; a number, or a schedule read at the step of the memory, or at the keyword
        ``step`` where it is given. 0 is ``loss_fn``, with the memory as it was.
      alpha: the weight of the turn in the steps between, at least 0, default 0.7; a number or a schedule. 0: plain gradients
        there.
      period: k, at least 1, default 10. 1 is `sam`.
      norm: products and norms of v over all leaves, ``"global"`` (default), or in each, ``"leaf"``. Those of the perturbation
        are over all leaves in any case.
      axis_name: the mapped axis (or axes) of `jax.shard_map` or ``vmap`` over which the gradients are averaged, so that all
        devices have the same memory. None (default): each its own.
      has_aux: whether ``loss_fn`` returns ``(scalar, aux)``.
      norm_eps: added to the norm of the gradient, at least 0, default 1e-12.

    Returns:
      ``init(params) -> LookSamState``, and ``apply(state, params, *args, step=None, **kwargs) -> (loss, state)``, or
      ``(loss, (state, aux))`` with ``has_aux=True``, the aux of the pass at ``params``. So that
      ``jax.value_and_grad(apply, argnums=1, has_aux=True)(state, params, *args)`` is ``((loss, state), d)``. The value is the
      perturbed loss in the steps of the period and the plain one between; by other arguments than ``params`` its gradient is
      that of this value. It must not be differentiated twice. The memory is in float32 or better.

    Raises:
      ValueError: if a strength or option does not fit, ``loss_fn`` returns no scalar, or the state is not of these parameters.

    Cost:
      One more forward and backward pass in one of k steps: (1 + 1 / k) times the FLOPs on average; two copies of the weights, one
      of them kept. Under ``vmap`` over states of different steps both branches are computed, in each step. XLA counts both kinds
      of step in each.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 2.3 times the FLOPs and 2.7 times the bytes of a plain training
      step, and 0.089 times its memory more.

    Use:
      For: sharp minima, compute budget.
      When: `sam` helps but its second pass is too dear. On noisy digits with a period of 5 it was ahead of `sam` and stood a
        larger radius, as the plain steps between pull it back.
      Not when: Gradients turn quickly between steps (small batches, a long period), so that the kept turn is stale. An alpha
        above the default hurt on the digits at every radius.
      Badly with: ``vmap`` over states of different steps, which computes both branches each time. Other transforms around it:
        it has a memory and stands last. Restarts that lose that memory in mid-period.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> loss_fn = lambda w: (w[0] ** 2 + 4 * w[1] ** 2) / 2
      >>> look = rj.objectives.look_sam(loss_fn, rho=0.5, alpha=0.7, period=5)
      >>> step = jax.value_and_grad(look.apply, argnums=1, has_aux=True)
      >>> (_, state), gradient = step(look.init(jnp.ones(2)), jnp.array([1.0, 1.0]))
      >>> [round(float(g), 4) for g in gradient]
      [1.1213, 5.9403]
      >>> (_, state), gradient = step(state, jnp.array([2.0, 0.0]))
      >>> [round(float(g), 4) for g in gradient]
      [0.6418, 0.3395]

    References:
      Liu et al., Towards Efficient and Scalable Sharpness-Aware Minimization, 2022, arXiv 2203.02714. Public PyTorch codes
      take the norms of each tensor, ``norm="leaf"``, and put back the weights of the last SAM step in every ordinary one,
      which is not done here.
    """
    name = "objectives.look_sam"
    checks.function(name, "loss_fn", loss_fn)
    checks.boolean(name, "has_aux", has_aux)
    checks.strength(name, "rho", rho, low=0.0)
    checks.strength(name, "alpha", alpha, low=0.0)
    checks.integer(name, "period", period, low=1)
    checks.choice(name, "norm", norm, ("global", "leaf"))
    checks.axis_name(name, axis_name)
    checks.number(name, "norm_eps", norm_eps, low=0.0)
    takes_step = accepts(loss_fn, "step")

    def init(params: PyTree) -> LookSamState:
        zeros = lambda leaf: jnp.zeros_like(leaf, dtype=trees.accumulator(leaf)) if trees.is_float(leaf) else None
        return LookSamState(jax.tree.map(zeros, params), jnp.zeros((), jnp.int32))

    def turn_of(sharp: list[Array], plain: list[Array]) -> list[Array]:
        if norm == "global":
            return orthogonal_part(sharp, plain)
        return [orthogonal_part([s], [g])[0] for s, g in zip(sharp, plain, strict=True)]

    def ratios(plain: list[Array], turn: list[Array]) -> list[Array]:
        if norm == "global":
            return [trees.global_norm(plain) / (trees.global_norm(turn) + 1e-8)] * len(plain)
        return [trees.safe_norm(g) / (trees.safe_norm(v) + 1e-8) for g, v in zip(plain, turn, strict=True)]

    def apply(state: LookSamState, params: PyTree, *args: Any, step: Any = None, **kwargs: Any) -> tuple[Any, Any]:
        leaves = trees.float_leaves(params)
        turn = jax.tree.leaves(state.turn) if isinstance(state, LookSamState) else None
        if turn is None or [jnp.shape(v) for v in turn] != [leaf.shape for leaf in leaves]:
            checks.fail(name, "state", "the LookSamState that init(params) makes of these parameters", state)
        turn = freeze(turn)
        now = state.step if step is None else step
        radius = strength_at(name, "rho", rho, now, low=0.0)
        weight = strength_at(name, "alpha", alpha, now, low=0.0)
        if takes_step and step is not None:
            kwargs["step"] = step
        loss = BoundLoss(name, loss_fn, has_aux, args, kwargs)
        if is_zero(radius):
            value, aux = loss(params)
        else:
            value, aux = loss(freeze(params))  # for the gradient by the other arguments; the compiler shares its value
            gradient = loss.gradient(params, axis_name).gradient
            plain = accumulated(gradient)
            active = jnp.asarray(radius) != 0
            # Both branches have to give the same types: on an Explicit mesh the shardings of the parameters, and inside
            # jax.shard_map values of each device where the gradients are.
            place = lambda v, leaf, g: varying_like(placed_like(v, leaf), g)
            placed = lambda vectors: [place(*each) for each in zip(vectors, leaves, plain, strict=True)]

            def look() -> tuple[Array, list[Array], list[Array]]:
                moved = shift(freeze(params), ascent(gradient, radius, norm_eps), active)
                sharp = accumulated(loss.gradient(moved, axis_name).gradient)
                kept = [v.astype(old.dtype) for v, old in zip(turn_of(sharp, plain), turn, strict=True)]
                return loss(moved)[0], placed(sharp), placed(kept)

            def reuse() -> tuple[Array, list[Array], list[Array]]:
                shares = [jnp.where(active, jnp.asarray(weight, r.dtype) * r, 0) for r in ratios(plain, turn)]
                turned = [g + (share * v).astype(g.dtype) for g, share, v in zip(plain, shares, turn, strict=True)]
                return value, placed(turned), placed(turn)

            value, direction, turn = jax.lax.cond((state.step % period == 0) & active, look, reuse)
            value = value + attach_gradient(jnp.zeros_like(value), direction, leaves)
        kept = jax.tree.unflatten(jax.tree.structure(state.turn), turn)
        state = LookSamState(kept, state.step + 1)
        return value, (state, aux) if has_aux else state

    return Stateful(init, apply)
