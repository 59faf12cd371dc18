"""Local learning with a momentum copy of the neighbour: each block trains alone, and still knows what comes after it (MAN)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks, classes, trees
from regjax.core.strength import resolve
from regjax.core.types import Array, PyTree, Strength


class MomentumAuxiliary(NamedTuple):
    """The three functions of `momentum_auxiliary`."""

    init: Callable[..., Any]
    apply: Callable[..., Any]
    update: Callable[..., Any]


class MomentumAuxiliaryState(NamedTuple):
    """What block k knows of block k + 1.

    Attributes:
      learned: a copy of its first layer that trains with block k.
      ema: the moving average of that layer, floating leaves in float32 or better; a constant for every gradient.
    """

    learned: PyTree
    ema: PyTree


class LocalWeights(NamedTuple):
    """The weights of a block's two local losses, from `local_loss_weights`."""

    reconstruction: float
    cross_entropy: float


def momentum_auxiliary(*, decay: Strength = 0.995) -> MomentumAuxiliary:
    r"""The Momentum Auxiliary Network: local losses of blocks that carry information across the gradient's gap.

    Formula:
      .. math:: y_k = L(\phi_k, x_k) + L(\bar \theta_{k+1}, x_k), \quad
                w_{ce} \, CE(h_k(y_k), labels) + w_{rec} \, BCE(d_k(y_k), images)

      with L the first layer of block k + 1, :math:`x_k` what block k makes of :math:`sg(x_{k-1})`, an auxiliary head h and a
      decoder d. After block k's step :math:`\bar \theta_{k+1} \leftarrow \gamma \bar \theta_{k+1} + (1 - \gamma) \theta_{k+1}`.
      Gradients reach block k, :math:`\phi_k`, head and decoder, through :math:`\bar \theta` but not it. The last block has the
      ordinary head and loss. At test time only the blocks remain.

    Args:
      decay: :math:`\gamma`, in [0, 1], default 0.995; a number or a schedule. 0 is the neighbour itself, 1 its start.

    Returns:
      `MomentumAuxiliary` of three functions. ``init(neighbour) -> MomentumAuxiliaryState``, where ``neighbour`` are the
      parameters of block k + 1's first layer: both parts start from them. ``apply(state, layer_apply, aux_head, features, labels,
      *, weight_ce=1.0, decoder=None, images=None, weight_rec=0.0) -> scalar``, with ``layer_apply(layer_params, features)``,
      ``aux_head(y) -> logits [..., K]``, class ids ``[...]`` or probabilities, and ``decoder(y) -> logits`` of ``images`` in
      [0, 1]: differentiate it by ``state.learned`` and whatever made ``features``, ``aux_head`` and ``decoder``.
      ``update(state, neighbour, *, step=None) -> state``; ``step`` is asked for by a schedule. One state for each block but the
      last; `init` and `update` also take them all at once, as a list of neighbours. The next block must get
      ``jax.lax.stop_gradient(features)``.

    Raises:
      ValueError: if ``decay`` is out of range; in ``apply`` and ``update``, if the state is none or not of this neighbour, a
        shape, dtype or weight does not fit, images come without decoder, or a schedule is left without ``step``.

    Cost:
      Two more passes of one layer for each block, and two copies of it. The activations of one block are held at a time where
      blocks are trained one after another.
      XLA at [1024, 512]: at most 1.7 times the FLOPs and 1.6 times the bytes of the gradient of a layer's local loss, and 0.28
      times its memory more.

    Use:
      For: compute budget.
      When: Activations of end-to-end training do not fit: blocks train one after another, and an average of the next block's
        first layer tells a block what is needed later. Deep convolutional networks cut into a few blocks.
      Not when: Memory suffices: end-to-end training is simpler, and ``jax.checkpoint`` saves activations without another
        objective. Blocks are so many that each is a layer or two.
      Badly with: `sam`, `jacobian_penalty` and what differentiates the whole network. Skip connections across blocks without
        ``stop_gradient``. Neighbours whose first layer changes its shape. Averages of BatchNorm, which are not followed.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> man = rj.objectives.momentum_auxiliary(decay=0.9)
      >>> state = man.init(jnp.eye(2))
      >>> layer, head = lambda w, x: x @ w, lambda y: y
      >>> loss_fn = lambda learned, x: man.apply(state._replace(learned=learned), layer, head, x, jnp.array([0]))
      >>> loss, (by_layer, by_x) = jax.value_and_grad(loss_fn, (0, 1))(state.learned, jnp.array([[1.0, 0.0]]))
      >>> round(float(loss), 4), [round(float(g), 4) for g in by_x[0]]
      (0.1269, [-0.2384, 0.2384])
      >>> round(float(man.update(state, 2 * jnp.eye(2)).ema[0, 0]), 4)
      1.1

    References:
      Su et al., Momentum Auxiliary Network for Supervised Local Learning, 2024, arXiv 2407.05623. What the paper calls a
      learnable bias is a whole learnable copy of the layer in the authors' code, as here. The code averages parameters, not
      the statistics of batch normalisation; its class default for the decay is 0.999, its commands have 0.995.
    """
    name = "objectives.momentum_auxiliary"
    checks.strength(name, "decay", decay, low=0.0, high=1.0)

    def init(neighbour: PyTree) -> MomentumAuxiliaryState:
        # Copies: the layer itself may be donated to the training step together with this state.
        copy = lambda x: jnp.array(x, copy=True)
        return MomentumAuxiliaryState(jax.tree.map(copy, neighbour), trees.widen(jax.tree.map(copy, neighbour)))

    def apply(
        state: MomentumAuxiliaryState,
        layer_apply: Callable[..., Any],
        aux_head: Callable[..., Any],
        features: Any,
        labels: Any,
        *,
        weight_ce: Strength = 1.0,
        decoder: Callable[..., Any] | None = None,
        images: Any = None,
        weight_rec: Strength = 0.0,
    ) -> Array:
        checked(state)
        checks.function(name, "layer_apply", layer_apply)
        checks.function(name, "aux_head", aux_head)
        checks.number(name, "weight_ce", weight_ce, low=0.0)
        checks.number(name, "weight_rec", weight_rec, low=0.0)
        if (decoder is None) != (images is None):
            checks.fail(name, "images", "given with decoder, or neither", images)
        like = lambda average, x: jax.lax.stop_gradient(average).astype(x.dtype) if trees.is_float(x) else average
        constant = jax.tree.map(like, state.ema, state.learned)
        y = layer_apply(state.learned, features) + layer_apply(constant, features)
        x = classes.class_inputs(name, aux_head(y), labels)
        loss = jnp.mean(classes.cross_entropy(x))
        loss = jnp.asarray(weight_ce, loss.dtype) * loss
        if decoder is None:
            return loss
        logits = checks.floating(name, "decoder", checks.function(name, "decoder", decoder)(y))
        target = checks.floating(name, "images", images, shape=logits.shape)
        logits, target = logits.astype(trees.accumulator(logits)), target.astype(trees.accumulator(target))
        error = jnp.mean(jax.nn.softplus(logits) - target * logits)
        return loss + (jnp.asarray(weight_rec, error.dtype) * error).astype(loss.dtype)

    def update(state: MomentumAuxiliaryState, neighbour: PyTree, *, step: Any = None) -> MomentumAuxiliaryState:
        checked(state)
        checks.same_structure(name, "neighbour", neighbour, state.ema, "state.ema")
        gamma = checks.number(name, "decay", resolve(decay, step, name, "decay"), low=0.0, high=1.0)

        def leaf(old: Any, new: Any) -> Any:
            old, new = jax.lax.stop_gradient((jnp.asarray(old), jnp.asarray(new)))
            if not trees.is_float(new):
                return new
            g = jnp.asarray(gamma, old.dtype)
            # At 0 exactly the new value and at 1 the old one, whatever the other holds.
            mixed = jnp.where(g == 0, new.astype(old.dtype), g * old + (1 - g) * new.astype(old.dtype))
            return jnp.where(g == 1, old, mixed)

        return state._replace(ema=jax.tree.map(leaf, state.ema, neighbour))

    def checked(state: Any) -> None:
        if not isinstance(state, MomentumAuxiliaryState):
            checks.fail(name, "state", "the MomentumAuxiliaryState that init() makes", state)
        checks.same_structure(name, "state.ema", state.ema, state.learned, "state.learned")

    return MomentumAuxiliary(init, apply, update)


