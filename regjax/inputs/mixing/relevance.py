"""Class activation maps of transformers: the gradient-weighted attention, and Grad-CAM."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.types import Array


def attention_relevance(attention: Any, attention_grad: Any) -> Array:
    r"""The relevance of each patch for a class, from all attention maps and their gradients.

    Formula:
      With :math:`R_0 = I`, for each layer l in order:

      .. math:: A_l = \frac{1}{heads} \sum_h \max(0, G_{lh} \odot a_{lh}), \quad R_l = R_{l-1} + A_l R_{l-1}

      and the result is the row of the class token in :math:`R_L`, without its first entry. That row is all that is
      computed, from the last layer to the first.

    Args:
      attention: float ``[L, B, heads, T, T]``, the attention after its softmax in each layer; token 0 is the class token.
      attention_grad: float of the same shape: the gradient of the sum over the batch of the class's logits. To get it, let
        the model add zeros to its attention, differentiate by them, and return the attention as an auxiliary output, as in
        the example.

    Returns:
      Float ``[B, T - 1]``, at least 0, in float32 or better; ``reshape(B, h, w)`` makes it the ``cam`` of
      `cam_mask_refill`.

    Raises:
      ValueError: if the two are not floats of one shape ``[L, B, heads, T, T]``.

    Cost:
      One read of both arrays; a forward and a backward pass to get them, and their memory.
      XLA at 2 times [6, 16, 4, 65, 65]: at most 2.7 times the FLOPs and 1.2 times the bytes of a copy of its arguments, and
      0.14 times its memory more.

    Use:
      Part of: `cam_mask_refill`.
      When: Call it for the map of a vision transformer with a class token whose attention maps can be returned and
        differentiated.
      Not when: Attention is fused (flash kernels) and never materialised, or pooling replaces the class token: use `grad_cam`.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> tokens, labels = jax.random.normal(jax.random.key(0), (2, 5, 3)), jnp.array([2, 0])
      >>> def model(zeros):
      ...     attention = jax.nn.softmax(jnp.einsum("btd,bsd->bts", tokens, tokens))[:, None] + zeros
      ...     logits = jnp.einsum("bhts,bsd->btd", attention, tokens)[:, 0]
      ...     return jnp.take_along_axis(logits, labels[:, None], 1).sum(), attention
      >>> gradient, attention = jax.grad(model, has_aux=True)(jnp.zeros((2, 1, 5, 5)))
      >>> rj.inputs.attention_relevance(attention[None], gradient[None]).shape
      (2, 4)

    References:
      Chefer et al., Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder Transformers, 2021,
      arXiv 2103.15679; as used by Xiao et al., Masked Images Are Counterfactual Samples for Robust Fine-tuning, 2023,
      arXiv 2303.03052.
    """
    name = "inputs.attention_relevance"
    attention = checks.floating(name, "attention", attention, ndim=5)
    if attention.shape[3] != attention.shape[4] or attention.shape[3] < 2 or 0 in attention.shape[::2]:
        checks.fail(name, "attention", "floats of shape [L, B, heads, T, T] with T at least 2", attention)
    attention_grad = checks.floating(name, "attention_grad", attention_grad, shape=attention.shape)
    dtype = trees.accumulator(attention, attention_grad)
    weights = jnp.mean(jnp.maximum(attention_grad.astype(dtype) * attention.astype(dtype), 0), axis=2)
    # The row e of R_L is e (I + A_L) ... (I + A_1): vectors times matrices, T times cheaper than the products.
    row = jnp.zeros_like(weights[0, :, 0]).at[:, 0].set(1)
    for layer in weights[::-1]:
        row = row + jnp.einsum("bt,bts->bs", row, layer, precision=jax.lax.Precision.HIGHEST)
    return row[:, 1:]


def grad_cam(activations: Any, grads: Any, *, class_token: bool = True) -> Array:
    r"""Grad-CAM: the positive part of the activations, weighted by their mean gradients.

    Formula:
      .. math:: \alpha_d = \frac{1}{P} \sum_j g_{jd}, \quad c_j = \max(0, \sum_d \alpha_d x_{jd})

      over the P patches, without the class token.

    Args:
      activations: float ``[B, T, D]``: the tokens of a layer; or, of a convolution, its map ``[B, h, w, D]`` reshaped to
        ``[B, h * w, D]``.
      grads: float of the same shape: the gradient of the sum over the batch of the class's logits, as in the example.
      class_token: whether token 0 is a class token, to be left out; default True. False for convolutions.

    Returns:
      Float ``[B, T - 1]``, or ``[B, T]`` without a class token, at least 0, in float32 or better; ``reshape(B, h, w)``
      makes it the ``cam`` of `cam_mask_refill`.

    Raises:
      ValueError: if the two are not floats of one shape ``[B, T, D]`` with a patch.

    Cost:
      One read of both arrays, and with ``class_token`` a copy of the gradients without it, beside the passes that get them.
      XLA at 2 times [64, 65, 256]: at most 1.7 times the FLOPs and 1.1 times the bytes of a copy of its arguments, and 0.28
      times its memory more.

    Use:
      Part of: `cam_mask_refill`.
      When: Call it for the map of a convolutional network, or of a transformer from its tokens alone.
      Not when: The layer's map is so small that a patch covers the object and its context: take an earlier layer.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> tokens, labels = jax.random.normal(jax.random.key(0), (2, 5, 3)), jnp.array([2, 0])
      >>> head = lambda tokens: jnp.tanh(tokens).mean(1)  # the rest of the model, from this layer to the logits
      >>> logits, pull = jax.vjp(head, tokens)
      >>> (gradient,) = pull(jax.nn.one_hot(labels, 3))
      >>> rj.inputs.grad_cam(tokens, gradient).shape
      (2, 4)

    References:
      Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization, 2016,
      arXiv 1610.02391. For tokens it is the usual reading of that formula, with means over the patches alone.
    """
    name = "inputs.grad_cam"
    activations = checks.floating(name, "activations", activations, ndim=3)
    skip = int(checks.boolean(name, "class_token", class_token))
    if activations.shape[1] <= skip:
        checks.fail(name, "activations", "floats of shape [B, T, D] with at least one patch", activations)
    grads = checks.floating(name, "grads", grads, shape=activations.shape)
    dtype = trees.accumulator(activations, grads)
    weights = jnp.mean(grads[:, skip:].astype(dtype), axis=1, keepdims=True)
    # The class token is left out of the sums, not of the activations, which would be copied.
    return jnp.maximum(jnp.sum(weights * activations.astype(dtype), axis=-1)[:, skip:], 0)
