"""One-shot fine-tuning of diffusion models: where the new word starts, where the denoising counts, what the class keeps."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.types import Array


def embedding_alignment(embedding: Any, targets: Any) -> Array:
    r"""The cosine distance of an embedding from the mean of several: where a new word's embedding starts from.

    Formula:
      .. math:: 1 - \cos(e, \frac{1}{M} \sum_m t_m)

    Args:
      embedding: float ``[D]``, e: the encoded text feature of the new word, to be trained.
      targets: float ``[M, D]``, t: features of what the word shall mean, from frozen encoders, such as those of the image,
        of the object alone, and of the class name. No gradient flows to them.

    Returns:
      A scalar in [0, 2], in float32 or better; 1 where a vector is zero.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      O(M D).
      XLA at [16, 768]: at most 2.2 times the FLOPs and 1.2 times the bytes of a copy of its arguments, and 0.069 times its
      memory more.

    Use:
      For: fine-tuning, few labels.
      When: A new word for a text-to-image model, from one photograph: its embedding starts where the class and the object lie.
        A few steps on the embedding alone, before fine-tuning.
      Not when: Many photographs, or a start from the class word is good enough. The encoders do not share a space: their mean
        means nothing. It is reconstructed, and no training with it was measured here.
      Badly with: Targets of very different norms, of which the longest rules the mean: normalise them. `weights.l2` on the
        embedding: the loss sees no length, so it only shrinks. Training the encoder along with it.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> round(float(rj.losses.embedding_alignment(jnp.array([1.0, 0.0]), jnp.array([[0.0, 1.0], [1.0, 0.0]]))), 4)
      0.2929

    References:
      Lu et al., Object-Driven One-Shot Fine-tuning of Text-to-Image Diffusion with Prototypical Embedding, 2024, arXiv
      2401.15708. Reconstructed, without code; the set of targets is from a secondary description.
    """
    name = "losses.embedding_alignment"
    embedding = checks.floating(name, "embedding", embedding, ndim=1)
    targets = checks.floating(name, "targets", targets, shape=(None, embedding.shape[0]))
    if targets.shape[0] < 1:
        checks.fail(name, "targets", "at least one embedding", targets)
    dtype = trees.accumulator(embedding, targets)
    e = embedding.astype(dtype)
    prototype = jnp.mean(jax.lax.stop_gradient(targets).astype(dtype), axis=0)
    return 1 - jnp.sum(_unit(e) * _unit(prototype))


def masked_denoising(prediction: Any, target: Any, mask: Any) -> Array:
    r"""The squared error of a denoiser inside the object alone: the background of the one photograph is not learned.

    Formula:
      .. math:: \frac{\sum m \, (prediction - target)^2}{C \sum m}

      With a mask of ones it is the plain mean squared error; that form, with a frozen model's prediction for the plain class
      prompt as target, also serves as the term that preserves the class.

    Args:
      prediction: float ``[B, ..., C]``, such as ``[B, H, W, C]``: the predicted noise.
      target: float, of the shape of ``prediction``: the true noise. No gradient flows to it.
      mask: ``[B, ..., 1]``, boolean or the share of each pixel, at least 0, that belongs to the object. Pixels of mask 0 have
        no effect, whatever they hold.

    Returns:
      The error of each example, ``[B]``, in float32 or better; 0 where the mask is empty.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      One pass over prediction and target each way.
      XLA at 2 times [256, 32, 32, 3]: at most 5.7 times the FLOPs and 2.5 times the bytes of a copy of its arguments, and 0.24
      times its memory more.

    Use:
      For: fine-tuning, few labels.
      When: One-shot fine-tuning of a diffusion model on a photo with a mask of the object: the background is not learned. With
        a mask of ones and a frozen model's prediction it guards the class.
      Not when: The mask is rough: parts outside are never learned, and of a thin object little is left. Composition with the
        background is wanted.
      Badly with: Masks at pixel size for a latent model: resize them to the latent. Averages over images of very unequal masks,
        which count alike. Losses on the whole image at the same weight, which bring the background back.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> prediction = jnp.array([3.0, 1.0, 5.0, 7.0]).reshape(1, 2, 2, 1)
      >>> mask = jnp.array([True, True, False, False]).reshape(1, 2, 2, 1)
      >>> float(rj.losses.masked_denoising(prediction, jnp.zeros((1, 2, 2, 1)), mask)[0])
      5.0

    References:
      Lu et al., Object-Driven One-Shot Fine-tuning of Text-to-Image Diffusion with Prototypical Embedding, 2024, arXiv
      2401.15708. Reconstructed, without code: the normalisation by the mask and the form of the class term are uncertain.
    """
    name = "losses.masked_denoising"
    prediction = checks.floating(name, "prediction", prediction, min_ndim=2)
    target = checks.floating(name, "target", target, shape=prediction.shape)
    mask = checks.array(name, "mask", mask, shape=(*prediction.shape[:-1], 1))
    dtype = trees.accumulator(prediction, target)
    weights = jax.lax.stop_gradient(mask.astype(dtype))
    apart = jnp.where(weights > 0, prediction.astype(dtype) - jax.lax.stop_gradient(target).astype(dtype), 0)
    over = tuple(range(1, prediction.ndim))
    total = prediction.shape[-1] * jnp.sum(weights, axis=over)
    return jnp.sum(weights * jnp.square(apart), axis=over) / jnp.where(total > 0, total, 1)


def subject_derived(
    subject_mean: Any,
    class_reference: Any,
    class_mean: Any,
    unconditional_mean: Any,
    variance: Any,
    *,
    batch_mean: bool = False,
    axis_name: Any = None,
) -> tuple[Array, Array]:
    r"""Keeps the subject a diffusion model learns a member of its class, by the classifier hidden in the model itself.

    Formula:
      .. math:: L(x) = \frac{mean (x - \mu_c)^2 - mean (x - \mu)^2}{2 \sigma^2 + 10^{-6}}, \quad
        loss = L(x_s), \quad gate = [L(x_s) - L(x_c) > 0]

      L is the negative log-odds of class against no condition. The gate closes where the subject is already as typical of the
      class as the class's own sample is. Add to the denoising loss, for the subject's images only,

      .. math:: w \, mean_b(gate_b \, loss_b / c_b)

      with c the posterior mean's coefficient of the predicted image at the example's step; the authors have w = 0.4, 0.8 and
      1.6 in different places.

    Args:
      subject_mean: float ``[B, ...]``, :math:`x_s`: the model's posterior mean of the next less noisy image under the
        subject's prompt. The gradient flows through it alone.
      class_reference: float, of that shape, :math:`x_c`: the same network's sample for the class prompt; a constant.
      class_mean: float, of that shape, :math:`\mu_c`: its posterior mean under the class prompt; a constant.
      unconditional_mean: float, of that shape, :math:`\mu`: its posterior mean without a prompt; a constant.
      variance: float ``[B]``, :math:`\sigma^2` of the posterior, at least 0.
      batch_mean: average the squares of ``loss``, not those of the gate's reference, over the whole batch before dividing by
        each example's variance, as the authors' code does; default False.
      axis_name: the name of a mapped axis (``shard_map``, ``vmap``) over which the batch is split, for ``batch_mean``.

    Returns:
      ``(loss [B], gate [B])`` in float32 or better; the gate is 0 or 1 and a constant.

    Raises:
      ValueError: if a shape, dtype or option does not fit.

    Cost:
      Two more forward passes, without gradient, under the class prompt and without one; here one pass over the means each way.
      XLA at 4 times [256, 32, 32, 3]: at most 3.6 times the FLOPs and 2.3 times the bytes of a copy of its arguments, and 0.28
      times its memory more.

    Use:
      For: fine-tuning, forgetting.
      When: Personalised diffusion models whose subject no longer poses or moves as its class does. On the subject's images
        only, with gate and coefficient as in the formula. Weights 0.4 to 1.6.
      Not when: The subject is of no class that the model knows. Two more passes a step are too dear. Without the gate: the loss
        is unbounded below. No training with it was measured here.
      Badly with: Images of the class kept for prior preservation: leave them out. Guided predictions in place of the three
        plain ones. Half precision at the last noise levels, where the variance is tiny. Weights of ``batch_mean`` for
        per-example values.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> subject, reference = jnp.array([[1.0], [0.2]]), jnp.array([[0.5], [0.5]])
      >>> zero, two, variance = jnp.zeros((2, 1)), jnp.full((2, 1), 2.0), jnp.full(2, 0.1)
      >>> loss, gate = rj.losses.subject_derived(subject, reference, zero, two, variance)
      >>> [round(float(x), 3) for x in loss], [float(x) for x in gate]
      ([0.0, -16.0], [1.0, 0.0])

    References:
      Qiao et al., FaceChain-SuDe: Building Derived Class to Inherit Category Attributes for One-shot Subject-Driven Generation,
      2024, CVPR, arXiv 2403.06775. The formula is per example throughout; the authors' code is ``batch_mean``.
    """
    name = "losses.subject_derived"
    checks.boolean(name, "batch_mean", batch_mean)
    checks.axis_name(name, axis_name)
    x = checks.floating(name, "subject_mean", subject_mean, min_ndim=2)
    constants = {"class_reference": class_reference, "class_mean": class_mean, "unconditional_mean": unconditional_mean}
    others = [checks.floating(name, argument, value, shape=x.shape) for argument, value in constants.items()]
    variance = checks.floating(name, "variance", variance, shape=(x.shape[0],))
    dtype = trees.accumulator(x, variance, *others)
    reference, mu_class, mu = (jax.lax.stop_gradient(other).astype(dtype) for other in others)
    spread = 2 * jax.lax.stop_gradient(variance).astype(dtype) + 1e-6
    over = tuple(range(1, x.ndim))

    def difference(sample: Array) -> Array:
        # (x - a)^2 - (x - b)^2 = (b - a) (2 x - a - b), without the cancellation of two large squares.
        return jnp.mean((mu - mu_class) * (2 * sample - mu_class - mu), axis=over)

    own, known = difference(x.astype(dtype)), difference(reference)
    if batch_mean:
        own = jnp.broadcast_to(jnp.mean(own) if axis_name is None else jax.lax.pmean(jnp.mean(own), axis_name), own.shape)
    gate = jax.lax.stop_gradient(own > known).astype(dtype)
    return own / spread, gate


def _unit(x: Array) -> Array:
    """``x / max(|x|, 1e-8)``."""
    return x / jnp.maximum(trees.safe_norm(x), 1e-8)
