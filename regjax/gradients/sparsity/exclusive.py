"""Training that moves some entries of the weights and keeps all others bit for bit: weights of earlier tasks, for one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from regjax.core import checks, sharding
from regjax.core.types import Array, PyTree
from regjax.gradients.sparsity.masked import masked_optimizer


def train_only(
    inner: optax.GradientTransformation, mask: PyTree | Callable[[PyTree], PyTree]
) -> optax.GradientTransformationExtraArgs:
    r"""An optimiser that trains the entries of a mask, and leaves every other weight as it is.

    Formula:
      .. math:: u = m \odot inner(m \odot g, w)

      Where m is False the gradient and the update are 0: momentum gathers nothing there, and neither weight decay nor the
      momentum of earlier steps moves the weight.

    Args:
      inner: the whole optimiser, learning rate and weight decay included.
      mask: m, a tree like the parameters of boolean arrays of their shapes, or of boolean scalars for whole leaves, such as
        ``weights.exclusive_mask`` gives; or a function from the parameters to such a tree.

    Returns:
      An optax transformation. Its state holds the mask as ``state.mask``, whole arrays: the mask of a next task goes there,
      ``tx.init(params)._replace(mask=...)``, and a compiled step is not compiled again.

    Raises:
      ValueError: if ``inner`` is no transformation, ``mask`` is not boolean or does not fit the parameters, or ``update`` gets
        no parameters.

    Cost:
      Two passes over the weights, and one byte of memory for each.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 1.2 times the FLOPs and 1.2 times the bytes of a plain training
      step, and 0 times its memory more.

    Use:
      For: forgetting, fine-tuning.
      When: Some weights of a kernel belong to earlier tasks or to the pretrained model and must not move by a bit: masks of
        `exclusive_mask`, or whole leaves frozen.
      Not when: Whole leaves alone, and memory counts: moments are kept for all, so take ``optax.multi_transform``. Weights
        outside shall be 0: `fixed_mask`. All weights are taken by earlier tasks.
      Badly with: Decay or noise after it, which moves frozen weights: put them inside. Running statistics of batch
        normalisation, which it does not hold, and shared biases and scales: mask them too. Projections such as `lawn` outside.

    Example:
      >>> import jax.numpy as jnp, optax, regjax as rj
      >>> params, grads = {"kernel": jnp.array([[1.0, 2.0]])}, {"kernel": jnp.array([[1.0, 1.0]])}
      >>> free = rj.weights.exclusive_mask({"kernel": jnp.array([[True, True]])}, [{"kernel": jnp.array([[False, True]])}])
      >>> tx = rj.gradients.train_only(optax.adamw(0.5, weight_decay=0.1), free)
      >>> updates, state = tx.update(grads, tx.init(params), params)
      >>> [round(float(w), 4) for w in optax.apply_updates(params, updates)["kernel"][0]]
      [0.45, 2.0]

    References:
      The second step of Yadav and Bansal, Exclusive Supermask Subnetwork Training for Continual Learning, 2022, arXiv
      2210.10209 (the authors mask the gradients of Adam alone), and the later stages of Kang et al., On the Soft-Subnetwork
      for Few-shot Class Incremental Learning, 2022, arXiv 2209.07529.
    """
    name = "gradients.train_only"

    def initial(params: PyTree) -> PyTree:
        given = mask(params) if callable(mask) else mask
        structure: Any = jax.tree.structure(params)
        if jax.tree.structure(given) != structure:
            checks.same_structure(name, "mask", given, params, "params")

        def leaf(m: PyTree, p: PyTree) -> Array:
            m = checks.array(name, "mask", m)
            if m.dtype != jnp.bool_ or m.shape not in ((), jnp.shape(p)):
                checks.fail(name, "mask", f"boolean, of shape {list(jnp.shape(p))} or a scalar", m)
            # Whole arrays: a scalar would stand for a leaf that the mask does not govern.
            whole = jnp.broadcast_to(m, jnp.shape(p))
            return sharding.placed_like(whole, p) if isinstance(p, jax.Array) else whole

        return jax.tree.map(leaf, given, params)

    return masked_optimizer(name, inner, initial=initial, sparse_gradients=True, outside="frozen")