def local_loss_weights(
    block: int,
    num_blocks: int,
    *,
    reconstruction: tuple[float, float] = (5.0, 0.0),
    cross_entropy: tuple[float, float] = (0.5, 0.0),
) -> LocalWeights:
    r"""The weights of a block's local losses, from the first block's to those of the last that has any.

    Formula:
      .. math:: w = (1 - r) \, w_{first} + r \, w_{last}, \quad r = \frac{k}{K - 2}

      and r = 0 where K = 2.

    Args:
      block: k, from 0 to K - 2; the last block has the ordinary loss.
      num_blocks: K, at least 2.
      reconstruction: the two weights of the reconstruction, at least 0, default (5, 0).
      cross_entropy: the two weights of the cross-entropy, at least 0, default (0.5, 0).

    Returns:
      `LocalWeights`, Python numbers, the ``weight_rec`` and ``weight_ce`` of `momentum_auxiliary`.

    Raises:
      ValueError: if an integer is out of range, or a pair is none.

    Cost:
      None.

    Use:
      Part of: `momentum_auxiliary`.
      When: Call it for the weights of `momentum_auxiliary` by depth: reconstruction counts early. The defaults are for
        ResNet-32.

    Example:
      >>> import regjax as rj
      >>> rj.objectives.local_loss_weights(1, 4)
      LocalWeights(reconstruction=2.5, cross_entropy=0.25)

    References:
      Wang et al., Revisiting Locally Supervised Learning: an Alternative to End-to-end Training, 2021, arXiv 2101.10832, as in
      the commands of Su et al., Momentum Auxiliary Network for Supervised Local Learning, 2024, arXiv 2407.05623, for
      ResNet-32, where the last block with a local loss has weight 0.
    """
    name = "objectives.local_loss_weights"
    num_blocks = checks.integer(name, "num_blocks", num_blocks, low=2)
    block = checks.integer(name, "block", block, low=0, high=num_blocks - 2)
    r = block / (num_blocks - 2) if num_blocks > 2 else 0.0
    weights = []
    for argument, pair in (("reconstruction", reconstruction), ("cross_entropy", cross_entropy)):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            checks.fail(name, argument, "a pair of numbers", pair)
        first, last = (float(checks.number(name, argument, value, low=0.0)) for value in pair)
        weights.append((1 - r) * first + r * last)
    return LocalWeights(*weights)
