"""Convex combinations of two examples and their labels: mixup."""

from typing import Any

import jax

from regjax.core import checks
from regjax.core.partners import check_lam, check_partner, mix_partner
from regjax.core.types import Array, Key, Strength
from regjax.inputs.mixing.pairs import check_options, check_soft_labels, sample_lam, sample_partner, share


def mixup(
    key: Key,
    images: Any,
    labels: Any,
    *,
    alpha: Strength = 1.0,
    prob: Strength = 1.0,
    per: str = "batch",
    pairing: str = "permutation",
    within_shard: int | None = None,
) -> tuple[Array, Array]:
    r"""Replaces each example and its label by a random convex combination with a partner's.

    Formula:
      .. math::
         \tilde x_i = \lambda x_i + (1 - \lambda) x_{p(i)}, \quad \tilde y_i = \lambda y_i + (1 - \lambda) y_{p(i)},
         \quad \lambda \sim Beta(\alpha, \alpha)

    Args:
      key: a random key.
      images: float ``[B, ...]``: images, features, tables.
      labels: float ``[B, ...]``: one-hot or probability labels ``[B, K]``, or any target that may be averaged, such as
        ``[B, H, W, K]``.
      alpha: the Beta parameter, at least 0, default 1; the paper uses 1 for CIFAR and 0.1 to 0.4 for ImageNet. 0 changes
        nothing: lam is exactly 1.
      prob: the probability of mixing at all, in [0, 1]: of the batch, or of each example where lam is drawn per example.
      per: what shares one lam: ``"batch"`` (default), ``"example"`` (each its own), or ``"pair"`` (an example and its
        partner; needs ``pairing="reverse"``).
      pairing: the partner of i: ``"permutation"``, a random one (an example may meet itself); ``"reverse"``, B - 1 - i;
        ``"roll"``, i - 1.
      within_shard: None pairs over the whole batch; a number G that divides B pairs inside each of G contiguous blocks, so
        that a batch sharded over G devices mixes without communication.

    Returns:
      ``(images, labels)`` with the shapes and dtypes of the inputs.

    Raises:
      ValueError: if labels are class ids (mixed labels are probabilities), a shape, dtype or option does not fit, or
        ``alpha`` or ``prob`` is out of range.

    Cost:
      One gather: two reads and one write of the batch. Without ``within_shard`` a batch sharded over devices is gathered.
      XLA at [256, 32, 32, 3]: at most 3.4 times the FLOPs and 1.2 times the bytes of a copy of its arguments, and 0.01 times
      its memory more.

    Use:
      For: few labels, noisy labels.
      When: Inputs may be averaged (images, tables, embeddings) and training is long enough to learn labels by heart. On digits
        with randomly wrong labels it helped much at little cost on clean ones, and larger alphas than the published ones did
        best.
      Not when: Wrong labels come from pairs of confused classes: it gained little there. Averages mean nothing (token ids,
        masks), or much data meets a small model, which underfits at alpha near 1: take 0.1 to 0.4.
      Badly with: Memories by position (`elr`, `ps_kd`, `saf`), which compare mixtures with other partners. Small-loss selection
        (`co_teaching`), as a mixture's loss does not tell a wrong label. Terms of class ids (`within_class_collapse`).

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> images, labels = jnp.ones((4, 8, 8, 3)), jax.nn.one_hot(jnp.arange(4), 10)
      >>> images, labels = rj.inputs.mixup(jax.random.key(0), images, labels, alpha=0.4)
      >>> images.shape, round(float(labels.sum()), 4)
      ((4, 8, 8, 3), 4.0)

    References:
      Zhang et al., mixup: Beyond Empirical Risk Minimization, 2017, arXiv 1710.09412. As in the authors' code one lam and
      one permutation serve the batch; that code mixes two cross-entropies, which is the cross-entropy of mixed labels.
      ``reverse``, ``"pair"`` and ``"example"`` are those of timm, ``roll`` that of torchvision.
    """
    name = "inputs.mixup"
    checks.key(name, key)
    images = checks.floating(name, "images", images, min_ndim=1)
    batch = images.shape[0]
    labels = check_soft_labels(name, labels, batch)
    check_options(name, alpha, prob, per, pairing, within_shard, batch)
    lam_key, partner_key = jax.random.split(key)
    partner = sample_partner(partner_key, batch, pairing, within_shard)
    lam, _ = sample_lam(lam_key, alpha, prob, () if per == "batch" else (batch,))
    if per == "pair":
        lam = share(lam, partner)
    return apply_mixup(images, labels, lam=lam, partner=partner)


def apply_mixup(images: Any, labels: Any, *, lam: Any, partner: Any) -> tuple[Array, Array]:
    r"""Mixup with given weights and partners: the core of `mixup`.

    Formula:
      .. math:: \tilde x_i = \lambda_i x_i + (1 - \lambda_i) x_{p(i)}, \quad \tilde y_i = \lambda_i y_i + (1 - \lambda_i) y_{p(i)}

      in float32 or better.

    Args:
      images: float ``[B, ...]``.
      labels: float ``[B, ...]``.
      lam: the weight of the example itself, in [0, 1]: a number, or float ``[B]``.
      partner: integer ``[B]``, indices into the batch; or ``[G, B/G]``, indices into each of G contiguous blocks, which a
        batch sharded over G devices takes without communication.

    Returns:
      ``(images, labels)`` with the shapes and dtypes of the inputs.

    Raises:
      ValueError: if a shape or dtype does not fit, or a number ``lam`` is out of range.

    Cost:
      One gather: two reads and one write of the batch.
      XLA at [256, 32, 32, 3]: at most 3.4 times the FLOPs and 1.2 times the bytes of a copy of its arguments, and 0 times its
      memory more.

    Use:
      Part of: `mixup`.
      When: Call it with your own weights and partners: pairs of chosen classes, one draw for several arrays, or fixed draws in
        a test.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> x, y = jnp.array([[1.0, 2.0], [3.0, 5.0]]), jnp.eye(2)
      >>> rj.inputs.apply_mixup(x, y, lam=0.25, partner=jnp.array([1, 0]))[0].tolist()
      [[2.5, 4.25], [1.5, 2.75]]

    References:
      Zhang et al., mixup: Beyond Empirical Risk Minimization, 2017, arXiv 1710.09412.
    """
    name = "inputs.apply_mixup"
    images = checks.floating(name, "images", images, min_ndim=1)
    batch = images.shape[0]
    labels = check_soft_labels(name, labels, batch)
    lam, partner = check_lam(name, lam, batch), check_partner(name, partner, batch)
    return mix_partner(images, lam, partner), mix_partner(labels, lam, partner)
