"""Binary masks of weights, learned by a straight-through gradient."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks
from regjax.core.types import Array


def binary_mask_ste(scores: Any, *, threshold: Any = 5e-3) -> Array:
    r"""A mask of zeros and ones by a threshold on scores, with the gradient of the identity.

    Formula:
      .. math:: m = 1[a > \tau], \qquad \frac{\partial m}{\partial a} := 1

      Mask tuning keeps the weights frozen, computes with ``weight * binary_mask_ste(scores)`` and trains the scores.

    Args:
      scores: float ``[...]``, a, usually of the shape of a weight; 0.01 everywhere at the start, so that the mask is all ones.
      threshold: :math:`\tau`, a number or a traced scalar, default 0.005. It gets no gradient.

    Returns:
      The mask, 0 or 1, of the shape and dtype of ``scores``. The same mask serves at inference.

    Raises:
      ValueError: if ``scores`` is not floating or ``threshold`` is not finite.

    Cost:
      Two passes over the scores; training them costs what training the weights would.
      XLA at [512, 512]: at most 4.4 times the FLOPs and 1.7 times the bytes of a copy of its arguments, and 0 times its memory
      more.

    Use:
      For: fine-tuning, few labels, forgetting.
      When: A few labelled examples for a large pretrained model whose weights stay frozen: the scores choose which weights of,
        say, the attention projections to leave out. `gradient_dropout` beside it keeps the general knowledge.
      Not when: The weights are random or small in number (`topk_supermask` gives a fixed density), or memory is what is short:
        there are as many scores as weights, where `LoRALinear` has a thousandth.
      Badly with: Weight decay on the scores, which carries all of them below the threshold. Rates near 0.005, the distance of
        the first scores from the threshold, at which the mask flips in one step: the authors take Adam at 8e-5.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> weights, scores = jnp.array([2.0, -3.0]), jnp.array([0.01, 0.004])
      >>> (weights * rj.layers.binary_mask_ste(scores)).tolist()
      [2.0, -0.0]
      >>> jax.grad(lambda a: jnp.sum(weights * rj.layers.binary_mask_ste(a)))(scores).tolist()
      [2.0, -3.0]

    References:
      Zheng et al., Regularized Mask Tuning: Uncovering Hidden Knowledge in Pre-trained Vision-Language Models, 2023,
      arXiv 2307.15049: on the attention projections alone, Adam with learning rate 8e-5, and a penalty of 1e-4 times the
      sum over tensors of the (not squared) norm of the scores.
    """
    name = "layers.binary_mask_ste"
    scores = checks.floating(name, "scores", scores)
    checks.number(name, "threshold", threshold)
    # In the wider of the two dtypes: a threshold rounded to bfloat16 would move.
    mask = (scores > jnp.asarray(threshold, jnp.promote_types(scores.dtype, jnp.float32))).astype(scores.dtype)
    # The difference is exactly 0: it is in the gradient alone.
    return mask + (scores - jax.lax.stop_gradient(scores))
