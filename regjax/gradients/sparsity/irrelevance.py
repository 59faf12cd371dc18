"""Weight decay for the weights that the loss does not feel: on the way to a sparse network."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from regjax.core import checks, trees
from regjax.core.sharding import placed_like
from regjax.core.strength import resolve
from regjax.core.types import Array, PyTree, Strength, Where
from regjax.gradients.updates import is_absent, map_updates, require_params, require_transformation
from regjax.weights.sparsity.irrelevance import GATES, irrelevance


class IrrelevanceState(NamedTuple):
    """The number of steps so far, at which schedules are read, and the state of the wrapped optimiser."""

    step: Array
    inner: PyTree


def irrelevance_decay(
    inner: optax.GradientTransformation,
    decay: Strength,
    *,
    gradient_scale: Strength = 1.0,
    gate: str = "exp",
    where: Where = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Decoupled weight decay that spares the weights that the loss feels; it wraps the optimiser, to see the raw gradient.

    Formula:
      .. math:: w \leftarrow w + u(g) - \lambda_t \, I(g) \, w, \quad I(g) = \exp(-|c \, g|)

      or :math:`I(g) = \max(0, 1 - |c \, g|)` with ``gate="hinge"``. ``u`` is the inner optimiser's update; the decay is not
      multiplied by the learning rate. Without a gradient it is `decoupled_weight_decay`, with a large one the inner optimiser.

    Args:
      inner: the optimiser, an optax transformation.
      decay: the fraction of an irrelevant weight lost in a step, at least 0; a number or a schedule of the step, which is
        counted from 0. 0 is the inner optimiser.
      gradient_scale: c, at least 0, default 1 as in the paper; a number or a schedule. Mean losses have gradients near 1e-3, at
        which I is nearly 1 everywhere: one over the median of ``|g|`` parts the weights.
      gate: ``"exp"`` (default) or ``"hinge"``, the earlier rule.
      where: which leaves decay: None (kernels and embeddings, default), "all", a predicate ``(path, leaf) -> bool``, or a tree
        of booleans.

    Returns:
      An optax optimiser whose ``update`` needs the parameters; the state is ``IrrelevanceState(step, inner)``. With
      `regjax.weights.prune_to_performance` between trainings it is the published method.

    Raises:
      ValueError: if ``inner`` is no transformation, a number is negative or not finite, ``gate`` is misspelt, ``where`` is wrong,
        or ``update`` gets no parameters.

    Cost:
      That of the inner optimiser, and some 5 FLOPs and an exponential for each weight that decays; no forward pass.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 1.2 times the FLOPs and 1.2 times the bytes of a plain training
      step, and 0 times its memory more.

    Use:
      For: sparsity budget.
      When: Before a cut by magnitude: weights that the loss does not feel fade, others stay. At the highest sparsities on
        digits it beat plain decay. Set ``gradient_scale`` to 100 to 1000, about one over the median gradient.
      Not when: The scale stays at 1 with a mean loss: it is plain decay then. Overfitting without pruning: it gained less than
        `decoupled_weight_decay` on the digits comparison. Gradients vanish late: everything then counts as irrelevant.
      Badly with: Decay in ``inner``, which hits relevant weights too. Clipping or accumulation before it, and another batch
        size: the gate reads the size of the gradient. ReLU units that are dead, which fade for good. Loss scaling.

    Example:
      >>> import jax.numpy as jnp, optax, regjax as rj
      >>> tx = rj.gradients.irrelevance_decay(optax.sgd(0.1), 0.01)
      >>> params = {"kernel": jnp.array([[1.0, -2.0, 0.5]])}
      >>> grads = {"kernel": jnp.array([[0.0, jnp.log(2.0), -1.0]])}
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> [round(float(w), 4) for w in optax.apply_updates(params, updates)["kernel"][0]]
      [0.99, -2.0593, 0.5982]

    References:
      Bonetta, Ribero and Cancelliere, Regularization-based Pruning of Irrelevant Weights in Deep Neural Architectures, 2022,
      arXiv 2204.04977; the exponential gate, and that the learning rate does not multiply the decay, are reconstructed. The
      hinge: Tartaglione et al., Learning Sparse Neural Networks via Sensitivity-Driven Regularization, 2018, arXiv 1810.11764.
    """
    name = "gradients.irrelevance_decay"
    require_transformation(name, "inner", inner)
    checks.strength(name, "decay", decay, low=0.0)
    checks.strength(name, "gradient_scale", gradient_scale, low=0.0)
    checks.choice(name, "gate", gate, GATES)
    inner = optax.with_extra_args_support(inner)

    def init(params: PyTree) -> IrrelevanceState:
        return IrrelevanceState(jnp.zeros((), jnp.int32), inner.init(params))

    def update(
        updates: PyTree, state: IrrelevanceState, params: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, IrrelevanceState]:
        require_params(name, params)
        rate = resolve(decay, state.step, name, "decay")
        scale = resolve(gradient_scale, state.step, name, "gradient_scale")
        moved, inner_state = inner.update(updates, state.inner, params, **extra_args)

        def leaf(u: Array, use: bool, p: Array, g: Array) -> Array:
            if not use or is_absent(g):
                return u
            dtype = trees.accumulator(u, p, g)
            g = placed_like(g, p)
            shrunk = irrelevance(g, scale, gate, dtype) * jnp.asarray(p).astype(dtype)
            return trees.add_scaled(placed_like(u, p), -jnp.asarray(rate, dtype), shrunk)

        # Absent updates are no leaves of the raw gradient's structure either: the inner optimiser passes them.
        moved = map_updates(leaf, moved, trees.select(name, params, where), params, updates)
        return moved, IrrelevanceState(optax.safe_increment(state.step), inner_state)

    return optax.GradientTransformationExtraArgs(init, update)
