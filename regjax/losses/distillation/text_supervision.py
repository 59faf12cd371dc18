"""Supervision of a vision model by the text of its class names: TeS."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, classes
from regjax.core.types import Array, Strength
from regjax.losses._probabilities import weighted
from regjax.losses.distillation._pairs import expectation, pair


def tes(
    logits: Any,
    text_cosines: Any,
    labels: Any,
    *,
    temperature: Strength = 0.03,
    weight_vision: Strength = 0.2,
    weight_text: Strength = 0.4,
    axis: int = -1,
    where: Any = None,
) -> Array:
    r"""Cross-entropy with soft labels from a text encoder's view of the classes, for fine-tuning a vision model.

    Formula:
      .. math:: CE\left( z, \; w_v q + (1 - w_v) y \right) + w_t \, CE(c / \tau, y), \quad q = softmax(c / \tau)

      q is a constant for the gradient, so that the projection behind the cosines learns from the second term alone, and the
      vision model from both. At test time predict from z; the projection and the text features are dropped.

    Args:
      logits: float ``[..., K]``, z, classes on ``axis``.
      text_cosines: float, of the shape of ``logits``, c: the cosines of the example's projected feature with the K frozen text
        features of "a photo of a (class)". The projection is a small network (dense, batch norm, ReLU, dense) to the
        text encoder's width; divide both by their norms, which are at least 1e-12.
      labels: integer class ids ``[...]``, or probabilities of the shape of ``logits``.
      temperature: :math:`\tau`, above 0, default 0.03, a number or a traced scalar.
      weight_vision: :math:`w_v` in [0, 1], default 0.2, a number or a traced scalar.
      weight_text: :math:`w_t`, at least 0, default 0.4, a number or a traced scalar. Both weights 0 are cross-entropy.
      axis: the class axis.
      where: boolean, broadcasts to ``logits``: the classes that exist, for both.

    Returns:
      The loss of each example, ``[...]``, in float32 or better; 0 where no class exists.

    Raises:
      ValueError: if a shape or dtype does not fit, ``temperature`` is not positive, ``weight_vision`` lies outside [0, 1] or
        ``weight_text`` is negative.

    Cost:
      A softmax of each; the projection, and a product of its output with the K text features.
      XLA at [1024, 1000]: at most 7.7 times the FLOPs and 2.4 times the bytes of cross-entropy, and 0.55 times its memory more.

    Use:
      For: fine-tuning, few labels.
      When: Fine-tuning of a vision model on small data whose class names mean something to a text encoder: their similarity
        softens the labels. Needs a projection head in training and nothing at test.
      Not when: Class names are codes. Data is plenty: names add little. It is zero-shot or prompt tuning that is wanted: the
        text features serve as targets here, not as classifier.
      Badly with: `label_smoothing`, which softens the same labels without knowledge. Unnormalised features: cosines are
        expected. A low temperature with a projection at random start: let the second term train first, or start
        ``weight_vision`` at 0.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> logits, cosines = jnp.array([2.0, 1.0, 0.0]), jnp.array([0.3, 0.1, 0.2])
      >>> round(float(rj.losses.tes(logits, cosines, jnp.array(0), temperature=0.1)), 4)
      0.6865

    References:
      Wang et al., Improved Visual Fine-tuning with Natural Language Supervision, 2023, arXiv 2304.01489. As the authors'
      code, whose script for CIFAR-100 sets the weights 0.1 and 0.3.
    """
    name = "losses.tes"
    checks.number(name, "temperature", temperature, low=0.0, open_low=True)
    checks.number(name, "weight_vision", weight_vision, low=0.0, high=1.0)
    checks.number(name, "weight_text", weight_text, low=0.0)
    x, cosines = pair(name, logits, text_cosines, labels, arguments=("logits", "text_cosines"), axis=axis, where=where)
    text = x._replace(logits=cosines / jnp.asarray(temperature, cosines.dtype))
    vision_parts, text_parts = classes.normalise(x.logits, x.where), classes.normalise(text.logits, text.where)
    from_text = vision_parts.log_total - expectation(jax.lax.stop_gradient(text_parts), vision_parts.shifted)
    share = jnp.asarray(weight_vision, from_text.dtype)
    vision = weighted(1 - share, classes.cross_entropy(x, vision_parts)) + weighted(share, from_text)
    return vision + weighted(weight_text, classes.cross_entropy(text, text_parts))
