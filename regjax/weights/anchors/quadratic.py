"""Consolidation by the full Hessian: past tasks as one quadratic around the last minimum."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks
from regjax.core.types import Array, PyTree, Strength, Where
from regjax.weights.anchors import _memory

_MOST_PARAMETERS = 20_000


class AQCState(NamedTuple):
    """The memory of `quadratic_consolidation`, of the P consolidated parameters in the order of ``ravel_pytree``.

    Attributes:
      minimum: ``[P]``, the parameters after the last task, at first 0.
      hessian: ``[P, P]``, symmetric: the prior's precision and the Hessians of all tasks so far.
    """

    minimum: Array
    hessian: Array


def aqc_init(params: PyTree, *, precision: Strength = 1.0, where: Where = "all") -> AQCState:
    r"""The memory of `quadratic_consolidation` before the first task: a normal prior around zero.

    Formula:
      .. math:: m = 0, \quad H = \pi I

      so that the penalty of the first task is :math:`\frac{\pi}{2} \|\theta\|^2`.

    Args:
      params: a parameter tree, of which the shapes are read; at most 20,000 parameters are consolidated.
      precision: :math:`\pi`, at least 0, default 1.
      where: which leaves: "all" (default), None or "kernels", a predicate ``(path, leaf) -> bool``, or a tree of booleans. The
        same for all functions of this memory.

    Returns:
      An `AQCState` in float32 or better.

    Raises:
      ValueError: if ``precision`` is negative or no number, the choice of leaves is none, or it holds too many parameters.

    Cost:
      ``P^2`` numbers of memory.
      XLA at [2570, 2570]: at most 2.2 times the FLOPs and 0.56 times the bytes of a copy of its results, and 0 times its memory
      more.

    Use:
      Part of: `quadratic_consolidation`.
      When: Once before the first task, on the few thousand parameters of a head; ``where`` must be repeated in the other two
        functions.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> state = rj.weights.aqc_init({"kernel": jnp.ones((1, 2))}, precision=3.0)
      >>> state.minimum.tolist(), state.hessian.tolist()
      ([0.0, 0.0], [[3.0, 0.0], [0.0, 3.0]])

    References:
      See `quadratic_consolidation`.
    """
    name = "weights.aqc_init"
    checks.number(name, "precision", precision, low=0.0)
    theta, _ = _memory.flat(name, params, where)
    if theta.size > _MOST_PARAMETERS:
        expected = f"a tree of at most {_MOST_PARAMETERS} parameters that where= names, as the Hessian is a full matrix"
        checks.fail(name, "params", expected, theta.size)
    hessian = jnp.asarray(precision, theta.dtype) * jnp.eye(theta.size, dtype=theta.dtype)
    return AQCState(jnp.zeros(theta.shape, theta.dtype), hessian)


def aqc_update(
    state: AQCState,
    params: PyTree,
    nll_sum: Callable[[PyTree, Any], Array],
    batches: Any,
    *,
    psd: bool = False,
    chunk_size: int | None = None,
    where: Where = "all",
) -> AQCState:
    r"""Adds a finished task to the memory of `quadratic_consolidation`: the full Hessian of its loss, by differentiation.

    Formula:
      .. math:: m \leftarrow \theta, \quad H \leftarrow H + \sum_b \nabla^2 f_b(\theta)

      over the batches b of the task. The sum is made symmetric; with ``psd`` its negative eigenvalues, which it may have
      away from a minimum, become 0.

    Args:
      state: the `AQCState` so far.
      params: the parameters at the end of the task, :math:`\theta`; evaluated in float32 or better.
      nll_sum: ``nll_sum(params, batch) -> scalar``, the negative log-likelihood SUMMED over the batch, without a penalty.
      batches: a tree of arrays ``[n_batches, ...]``, which is scanned; or a list or another iterable of batches, which is read
        once, on the host: of a compiled program it is unrolled. A tuple is one tree.
      psd: whether to clip the eigenvalues of the task's Hessian at 0, default False. Needed with hidden layers: in the study
        ``continual`` an MLP head forgot far more without it.
      chunk_size: how many columns of the Hessian are differentiated together; None (default): all.
      where: which leaves, as in `aqc_init`.

    Returns:
      The `AQCState` of all tasks.

    Raises:
      ValueError: if ``state`` is not of these parameters, ``nll_sum`` is no function or returns no scalar, ``batches`` holds none
        or arrays of different lengths, or an option does not fit.

    Cost:
      For each batch P products with the Hessian, of about two forward and backward passes each, with ``chunk_size`` of them in
      memory beside ``P^2`` numbers; with ``psd`` an eigendecomposition of ``P^3``. Once for each task. XLA counts the bodies of
      the loops once.
      XLA at [256, 256]: at most 94 times the FLOPs and 380 times the bytes of the gradient of a batch, and 110 times its memory
      more.

    Use:
      Part of: `quadratic_consolidation`.
      When: Once at the end of each task. With a hidden layer set ``psd=True``, without which our MLP head lost most of the
        gain; set ``chunk_size`` where memory is short.
      Badly with: A mean loss in place of the summed one, which weighs each task by its batches instead of its examples; dropout
        or augmentation in ``nll_sum``.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> nll_sum = lambda w, x: jnp.sum((x @ w - 1) ** 2) / 2
      >>> x = jnp.array([[[1.0, 0.0], [1.0, 2.0]]])  # one batch of two examples
      >>> state = rj.weights.aqc_update(rj.weights.aqc_init(jnp.zeros(2)), jnp.array([1.0, 0.0]), nll_sum, x)
      >>> state.hessian.tolist()
      [[3.0, 2.0], [2.0, 5.0]]

    References:
      See `quadratic_consolidation`. ``psd`` is not in the paper.
    """
    name = "weights.aqc_update"
    checks.function(name, "nll_sum", nll_sum)
    checks.boolean(name, "psd", psd)
    if chunk_size is not None:
        checks.integer(name, "chunk_size", chunk_size, low=1)
    theta, rebuild = _memory.flat(name, params, where)
    _check(name, state, theta)
    theta = jax.lax.stop_gradient(theta)

    def loss(theta: Array, batch: Any) -> Array:
        return _memory.scalar(name, "nll_sum", nll_sum(rebuild(theta), batch))

    def add(theta: Array, total: Array, batch: Any) -> Array:
        _, product = jax.linearize(jax.grad(lambda theta: loss(theta, batch)), theta)
        column = lambda i: product(jax.nn.one_hot(i, theta.size, dtype=theta.dtype))
        every = jnp.arange(theta.size)
        return total + (jax.vmap(column)(every) if chunk_size is None else jax.lax.map(column, every, batch_size=chunk_size))

    if not theta.size:
        return AQCState(theta, state.hessian)
    with jax.default_matmul_precision("highest"):
        task = _memory.over_batches(name, add, theta, jnp.zeros((theta.size, theta.size), theta.dtype), batches)
        task = (task + task.T) / 2
        if psd:
            values, vectors = jnp.linalg.eigh(task)
            task = (vectors * jnp.maximum(values, 0)) @ vectors.T
            task = (task + task.T) / 2
    return jax.lax.stop_gradient(AQCState(theta.astype(state.minimum.dtype), state.hessian + task.astype(state.hessian.dtype)))


def quadratic_consolidation(params: PyTree, state: AQCState, *, weight: Strength = 1.0, where: Where = "all") -> Array:
    r"""Keeps what earlier tasks have taught: the quadratic approximation of their loss, with the full Hessian (AQC).

    Formula:
      .. math:: \frac{w}{2} (\theta - m)^T H (\theta - m)

      with the memory m, H of `aqc_init` and `aqc_update`, constant. For tasks whose loss is quadratic and w = 1 training on one
      after the other gives the minimum of all together.

    Args:
      params: a parameter tree, :math:`\theta`.
      state: the `AQCState`. ``partial(quadratic_consolidation, state=state)`` is a penalty ``f(params) -> scalar``: build it
        inside the compiled step from a state that is an argument of the step, and nothing compiles again when a task ends.
      weight: w, at least 0, default 1. Beside the negative log-likelihood summed over a minibatch it is :math:`\lambda` over the
        number of batches of the task, beside their mean :math:`\lambda` over its number of examples. 0 is fine-tuning.
      where: which leaves, as in `aqc_init`.

    Returns:
      A scalar in float32 or better.

    Raises:
      ValueError: if ``state`` is not of these parameters, ``weight`` is negative or no number, or the choice of leaves is none.

    Cost:
      One product with the Hessian, ``2 P^2`` FLOPs, and none in the backward pass. Meant for small heads on frozen features,
      whose sharded leaves are gathered.
      XLA at [2570, 2570]: at most 2.2 times the FLOPs and 0.56 times the bytes of a copy of its arguments, and 0.01 times its
      memory more.

    Use:
      For: forgetting.
      When: A small head on frozen features learns tasks one after another without old data. In the continual study it kept the
        most of all sequential methods, with an MLP head by far, where negative eigenvalues were clipped (``psd=True``).
      Not when: Beyond some thousand parameters; or where features of old examples may be kept, which often take fewer numbers
        than the Hessian: train on them. Great strengths leave no room for the new task.
      Badly with: A trained backbone below the head: the Hessian belongs to fixed features. Weight decay to 0 of the same
        leaves, which pulls them off the old minimum.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> state = rj.weights.AQCState(jnp.array([1.0, 0.0]), jnp.array([[2.0, 1.0], [1.0, 2.0]]))
      >>> float(rj.weights.quadratic_consolidation(jnp.array([2.0, 1.0]), state))
      3.0

    References:
      Zhu and Kuruoglu, On Sequential Loss Approximation for Continual Learning, 2024, arXiv 2405.16498, whose search range of
      :math:`\lambda` is 1 to 1e4 by powers of ten.
    """
    name = "weights.quadratic_consolidation"
    checks.number(name, "weight", weight, low=0.0)
    theta, _ = _memory.flat(name, params, where)
    _check(name, state, theta)
    dtype = jnp.promote_types(theta.dtype, state.hessian.dtype)
    apart = theta.astype(dtype) - jax.lax.stop_gradient(state.minimum).astype(dtype)
    value = _half_form(apart, jax.lax.stop_gradient(state.hessian).astype(dtype))
    return jnp.asarray(weight, dtype) * value


def _check(name: str, state: Any, theta: Array) -> None:
    _memory.check_state(name, state, AQCState, "aqc_init()")
    checks.floating(name, "state.minimum", state.minimum, shape=(theta.size,))
    checks.floating(name, "state.hessian", state.hessian, shape=(theta.size, theta.size))


@jax.custom_jvp
def _half_form(x: Array, matrix: Array) -> Array:
    """``x^T M x / 2`` of a symmetric and constant M, whose derivative takes no second product with M."""
    return jnp.vdot(x, jnp.matmul(matrix, x, precision="highest"), precision="highest") / 2


def _half_form_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    x, matrix = primals
    image = jnp.matmul(matrix, x, precision="highest")
    dot = lambda a, b: jnp.vdot(a, b, precision="highest")
    return dot(x, image) / 2, dot(image, tangents[0])


# The matrix's own tangent, as large as the matrix, is not made.
_half_form.defjvp(_half_form_jvp, symbolic_zeros=True)
