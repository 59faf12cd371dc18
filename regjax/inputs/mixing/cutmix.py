"""Boxes of one image pasted into another, and their labels mixed by the area: CutMix."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks
from regjax.core.partners import check_lam, check_partner, mix_partner, take_partner
from regjax.core.types import Array, Key, Strength
from regjax.inputs.mixing.boxes import Box, clipped_box, fill_box
from regjax.inputs.mixing.pairs import check_minmax, check_options, check_soft_labels, sample_lam, sample_partner, share


def cutmix(
    key: Key,
    images: Any,
    labels: Any,
    *,
    alpha: Strength = 1.0,
    prob: Strength = 1.0,
    per: str = "batch",
    pairing: str = "permutation",
    minmax: tuple[float, float] | None = None,
    correct_lam: bool = True,
    within_shard: int | None = None,
) -> tuple[Array, Array]:
    r"""Pastes a random box of a partner's image into each image, and mixes the labels by the area.

    Formula:
      .. math::
         \lambda \sim Beta(\alpha, \alpha), \quad r = \sqrt{1 - \lambda}, \quad
         \tilde x_i = M \odot x_{p(i)} + (1 - M) \odot x_i, \quad
         \tilde y_i = (1 - a) y_i + a y_{p(i)}

      M is the box of sides ``floor(H r)``, ``floor(W r)`` around a uniform pixel, cut at the border, and a the fraction of
      the image that it covers.

    Args:
      key: a random key.
      images: float ``[B, H, W, C]``.
      labels: float ``[B, K]``: one-hot or probability labels.
      alpha: the Beta parameter, at least 0, default 1. 0 changes nothing: lam is exactly 1 and the box empty.
      prob: the probability of mixing at all, in [0, 1], default 1 (the authors: 1 on ImageNet, 0.5 on CIFAR): of the
        batch, or of each example where boxes are drawn per example.
      per: what shares one lam and box: ``"batch"`` (default), ``"example"`` (each its own), or ``"pair"`` (an example and
        its partner, so that they swap the box; needs ``pairing="reverse"``).
      pairing: the partner of i: ``"permutation"``, a random one (an example may meet itself); ``"reverse"``, B - 1 - i;
        ``"roll"``, i - 1.
      minmax: None, or fractions ``(low, high)`` of the image's sides: the box's sides are then uniform from
        ``floor(H low)`` to ``floor(H high) - 1`` (the same for W) in place of the Beta rule, and the box lies inside.
      correct_lam: whether labels are mixed by the area of the box as cut at the border (default), or by the drawn lam;
        with ``minmax`` always by the area.
      within_shard: None pairs over the whole batch; a number G that divides B pairs inside each of G contiguous blocks, so
        that a batch sharded over G devices mixes without communication.

    Returns:
      ``(images, labels)`` with the shapes and dtypes of the inputs.

    Raises:
      ValueError: if labels are class ids (mixed labels are probabilities), a shape, dtype or option does not fit,
        ``alpha`` or ``prob`` is out of range, or ``minmax`` leaves no box for this image size.

    Cost:
      One gather: two reads and one write of the batch. Without ``within_shard`` a batch sharded over devices is gathered.
      XLA at [256, 32, 32, 3]: at most 1.2 times the FLOPs and 1.2 times the bytes of a copy of its arguments, and 0.01 times
      its memory more.

    Use:
      For: few labels, noisy labels.
      When: Image classification in which any part of the object tells its class. Pixels stay natural, unlike in `mixup`, which
        it beat on digits with wrong labels. There it did best with prob=1.
      Not when: The class shows in a small spot, so that the area misstates the label. Targets are masks or boxes, which are not
        pasted along. One box for the batch is too few draws for small batches: take per='example'.
      Badly with: `cutout` or `random_erasing` after it, which may hide the part that the label counts: put them before.
        `imbsam`, which takes the larger class of a mixture. Memories by position such as `elr` and `saf`.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> images, labels = jnp.ones((4, 8, 8, 3)), jax.nn.one_hot(jnp.arange(4), 10)
      >>> images, labels = rj.inputs.cutmix(jax.random.key(0), images, labels, prob=0.5)
      >>> images.shape, round(float(labels.sum()), 4)
      ((4, 8, 8, 3), 4.0)

    References:
      Yun et al., CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features, 2019,
      arXiv 1905.04899. As in the authors' code one box and one permutation serve the batch, and half a side is an integer
      division, so that an odd side loses a pixel; that code mixes two cross-entropies, which is the cross-entropy of mixed
      labels. ``reverse``, ``"pair"``, ``"example"``, ``minmax`` and ``correct_lam`` are those of timm, ``roll`` that of
      torchvision.
    """
    name = "inputs.cutmix"
    checks.key(name, key)
    images = checks.images(name, "images", images)
    batch, shape = images.shape[0], images.shape[1:3]
    labels = check_soft_labels(name, labels, batch, ndim=2)
    check_options(name, alpha, prob, per, pairing, within_shard, batch)
    checks.boolean(name, "correct_lam", correct_lam)
    lam_key, box_key, partner_key = jax.random.split(key, 3)
    partner = sample_partner(partner_key, batch, pairing, within_shard)
    draws = () if per == "batch" else (batch,)
    lam, mixes = sample_lam(lam_key, alpha, prob, draws)
    row_key, column_key = jax.random.split(box_key)
    if minmax is None:
        rows, columns = (jax.random.randint(k, draws, 0, n) for k, n in zip((row_key, column_key), shape, strict=True))
        box = cutmix_box(lam, jnp.stack([rows, columns], axis=-1), shape)
    else:
        ranges = check_minmax(name, "minmax", minmax, shape)
        edges: list[Array] = []
        for k, n, (low, high) in zip((row_key, column_key), shape, ranges, strict=True):
            side_key, start_key = jax.random.split(k)
            side = jax.random.randint(side_key, draws, low, high)
            start = jax.random.randint(start_key, draws, 0, n - side)
            edges += [start, start + jnp.where(mixes, side, 0)]
        y1, y2, x1, x2 = edges
        box = (y1, y2, x1, x2)
    if per == "pair":
        lam, box = jax.tree.map(lambda x: share(x, partner), (lam, box))
    return paste_box(images, labels, box=box, partner=partner, lam=None if correct_lam or minmax is not None else lam)


def apply_cutmix(
    images: Any, labels: Any, *, lam: Any, centre: Any, partner: Any, correct_lam: bool = True
) -> tuple[Array, Array]:
    r"""CutMix with given weights, box centres and partners: the core of `cutmix`.

    Formula:
      `paste_box` of the box `cutmix_box` ``(lam, centre, (H, W))``.

    Args:
      images: float ``[B, H, W, C]``.
      labels: float ``[B, K]``.
      lam: the fraction of the image that stays if the box is not cut at the border, in [0, 1]: a number, or float ``[B]``.
      centre: the box's centre ``(row, column)``, or integer ``[B, 2]``.
      partner: integer ``[B]``, indices into the batch; or ``[G, B/G]``, indices into each of G contiguous blocks.
      correct_lam: whether labels are mixed by the area of the box (default), or by ``lam``.

    Returns:
      ``(images, labels)`` with the shapes and dtypes of the inputs.

    Raises:
      ValueError: if a shape or dtype does not fit, or a number ``lam`` is out of range.

    Cost:
      One gather: two reads and one write of the batch.
      XLA at [256, 32, 32, 3]: at most 2.4 times the FLOPs and 1.2 times the bytes of a copy of its arguments, and 0.01 times
      its memory more.

    Use:
      Part of: `cutmix`.
      When: Call it with your own centres, weights and partners, such as centres from a saliency map.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> images = jnp.stack([jnp.zeros((8, 8, 1)), jnp.ones((8, 8, 1))])
      >>> images, labels = rj.inputs.apply_cutmix(images, jnp.eye(2), lam=0.75, centre=(0, 0), partner=jnp.array([1, 0]))
      >>> float(images[0].mean()), labels[0].tolist()
      (0.0625, [0.9375, 0.0625])

    References:
      Yun et al., CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features, 2019,
      arXiv 1905.04899.
    """
    name = "inputs.apply_cutmix"
    images = checks.images(name, "images", images)
    batch, shape = images.shape[0], images.shape[1:3]
    labels = check_soft_labels(name, labels, batch, ndim=2)
    lam = check_lam(name, lam, batch)
    centre = checks.integers(name, "centre", centre)
    if centre.shape not in ((2,), (batch, 2)):
        checks.fail(name, "centre", f"(row, column) or integers of shape [{batch}, 2]", centre)
    partner = check_partner(name, partner, batch)
    checks.boolean(name, "correct_lam", correct_lam)
    box = cutmix_box(lam, centre, shape)
    return paste_box(images, labels, box=box, partner=partner, lam=None if correct_lam else lam)


def cutmix_box(lam: Any, centre: Any, shape: tuple[int, int]) -> Box:
    r"""The box that CutMix pastes, cut at the border of the image.

    Formula:
      With :math:`r = \sqrt{1 - \lambda}`, ``h = floor(H r)`` and ``w = floor(W r)``: rows from ``row - h // 2`` to
      ``row + h // 2``, the same for columns, clipped to the image. An odd side loses one pixel.

    Args:
      lam: the fraction of the image that stays if the box is not cut, in [0, 1]: a number, or float ``[B]``. Where
        ``H r`` is an integer, rounding in float32 decides.
      centre: ``(row, column)``, or integer ``[B, 2]``.
      shape: ``(H, W)``.

    Returns:
      ``(y1, y2, x1, x2)``, integers of shape ``[]`` or ``[B]``: rows ``y1..y2 - 1`` and columns ``x1..x2 - 1``.

    Raises:
      ValueError: if a shape or dtype does not fit, or a number ``lam`` is out of range.

    Cost:
      A few operations for each box.
      XLA at [256, 2]: at most 29 times the FLOPs and 2.6 times the bytes of a copy of its arguments, and 0.19 times its memory
      more.

    Use:
      Part of: `cutmix`.
      When: Call it where the same box must be cut from more than the image, such as a mask or a teacher's map.

    Example:
      >>> import regjax as rj
      >>> [int(edge) for edge in rj.inputs.cutmix_box(0.75, (4, 4), (8, 8))]
      [2, 6, 2, 6]

    References:
      Yun et al., CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features, 2019,
      arXiv 1905.04899; as ``rand_bbox`` of the authors' code.
    """
    name = "inputs.cutmix_box"
    if not (isinstance(shape, tuple) and len(shape) == 2):
        checks.fail(name, "shape", "(H, W)", shape)
    height, width = (checks.integer(name, "shape", n, low=1) for n in shape)
    centre = checks.integers(name, "centre", centre)
    if centre.ndim not in (1, 2) or centre.shape[-1] != 2:
        checks.fail(name, "centre", "(row, column) or integers of shape [B, 2]", centre)
    lam = check_lam(name, lam, centre.shape[0] if centre.ndim == 2 else None).astype(jnp.float32)
    ratio = jnp.sqrt(jnp.clip(1 - lam, 0, 1))
    tall, wide = ((n * ratio).astype(jnp.int32) for n in (height, width))
    return clipped_box(centre, tall, wide, (height, width))


def paste_box(images: Any, labels: Any, *, box: Box, partner: Any, lam: Any = None) -> tuple[Array, Array]:
    r"""Pastes given boxes of the partners' images, and mixes the labels by the area.

    Formula:
      .. math::
         \tilde x_i = M_i \odot x_{p(i)} + (1 - M_i) \odot x_i, \quad \tilde y_i = \lambda_i y_i + (1 - \lambda_i) y_{p(i)},
         \quad \lambda_i = 1 - \frac{(y_2 - y_1)(x_2 - x_1)}{HW}

    Args:
      images: float ``[B, H, W, C]``.
      labels: float ``[B, K]``; mixed in float32 or better.
      box: ``(y1, y2, x1, x2)`` as of `cutmix_box`, integers of shape ``[]`` or ``[B]``, inside the image.
      partner: integer ``[B]``, indices into the batch; or ``[G, B/G]``, indices into each of G contiguous blocks.
      lam: another weight for the labels: None (default: the area), a number in [0, 1], or float ``[B]``.

    Returns:
      ``(images, labels)`` with the shapes and dtypes of the inputs.

    Raises:
      ValueError: if a shape or dtype does not fit, or a number ``lam`` is out of range.

    Cost:
      One gather: two reads and one write of the batch.
      XLA at [256, 32, 32, 3]: at most 2.4 times the FLOPs and 1.1 times the bytes of a copy of its arguments, and 0 times its
      memory more.

    Use:
      Part of: `cutmix`.
      When: Call it with boxes of your own rule, or with the box of `cutmix_box` for several arrays.
      Badly with: Boxes that reach outside the image: their area is not clipped here, so that labels are wrong.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> images = jnp.stack([jnp.zeros((4, 4, 1)), jnp.ones((4, 4, 1))])
      >>> images, labels = rj.inputs.paste_box(images, jnp.eye(2), box=(0, 2, 0, 4), partner=jnp.array([1, 0]))
      >>> labels.tolist()
      [[0.5, 0.5], [0.5, 0.5]]

    References:
      Yun et al., CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features, 2019,
      arXiv 1905.04899.
    """
    name = "inputs.paste_box"
    images = checks.images(name, "images", images)
    batch, shape = images.shape[0], images.shape[1:3]
    labels = check_soft_labels(name, labels, batch, ndim=2)
    partner = check_partner(name, partner, batch)
    if not (isinstance(box, (tuple, list)) and len(box) == 4):
        checks.fail(name, "box", "four integers or integer arrays (y1, y2, x1, x2)", box)
    y1, y2, x1, x2 = edges = tuple(checks.integers(name, "box", edge) for edge in box)
    for edge in edges:
        if edge.shape not in ((), (batch,)):
            checks.fail(name, "box", f"edges of shape [] or [{batch}]", edge)
    if lam is None:
        lam = 1 - ((y2 - y1) * (x2 - x1)).astype(jnp.float32) / (shape[0] * shape[1])
    else:
        lam = check_lam(name, lam, batch)
    pasted = fill_box(images, (y1, y2, x1, x2), take_partner(images, partner))
    return pasted, mix_partner(labels, lam, partner)
