"""Penalties on the weights as optax transformations: the gradient added before the optimiser, or a proximal step after it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from regjax.core import checks, trees
from regjax.core.sharding import placed_like
from regjax.core.strength import at_step, resolve
from regjax.core.types import Array, PyTree, Stateful, Strength
from regjax.gradients.updates import StepState, first_step, is_absent, map_updates, require_params


class AddPenaltyState(NamedTuple):
    """The number of steps so far, at which schedules are read, and the memory of a stateful penalty."""

    step: Array
    memory: PyTree


def add_penalty(
    penalty: Callable[[PyTree], Array] | Stateful, strength: Strength, *, seed: int = 0
) -> optax.GradientTransformationExtraArgs:
    r"""Adds the gradient of a weight penalty to the gradient, as if the penalty stood in the loss.

    Formula:
      .. math:: g \leftarrow g + s_t \, \nabla_w R(w)

      Placed before the optimiser it gives exactly the step of the loss plus ``strength * penalty(params)``, without
      touching the loss; after a clipping it adds an unclipped penalty.

    Args:
      penalty: ``f(params) -> scalar``, such as `regjax.weights.l1` or a ``functools.partial`` of a penalty, whose own
        strengths may be schedules; or a `Stateful` one, ``init(key, params) -> state`` and
        ``apply(state, params) -> (scalar, state)``, whose memory lives in the state of the transformation.
      strength: a finite number, at least 0, or a schedule of the step, which is counted from 0. 0 changes nothing.
      seed: of the key that a stateful penalty starts from, default 0.

    Returns:
      An optax transformation whose ``update`` needs the parameters; it keeps the dtypes of the updates. In
      ``optax.inject_hyperparams``, a penalty that is a function is a static argument.

    Raises:
      ValueError: if ``penalty`` is no function or returns no scalar, ``strength`` is negative or not finite, or ``update``
        gets no parameters.

    Cost:
      The penalty's, once forward and once backward; no forward pass of the model.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 1.2 times the FLOPs and 1.2 times the bytes of a plain training
      step, and 0 times its memory more.

    Use:
      For: few labels, noisy labels, sparsity budget.
      When: A weight penalty without touching the loss: for a loop that is given, several penalties with schedules of their own,
        or one with memory such as `stateful_spectral_penalty`. Equal to `with_penalty`, also in our measurements.
      Not when: Exact zeros are wanted: `proximal_step`. The penalty shall enter what `sam` perturbs by: `with_penalty` inside
        it. With Adam and an l2 norm, which it rescales: `decoupled_weight_decay`.
      Badly with: Its place before `orthogonal_gradient` or in the base of `lawn`, which project `weights.l2` away. Clipping
        before it, which leaves the penalty unclipped, or after it, which mixes both. The same penalty in the loss.

    Example:
      >>> import jax.numpy as jnp, optax, regjax as rj
      >>> tx = optax.chain(rj.gradients.add_penalty(rj.weights.l2, 0.5), optax.sgd(0.1))
      >>> params, grads = {"kernel": jnp.array([[2.0]])}, {"kernel": jnp.array([[1.0]])}
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> round(float(updates["kernel"][0, 0]), 4)
      -0.2

    References:
      Tikhonov, Solution of Incorrectly Formulated Problems and the Regularization Method, 1963, Soviet Mathematics Doklady 4.
      With adaptive optimisers this is the coupled form: see Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019,
      arXiv 1711.05101.
    """
    name = "gradients.add_penalty"
    stateful = isinstance(penalty, Stateful)
    if not stateful:
        checks.function(name, "penalty", penalty)
    checks.strength(name, "strength", strength, low=0.0)
    if not isinstance(seed, jax.Array):  # optax.inject_hyperparams makes an array of it
        checks.integer(name, "seed", seed)

    def init(params: PyTree) -> AddPenaltyState:
        memory: PyTree = ()
        if isinstance(penalty, Stateful):
            # Shapes in place of parameters give shapes in place of the memory.
            abstract = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params))
            key = jax.random.key(seed)
            memory = jax.eval_shape(penalty.init, key, params) if abstract else penalty.init(key, params)
        return AddPenaltyState(jnp.zeros((), jnp.int32), memory)

    def update(
        updates: PyTree, state: AddPenaltyState, params: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, AddPenaltyState]:
        require_params(name, params)

        def value(params: PyTree) -> tuple[Array, PyTree]:
            if isinstance(penalty, Stateful):
                out, memory = penalty.apply(state.memory, params)
            else:
                out, memory = at_step(penalty, state.step)(params), ()
            if jnp.shape(out) != ():
                checks.fail(name, "penalty", "a function of the parameters that returns a scalar", out)
            return out, memory

        scale = resolve(strength, state.step, name, "strength")
        # Counters among the parameters get no gradient, and their updates pass.
        gradient, memory = jax.grad(value, has_aux=True, allow_int=True)(params)
        add = lambda u, g: u if g.dtype == jax.dtypes.float0 else trees.add_scaled(u, scale, g)
        return map_updates(add, updates, gradient), AddPenaltyState(optax.safe_increment(state.step), memory)

    return optax.GradientTransformationExtraArgs(init, update)


def proximal_step(
    prox: Callable[[PyTree, Any], PyTree], strength: Strength, *, learning_rate: Strength | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Applies a proximal operator to the weights after the optimiser's step: the form that reaches exact zeros.

    Formula:
      .. math:: w \leftarrow prox_{s_t}(w + u), \quad s_t = strength_t \;[\cdot\; lr_t]

      ``u`` is the optimiser's update. It stands after the optimiser in the chain; with SGD of the same learning rate that
      is proximal gradient descent on the loss plus ``strength * penalty``. With momentum m the updates are 1 / (1 - m) times
      as long: give ``learning_rate`` as lr / (1 - m) for the balance that the penalty in the loss has.

    Args:
      prox: ``f(params, step) -> params``, such as `regjax.weights.prox_l1` or a ``functools.partial`` of one, whose own
        strengths may be schedules.
      strength: a finite number, at least 0, or a schedule of the step, which is counted from 0. 0 changes nothing.
      learning_rate: times this, a number or a schedule: the optimiser's. None (default): the strength is the whole step. Adaptive
        optimisers get the plain learning rate too, without their preconditioning.

    Returns:
      An optax transformation whose ``update`` needs the parameters. ``optax.apply_updates`` then gives the weights of the
      operator: weights that it sets to 0 are exactly 0, and those that it leaves keep their update bit for bit. In
      ``optax.inject_hyperparams``, ``prox`` is a static argument.

    Raises:
      ValueError: if ``prox`` is no function or changes structure or shapes, a number is negative or not finite, or
        ``update`` gets no parameters.

    Cost:
      That of the operator, and two passes over the weights; no forward pass.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 1.2 times the FLOPs and 1.2 times the bytes of a plain training
      step, and 0 times its memory more.

    Use:
      For: sparsity budget, few labels, noisy labels.
      When: Penalties with a kink, l1 and group lasso, or constraint sets: weights become exactly 0 or feasible. On digits it
        beat the penalty's gradient at the highest sparsity, and groups did well against wrong labels.
      Not when: The strength is not tuned: at twice the best one accuracy on digits collapsed, and whole units died for good.
        Let it grow by a schedule. A given sparsity is wanted: `prune`.
      Badly with: Anything after it in the chain, which moves weights off their zeros. Adam with group penalties: it steps
        without the preconditioner. Momentum that carries weights out again at small strengths. `ema`, whose averages are not
        sparse: apply a mask.

    Example:
      >>> import jax.numpy as jnp, optax, regjax as rj
      >>> tx = optax.chain(optax.sgd(0.1), rj.gradients.proximal_step(rj.weights.prox_l1, 0.5))
      >>> params, grads = {"kernel": jnp.array([[2.0, 0.3]])}, {"kernel": jnp.array([[1.0, 1.0]])}
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> [round(float(x), 4) for x in optax.apply_updates(params, updates)["kernel"][0]]
      [1.4, 0.0]

    References:
      Beck and Teboulle, A Fast Iterative Shrinkage-Thresholding Algorithm for Linear Inverse Problems, 2009, SIAM Journal on
      Imaging Sciences 2 (ISTA). Parikh and Boyd, Proximal Algorithms, 2014, Foundations and Trends in Optimization 1.
    """
    name = "gradients.proximal_step"
    checks.function(name, "prox", prox)
    checks.strength(name, "strength", strength, low=0.0)
    if learning_rate is not None:
        checks.strength(name, "learning_rate", learning_rate, low=0.0)

    def update(updates: PyTree, state: StepState, params: PyTree = None, **extra_args: Any) -> tuple[PyTree, StepState]:
        require_params(name, params)
        step = resolve(strength, state.step, name, "strength")
        if learning_rate is not None:
            step = step * resolve(learning_rate, state.step, name, "learning_rate")
        # What optax.apply_updates would give, leaf by leaf; weights without an update stay.
        reached = jax.tree.map(lambda u, p: p if is_absent(u) else (p + u).astype(p.dtype), updates, params, is_leaf=is_absent)
        target = at_step(prox, state.step)(reached, step)
        checks.same_structure(name, "prox", target, reached, "the parameters")

        def leaf(u: Array, p: Array, before: Array, after: Array) -> Array:
            # p + (0 - p) is exactly 0 in the dtype of p or a wider one; in a narrower one it would not be.
            dtype = jnp.promote_types(u.dtype, p.dtype)
            return jnp.where(after == before, placed_like(u, p).astype(dtype), after.astype(dtype) - p.astype(dtype))

        moved = map_updates(leaf, updates, params, reached, target)
        return moved, StepState(optax.safe_increment(state.step))

    return optax.GradientTransformationExtraArgs(first_step, update)
