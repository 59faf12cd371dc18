"""Sparse linear predictors of each task, differentiable by the features: what disentangles a representation.

The solvers' steps are not differentiated. At the solution the support is fixed, and there the conditions of optimality are
a smooth system: one solve of it, from the solution itself, changes no value and has the exact gradient.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, classes, sharding, trees
from regjax.core.strength import at_step
from regjax.core.types import Array, PyTree, Strength
from regjax.objectives.lift import LossFn, is_zero, strength_at


def lasso_predictor(features: Any, targets: Any, *, relative_strength: Strength, num_steps: int = 1000) -> Array:
    r"""The lasso's weights as a differentiable function of features and targets.

    Formula:
      .. math:: w = argmin \; \frac{1}{2n} \|y - Z w\|^2 + \lambda \|w\|_1, \quad \lambda = \rho \, sg(\max_j |z_j^T y| / n)

      with the relative strength rho. The gradient is that of the solution on its support S with the signs s, both constant:
      :math:`w_S = (Z_S^T Z_S)^{-1} (Z_S^T y - n \lambda s_S)`.

    Args:
      features: Z, float ``[n, d]``.
      targets: y, float ``[n]``.
      relative_strength: rho, at least 0: 0 is least squares, and from 1 on all weights are 0.
      num_steps: sweeps of coordinate descent at most, default 1000; it ends where weights no longer move.

    Returns:
      w ``[d]`` in float32 or better.

    Raises:
      ValueError: if shapes or dtypes do not fit, or a number is outside its range.

    Cost:
      Two Gram products, coordinate descent at d^2 multiplications for each sweep, and a solve of d equations; the memory of the
      backward pass does not grow with the sweeps. Of a batch sharded over devices only the products are exchanged. XLA counts one
      sweep.
      XLA at [512, 64]: at most 430 times the FLOPs and 7 times the bytes of a copy of its arguments, and 0.62 times its memory
      more.

    Use:
      Part of: `sparse_bilevel`.
      When: Call it for regression tasks, or wherever a lasso is to be a differentiable layer. Standardise the features.
      Badly with: Duplicated features, whose system is nearly singular. A relative strength near 1, at which all weights and
        gradients are 0.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> features, targets = 2**0.5 * jnp.eye(2), 2**0.5 * jnp.array([2.0, 0.5])
      >>> w = rj.objectives.lasso_predictor(features, targets, relative_strength=0.5)
      >>> [round(float(x), 4) for x in w]
      [1.0, 0.0]

    References:
      Lachapelle et al., Synergies between Disentanglement and Sparsity: Generalization and Identifiability in Multi-Task
      Learning, 2022, arXiv 2211.14666, with strength 0.3 and 25 examples for each task. Bertrand et al., Implicit
      Differentiation for Fast Hyperparameter Selection in Non-Smooth Convex Learning, 2021, arXiv 2105.01637.
    """
    name = "objectives.lasso_predictor"
    z = _features(name, features)
    y = checks.floating(name, "targets", targets, shape=z.shape[:1])
    checks.number(name, "relative_strength", relative_strength, low=0.0)
    checks.integer(name, "num_steps", num_steps, low=1)
    y = y.astype(z.dtype)
    gram = sharding.contract_rows(z, z) / z.shape[0]
    moment = sharding.contract_rows(z, y[:, None])[:, 0] / z.shape[0]
    strength = jnp.asarray(relative_strength, z.dtype) * jax.lax.stop_gradient(jnp.max(jnp.abs(moment)))
    w = _coordinate_descent(*jax.lax.stop_gradient((gram, moment, strength)), num_steps)
    used = _clearly(jnp.abs(w))
    w = jnp.where(used, w, 0)
    residual = jnp.where(used, moment - gram @ w - strength * jnp.sign(w), 0)
    return w + _solve(jnp.where(used[:, None] & used, gram, 0), used, residual)


def group_lasso_predictor(
    features: Any, labels: Any, num_classes: int, *, relative_strength: Strength, num_steps: int = 1000
) -> Array:
    r"""The weights of a logistic regression that uses few features, as a differentiable function of these.

    Formula:
      .. math::
        W = argmin \; \frac{1}{n} \sum_i CE(z_i W, y_i) + \lambda \sum_j \|W_j\|, \quad
        \lambda = \rho \, sg(\max_j \|z_j^T Y\|) / (4 n)

      with the rows :math:`W_j` of features, one-hot labels Y and the relative strength rho. The gradient is the implicit one
      on the rows that are not 0.

    Args:
      features: Z, float ``[n, d]``.
      labels: y, integer class ids ``[n]``.
      num_classes: K, at least 2.
      relative_strength: rho, above 0: without a penalty separable examples have no best weights.
      num_steps: proximal gradient steps at most, default 1000; it ends where weights no longer move.

    Returns:
      W ``[d, K]`` in float32 or better, for logits ``features @ W``; there is no bias.

    Raises:
      ValueError: if shapes or dtypes do not fit, or a number is outside its range.

    Cost:
      Accelerated proximal gradient at 4 n d K operations for each step, and a solve of d K equations, whose matrix takes d K
      passes: for tens of features. First derivatives only. A sharded batch is gathered. XLA counts one step, and the solve as
      next to nothing.
      XLA at [128, 32]: at most 4,000 times the FLOPs and 180 times the bytes of a copy of its arguments, and 28 times its
      memory more.

    Use:
      Part of: `sparse_bilevel`.
      When: Call it for classification with more examples than features: its solve is by features times classes.
      Not when: Features are hundreds and examples few: `group_svm_predictor`.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> features = jnp.array([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [-1.0, -0.1]])
      >>> w = rj.objectives.group_lasso_predictor(features, jnp.array([0, 0, 1, 1]), 2, relative_strength=0.5)
      >>> (w[0, 0] > 0).tolist(), w[1].tolist()
      (True, [0.0, 0.0])

    References:
      Lachapelle et al., Synergies between Disentanglement and Sparsity: Generalization and Identifiability in Multi-Task
      Learning, 2022, arXiv 2211.14666. The strength is that of the authors' code, where it may be the exponential of its
      parameter; all weights are 0 not at 1 but from :math:`4 \max_j \|z_j^T (Y - 1/K)\| / \max_j \|z_j^T Y\|` on.
    """
    name = "objectives.group_lasso_predictor"
    z, one_hot = _classified(name, features, labels, num_classes)
    checks.number(name, "relative_strength", relative_strength, low=0.0, open_low=True)
    checks.integer(name, "num_steps", num_steps, low=1)
    n = z.shape[0]
    largest = jax.lax.stop_gradient(jnp.max(trees.safe_norm(z.T @ one_hot, axis=-1)))
    strength = jnp.asarray(relative_strength, z.dtype) * largest / (4 * n)

    def slope(w: Array, z: Array) -> Array:
        return z.T @ (jax.nn.softmax(z @ w, axis=-1) - one_hot) / n

    fixed, bound = jax.lax.stop_gradient((z, strength)), _curvature(jax.lax.stop_gradient(z)) / (2 * n)
    step = 1 / jnp.where(bound > 0, bound, 1)
    start = jnp.zeros((z.shape[1], num_classes), z.dtype)
    w = _accelerated(lambda v: _block_threshold(v - step * slope(v, fixed[0]), step * fixed[1]), start, num_steps)
    used = _clearly(trees.safe_norm(w, axis=-1))[:, None]
    w = jnp.where(used, w, 0)

    def condition(w: Array, z: Array, strength: Array) -> Array:
        length = trees.safe_norm(w, axis=-1, keepdims=True)
        return jnp.where(used, slope(w, z) + strength * w / jnp.where(used, length, 1), 0)

    matrix = jax.jacfwd(condition)(w, *fixed).reshape(w.size, w.size)
    flags = jnp.broadcast_to(used, w.shape).ravel()
    matrix = jnp.where(flags[:, None] & flags, matrix, 0)
    return w - _solve(matrix, flags, condition(w, z, strength).ravel()).reshape(w.shape)


def group_svm_predictor(
    features: Any,
    labels: Any,
    num_classes: int,
    *,
    relative_strength: Strength,
    ridge: float = 1000.0,
    dual_ridge: float = 1.0,
    num_steps: int = 1000,
) -> Array:
    r"""The weights of a multi-class support vector machine that uses few features, as a differentiable function of these.

    Formula:
      .. math:: W = \frac{1}{\lambda_2} BST(Z^T (Y - \beta), \lambda_1), \quad
        BST(v, \lambda)_j = v_j \left( 1 - \frac{\lambda}{\|v_j\|} \right)_+

      with :math:`\beta`, rows on the simplex, the minimiser of the dual
      :math:`\frac{\lambda_2}{2} \|W\|^2 + \frac{\delta}{2} \|Y - \beta\|^2 + \langle \beta, Y \rangle`. It is the machine of
      Crammer and Singer with the penalty :math:`\lambda_1 \sum_j \|W_j\| + \frac{\lambda_2}{2} \|W\|^2`, its hinge loss
      smoothed by :math:`\delta`. Here :math:`\lambda_1` is the relative strength times the smallest at which W is 0.

    Args:
      features: Z, float ``[n, d]``.
      labels: y, integer class ids ``[n]``.
      num_classes: K, at least 2.
      relative_strength: at least 0: 0 uses all features, and from 1 on all weights are 0.
      ridge: :math:`\lambda_2`, above 0, default 1000.
      dual_ridge: :math:`\delta`, above 0, default 1.
      num_steps: projected gradient steps at most, default 1000; it ends where the dual no longer moves.

    Returns:
      W ``[d, K]`` in float32 or better, for logits ``features @ W``; there is no bias.

    Raises:
      ValueError: if shapes or dtypes do not fit, or a number is outside its range.

    Cost:
      Accelerated projected gradient at 4 n d K operations for each step, and a solve of n K equations, whose matrix takes n K
      passes: for few examples. First derivatives only. A sharded batch is gathered. XLA counts one step, and the solve as next to
      nothing.
      XLA at [25, 256]: at most 3,900 times the FLOPs and 140 times the bytes of a copy of its arguments, and 31 times its
      memory more.

    Use:
      Part of: `sparse_bilevel`.
      When: Call it for few-shot classification: its solve is by examples times classes, however wide the features.
      Not when: Examples are many: `group_lasso_predictor`. Probabilities are wanted: its outputs are margins.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> features = jnp.array([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [-1.0, -0.1]])
      >>> w = rj.objectives.group_svm_predictor(features, jnp.array([0, 0, 1, 1]), 2, relative_strength=0.5)
      >>> (w[0, 0] > 0).tolist(), w[1].tolist()
      (True, [0.0, 0.0])

    References:
      Lachapelle et al., Synergies between Disentanglement and Sparsity: Generalization and Identifiability in Multi-Task
      Learning, 2022, arXiv 2211.14666, on the machine of Lee et al., Meta-Learning with Differentiable Convex Optimization,
      2019, arXiv 1904.03758, whose code adds the identity to the matrix of the dual. Where that enters with a threshold is
      reconstructed here, and so is the relative strength.
    """
    name = "objectives.group_svm_predictor"
    z, one_hot = _classified(name, features, labels, num_classes)
    checks.number(name, "relative_strength", relative_strength, low=0.0)
    checks.number(name, "ridge", ridge, low=0.0, open_low=True)
    checks.number(name, "dual_ridge", dual_ridge, low=0.0, open_low=True)
    checks.integer(name, "num_steps", num_steps, low=1)
    l2, smoothing = (jnp.asarray(value, z.dtype) for value in (ridge, dual_ridge))
    # At W = 0 the dual's solution is the labels moved this far towards equal shares.
    share = jnp.minimum(1 / smoothing, num_classes / (num_classes - 1))
    alone = z.T @ (share * (one_hot - 1 / num_classes))
    strength = jnp.asarray(relative_strength, z.dtype) * jax.lax.stop_gradient(jnp.max(trees.safe_norm(alone, axis=-1)))

    def primal(beta: Array, z: Array, strength: Array) -> Array:
        return _block_threshold(z.T @ (one_hot - beta), strength) / l2

    def slope(beta: Array, z: Array, strength: Array) -> Array:
        return one_hot + smoothing * (beta - one_hot) - z @ primal(beta, z, strength)

    fixed = jax.lax.stop_gradient((z, strength))
    step = 1 / (smoothing + _curvature(fixed[0]) / l2)
    start = jnp.full(one_hot.shape, 1 / num_classes, z.dtype)
    beta = _accelerated(lambda b: _to_simplex(b - step * slope(b, *fixed)), start, num_steps)
    used = beta > 0

    def along(x: Array) -> Array:
        """The part of a change that keeps zeros and row sums."""
        kept = jnp.where(used, x, 0)
        mean = jnp.sum(kept, axis=-1, keepdims=True) / jnp.sum(used, axis=-1, keepdims=True)
        return jnp.where(used, kept - mean, 0)

    def operator(x: Array) -> Array:
        x = x.reshape(beta.shape)
        inside = along(x)
        moved = jax.jvp(lambda b: slope(b, *fixed), (beta,), (inside,))[1]
        return (along(moved) + (x - inside) * smoothing).ravel()

    matrix = jax.vmap(operator)(jnp.eye(beta.size, dtype=beta.dtype))
    delta = jnp.linalg.solve(matrix, along(slope(beta, z, strength)).ravel())
    return primal(beta - delta.reshape(beta.shape), z, strength)


def sparse_bilevel(
    encoder: Callable[..., Array],
    predictor: Callable[..., Array],
    *,
    loss: Callable[..., Array] | None = None,
    l1: Strength = 0.0,
    l2: Strength = 0.0,
) -> LossFn:
    r"""The loss of a representation from which a sparse predictor of each task is fitted: bi-level disentanglement.

    Formula:
      .. math:: \frac{1}{T} \sum_t \frac{1}{n} \sum_i l(\phi(x'_{ti}) \, w_t, y'_{ti}) + c_1 \|w_t\|_1 + \frac{c_2}{2} \|w_t\|^2

      with :math:`w_t` the predictor fitted to the features and targets of task t. The gradient flows to the encoder through
      the features and through the fitted weights.

    Args:
      encoder: ``encoder(params, inputs [n, ...]) -> features [n, d]``, called for each task under ``vmap`` with the axis name
        ``"tasks"``, so that a batch normalisation can average over tasks.
      predictor: ``predictor(features, targets) -> w [d] or W [d, K]``, such as
        ``partial(lasso_predictor, relative_strength=0.3)``, whose strength may be a schedule.
      loss: l, ``loss(predictions [n] or [n, K], targets [n]) -> [n]``; None (default): half the squared error for a vector w,
        the cross-entropy for a matrix.
      l1: :math:`c_1`, at least 0, default 0; a number, or a schedule read at the keyword ``step`` of the call.
      l2: :math:`c_2`, at least 0, default 0; as ``l1``.

    Returns:
      ``loss_fn(params, tasks, *, step=None) -> scalar`` with ``tasks = (inputs [T, n, ...], targets [T, n])``, fitted and
      judged on the same examples, as published; or ``(inputs, targets, query_inputs, query_targets)``, judged on the latter.
      Other objectives take it as their loss.

    Raises:
      ValueError: if something is no function, a strength is negative or not finite, or ``tasks`` is not as stated.

    Cost:
      The encoder's on all examples, and the predictor's for each task. Tasks may be sharded over devices. XLA counts the loop of
      a predictor once.
      XLA at [32, 64, 256]: at most 1.3 times the FLOPs and 1.8 times the bytes of the encoder's forward and backward pass, and
      0.13 times its memory more.

    Use:
      For: few labels.
      When: Many small tasks share a representation and each depends on few of its factors. Sparse predictors found the latents
        of a linear mixture, which dense ones did not. Features need one scale, as by BatchNorm over tasks.
      Not when: There is one task, or all tasks use all factors: sparsity then tells nothing about axes. Features are hundreds
        wide: the inner solve grows with them.
      Badly with: Features of unlike scales, of which the larger are penalised less. Dense predictors on the same features,
        which are content with any rotation. `gradient_penalty` by 'exact': group predictors have first derivatives only.

    Example:
      >>> import functools, jax.numpy as jnp, regjax as rj
      >>> predictor = functools.partial(rj.objectives.lasso_predictor, relative_strength=0.5)
      >>> loss_fn = rj.objectives.sparse_bilevel(lambda params, x: x @ params, predictor)
      >>> inputs, targets = 2**0.5 * jnp.eye(2)[None], 2**0.5 * jnp.array([[2.0, 0.5]])
      >>> round(float(loss_fn(jnp.eye(2), (inputs, targets))), 4)
      0.625

    References:
      Lachapelle et al., Synergies between Disentanglement and Sparsity: Generalization and Identifiability in Multi-Task
      Learning, 2022, arXiv 2211.14666.
    """
    name = "objectives.sparse_bilevel"
    checks.function(name, "encoder", encoder)
    checks.function(name, "predictor", predictor)
    if loss is not None:
        checks.function(name, "loss", loss)
    checks.strength(name, "l1", l1, low=0.0)
    checks.strength(name, "l2", l2, low=0.0)

    def loss_fn(params: PyTree, tasks: Any, *, step: Any = None) -> Array:
        if not isinstance(tasks, list | tuple) or len(tasks) not in (2, 4):
            checks.fail(name, "tasks", "(inputs, targets) or (inputs, targets, query_inputs, query_targets)", tasks)
        tasks = tuple(checks.array(name, "tasks", part, min_ndim=2) for part in tasks)
        if len({part.shape[0] for part in tasks}) != 1 or any(tasks[i].shape[1] != tasks[i + 1].shape[1] for i in (0, -2)):
            checks.fail(name, "tasks", "of one number of tasks, targets with the examples of inputs", tasks[1])
        first, second = (strength_at(name, argument, value, step, low=0.0) for argument, value in (("l1", l1), ("l2", l2)))
        fit = predictor if step is None else at_step(predictor, step)

        def one(inputs: Array, targets: Array, *query: Array) -> Array:
            features = encoder(params, inputs)
            w = fit(features, targets)
            if query:
                features, targets = encoder(params, query[0]), query[1]
            predictions = features.astype(trees.accumulator(features)) @ w
            judged = jnp.mean(_judge(name, loss, predictions, targets))
            for weight, size in ((first, trees.absolute(w)), (second, jnp.square(w) / 2)):
                if not is_zero(weight):
                    judged = judged + jnp.asarray(weight, judged.dtype) * jnp.sum(size)
            return judged

        return jnp.mean(jax.vmap(one, axis_name="tasks")(*tasks))

    return loss_fn


def _judge(name: str, loss: Any, predictions: Array, targets: Array) -> Array:
    if loss is not None:
        return loss(predictions, targets)
    if predictions.ndim == 1:
        return jnp.square(predictions - targets) / 2
    return classes.cross_entropy(classes.class_inputs(name, predictions, targets))


def _features(name: str, features: Any) -> Array:
    z = checks.floating(name, "features", features, ndim=2)
    if 0 in z.shape:
        checks.fail(name, "features", "an array [n, d] of at least one example and one feature", z)
    return z.astype(trees.accumulator(z))


def _classified(name: str, features: Any, labels: Any, num_classes: Any) -> tuple[Array, Array]:
    """Features and one-hot labels, whole on every device."""
    z = _features(name, features)
    labels = checks.integers(name, "labels", labels, shape=z.shape[:1])
    checks.integer(name, "num_classes", num_classes, low=2)
    return sharding.replicate(z), jax.nn.one_hot(sharding.replicate(labels), num_classes, dtype=z.dtype)


def _clearly(sizes: Array) -> Array:
    """Which weights are not 0: between copies of a feature the solver leaves rounding errors."""
    return sizes > 100 * jnp.finfo(sizes.dtype).eps * jnp.max(sizes)


def _solve(matrix: Array, used: Array, right: Array) -> Array:
    """Solves on the support, for a right side that is 0 elsewhere and a matrix that is."""
    largest = jnp.max(jnp.abs(jnp.diagonal(matrix)))
    scale = jax.lax.stop_gradient(jnp.where(largest > 0, largest, 1))
    # Copies of a feature would make it singular. The right side has the value 0 at a solution, so this only bounds the gradient.
    ridge = max(1e-8, 10 * float(jnp.finfo(matrix.dtype).eps)) * scale
    return jnp.linalg.solve(matrix + jnp.diag(jnp.where(used, ridge, scale)), right)


def _coordinate_descent(gram: Array, moment: Array, strength: Array, num_steps: int) -> Array:
    """The lasso's weights from the Gram matrix and the moment with the targets."""
    tolerance = 16 * jnp.finfo(gram.dtype).eps
    diagonal = jnp.diagonal(gram)
    inverse = jnp.where(diagonal > 0, 1 / jnp.where(diagonal > 0, diagonal, 1), 0)

    def coordinate(j: Any, state: tuple[Array, Array]) -> tuple[Array, Array]:
        w, residual = state
        pull = residual[j] + diagonal[j] * w[j]
        new = jnp.sign(pull) * jnp.maximum(jnp.abs(pull) - strength, 0) * inverse[j]
        return w.at[j].set(new), residual - gram[:, j] * (new - w[j])

    def sweep(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        count, w, _ = state
        new, _ = jax.lax.fori_loop(0, w.size, coordinate, (w, moment - gram @ w))
        return count + 1, new, jnp.max(jnp.abs(new - w))

    def moves(state: tuple[Array, Array, Array]) -> Array:
        count, w, change = state
        return (count < num_steps) & (change > tolerance * jnp.max(jnp.abs(w)))

    first = sweep((jnp.zeros((), jnp.int32), jnp.zeros_like(moment), jnp.zeros((), gram.dtype)))
    return jax.lax.while_loop(moves, sweep, first)[1]


def _accelerated(step: Callable[[Array], Array], start: Array, num_steps: int) -> Array:
    """A fixed point of a (proximal) gradient step, with momentum that restarts where it points uphill; no gradient."""
    tolerance = 16 * jnp.finfo(start.dtype).eps

    def body(state: tuple[Array, ...]) -> tuple[Array, ...]:
        count, x, ahead, t, _ = state
        new = step(ahead)
        uphill = jnp.vdot(ahead - new, new - x) > 0
        t = jnp.where(uphill, 1, t)
        following = (1 + jnp.sqrt(1 + 4 * t * t)) / 2
        momentum = jnp.where(uphill, 0, (t - 1) / following)
        return count + 1, new, new + momentum * (new - x), following, jnp.max(jnp.abs(new - ahead))

    def moves(state: tuple[Array, ...]) -> Array:
        count, x, _, _, change = state
        return (count < num_steps) & (change > tolerance * jnp.max(jnp.abs(x)))

    first = body((jnp.zeros((), jnp.int32), start, start, jnp.ones((), start.dtype), jnp.zeros((), start.dtype)))
    return jax.lax.while_loop(moves, body, first)[1]


def _curvature(z: Array) -> Array:
    """An upper bound of the largest eigenvalue of Z^T Z: its largest row sum, or its trace where that is smaller."""
    gram = z.T @ z
    return jnp.minimum(jnp.max(jnp.sum(jnp.abs(gram), axis=-1)), jnp.trace(gram))


def _block_threshold(v: Array, strength: Any) -> Array:
    """Rows shortened by ``strength``, 0 where they are no longer than that."""
    length = trees.safe_norm(v, axis=-1, keepdims=True)
    kept = length > strength
    return jnp.where(kept, v * (1 - strength / jnp.where(kept, length, 1)), 0)


def _to_simplex(v: Array) -> Array:
    """The nearest point of the simplex, row by row."""
    falling = jnp.flip(jnp.sort(v, axis=-1), axis=-1)
    above = jnp.cumsum(falling, axis=-1) - 1
    counts = jnp.arange(1, v.shape[-1] + 1, dtype=v.dtype)
    size = jnp.sum(falling * counts > above, axis=-1, keepdims=True)
    level = jnp.take_along_axis(above, size - 1, axis=-1) / size
    return jnp.maximum(v - level, 0)
