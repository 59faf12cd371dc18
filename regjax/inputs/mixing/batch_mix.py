"""Mixup and CutMix taken in turn, with smoothed labels: the recipe of timm, in one pass over the batch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regjax.core import checks, trees
from regjax.core.types import Array, Key, Strength
from regjax.inputs.mixing.boxes import Box, fill_box
from regjax.inputs.mixing.cutmix import cutmix_box
from regjax.inputs.mixing.pairs import check_blocks, check_minmax, reverse_rows, sample_lam

MODES = ("batch", "pair", "elem")


def batch_mix(
    key: Key,
    images: Any,
    labels: Any,
    *,
    num_classes: int | None = None,
    mixup_alpha: Strength = 1.0,
    cutmix_alpha: Strength = 0.0,
    cutmix_minmax: tuple[float, float] | None = None,
    prob: Strength = 1.0,
    switch_prob: Strength = 0.5,
    mode: str = "batch",
    correct_lam: bool = True,
    label_smoothing: Strength = 0.1,
    within_shard: int | None = None,
) -> tuple[Array, Array]:
    r"""Mixes each image with the one opposite in the batch, by mixup or by CutMix, and smooths the labels: timm's ``Mixup``.

    Formula:
      .. math::
         \tilde x_i = mixup \; or \; cutmix(x_i, x_{B-1-i}; \lambda_i), \quad
         \tilde y_i = \lambda_i s(y_i) + (1 - \lambda_i) s(y_{B-1-i}), \quad s(y) = (1 - \epsilon) y + \epsilon / K

      with lam of Beta(a, a), a the alpha of the chosen one. The loss is then the plain cross-entropy of soft labels: do not
      smooth again.

    Args:
      key: a random key.
      images: float ``[B, H, W, C]``. In an odd batch the example in the middle meets itself.
      labels: integer class ids ``[B]``, which need ``num_classes``, or probabilities ``[B, K]``.
      num_classes: K; None (default) with probabilities.
      mixup_alpha: the Beta parameter of mixup, at least 0, default 1; 0 is no mixup. A common recipe for vision
        transformers: 0.8, with ``cutmix_alpha`` 1.
      cutmix_alpha: that of CutMix, default 0. With both at 0 nothing is mixed, and labels are only smoothed.
      cutmix_minmax: None, or fractions ``(low, high)`` of the image's sides between which CutMix draws its box, as in
        `cutmix`; ``cutmix_alpha`` then counts as 1.
      prob: the probability of mixing at all, in [0, 1], default 1: of the batch, the pair or the example, as ``mode`` says.
      switch_prob: the probability of CutMix where both alphas are positive, in [0, 1], default 0.5; drawn as often as lam.
      mode: what shares one choice, lam and box: ``"batch"`` (default), ``"pair"`` (an example and its partner) or
        ``"elem"`` (each its own).
      correct_lam: whether CutMix mixes labels by the area of the box as cut at the border (default), or by the drawn lam;
        with ``cutmix_minmax`` always by the area.
      label_smoothing: the mass moved to the uniform distribution, in [0, 1], default 0.1.
      within_shard: None pairs over the whole batch; a number G that divides B reverses inside each of G contiguous blocks,
        so that a batch sharded over G devices mixes without communication.

    Returns:
      ``(images, labels)``: the images with their shape and dtype; float labels ``[B, K]``, of the dtype of probabilities
      given, else float32 or better. A class id outside [0, K) gives a row of NaN.

    Raises:
      ValueError: if a shape, dtype or option does not fit, class ids come without ``num_classes``, a strength is out of
        range, or ``cutmix_minmax`` leaves no box for this image size.

    Cost:
      One fused pass, whichever is chosen: two reads and one write of the batch.
      XLA at [256, 32, 32, 3]: at most 4.5 times the FLOPs and 1.2 times the bytes of a copy of its arguments, and 0.01 times
      its memory more.

    Use:
      For: few labels, noisy labels.
      When: A timm recipe for vision transformers is to be repeated, or mixup and CutMix are to take turns in one compiled step.
        mode='elem' gives each image its own draw. On the digits it was about as good as `cutmix` alone.
      Not when: You want CutMix and leave cutmix_alpha at its default of 0. Batches have a fixed order of classes: the partner
        is always the one opposite, where `mixup` and `cutmix` draw it at random.
      Badly with: `label_smoothing`, as labels are smoothed here by default. `mixup` or `cutmix` before it, which mixes twice.
        Odd batches, whose middle image stays as it is. Memories by position such as `ps_kd`.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> images, labels = rj.inputs.batch_mix(
      ...     jax.random.key(0), jnp.ones((4, 8, 8, 3)), jnp.arange(4), num_classes=10, mixup_alpha=0.8, cutmix_alpha=1.0
      ... )
      >>> images.shape, labels.shape, round(float(labels.sum()), 4)
      ((4, 8, 8, 3), (4, 10), 4.0)

    References:
      Zhang et al., mixup: Beyond Empirical Risk Minimization, 2017, arXiv 1710.09412. Yun et al., CutMix: Regularization
      Strategy to Train Strong Classifiers with Localizable Features, 2019, arXiv 1905.04899. As class ``Mixup`` of timm,
      which refuses odd batches and two alphas of 0.
    """
    name = "inputs.batch_mix"
    checks.key(name, key)
    images = checks.images(name, "images", images)
    batch, shape = images.shape[0], images.shape[1:3]
    checks.number(name, "mixup_alpha", mixup_alpha, low=0.0)
    checks.number(name, "cutmix_alpha", cutmix_alpha, low=0.0)
    for argument, chance in (("prob", prob), ("switch_prob", switch_prob), ("label_smoothing", label_smoothing)):
        checks.number(name, argument, chance, low=0.0, high=1.0)
    checks.choice(name, "mode", mode, MODES)
    checks.boolean(name, "correct_lam", correct_lam)
    blocks = check_blocks(name, within_shard, batch)
    _soft_labels(name, images, labels, num_classes, label_smoothing)
    lam_key, switch_key, row_key, column_key = jax.random.split(key, 4)

    draws = _draws(mode, batch, blocks)
    mixup_alpha = jnp.asarray(mixup_alpha, jnp.float32)
    cutmix_alpha = jnp.asarray(1 if cutmix_minmax is not None else cutmix_alpha, jnp.float32)
    switched = (jax.random.uniform(switch_key, draws, jnp.float32) < switch_prob) | (mixup_alpha <= 0)
    use_cutmix = switched & (cutmix_alpha > 0)
    lam, _ = sample_lam(lam_key, jnp.where(use_cutmix, cutmix_alpha, mixup_alpha), prob, draws)

    if cutmix_minmax is None:
        box = None
        rows, columns = (jax.random.randint(k, draws, 0, n) for k, n in zip((row_key, column_key), shape, strict=True))
        centres = jnp.stack([rows, columns], axis=-1)
    else:
        centres, edges = None, []
        ranges = check_minmax(name, "cutmix_minmax", cutmix_minmax, shape)
        for k, n, (low, high) in zip((row_key, column_key), shape, ranges, strict=True):
            side_key, start_key = jax.random.split(k)
            side = jax.random.randint(side_key, draws, low, high)
            start = jax.random.randint(start_key, draws, 0, n - side)
            edges += [start, start + side]
        box = (edges[0], edges[1], edges[2], edges[3])
    return apply_batch_mix(
        images,
        labels,
        mode=mode,
        lam=lam,
        use_cutmix=use_cutmix,
        centres=centres,
        box=box,
        label_smoothing=label_smoothing,
        num_classes=num_classes,
        correct_lam=correct_lam or cutmix_minmax is not None,
        within_shard=within_shard,
    )


def apply_batch_mix(
    images: Any,
    labels: Any,
    *,
    mode: str = "batch",
    lam: Any,
    use_cutmix: Any,
    centres: Any = None,
    box: Box | None = None,
    label_smoothing: Strength = 0.0,
    num_classes: int | None = None,
    correct_lam: bool = True,
    within_shard: int | None = None,
) -> tuple[Array, Array]:
    r"""Mixup or CutMix of each image with the one opposite in the batch, with everything drawn given: the core of `batch_mix`.

    Formula:
      .. math::
         \tilde x_i = M_i \odot x_{B-1-i} + (1 - M_i) \odot (w_i x_i + (1 - w_i) x_{B-1-i}), \quad
         \tilde y_i = \lambda_i s(y_i) + (1 - \lambda_i) s(y_{B-1-i})

      For mixup the box M is empty and w = lam; for CutMix w = 1, and lam is replaced by the area outside M if it is to be
      corrected. Where lam = 1 the image is left alone.

    Args:
      images: float ``[B, H, W, C]``. In an odd batch the example in the middle meets itself.
      labels: integer class ids ``[B]``, which need ``num_classes``, or probabilities ``[B, K]``.
      mode: how many draws there are, and so the shapes below: ``"batch"`` (default), one, shape ``[]``; ``"elem"``, one for
        each example, ``[B]``; ``"pair"``, one for each pair, ``[P]``, the pairs of the first half of the batch (or of each
        block, block by block), with the middle of an odd one.
      lam: the weight of the example itself, in [0, 1]: a number for all, or float, one for each draw.
      use_cutmix: a bool for all, or a boolean array, one for each draw.
      centres: the centres ``(row, column)`` of CutMix's boxes, or integers, one pair for each draw: ``[..., 2]``.
      box: ``(y1, y2, x1, x2)`` of integers or one for each draw, inside the image, in place of ``centres``.
      label_smoothing: the mass moved to the uniform distribution, in [0, 1], default 0.
      num_classes: K; None (default) with probabilities.
      correct_lam: whether CutMix mixes labels by the area of the box (default), or by ``lam``.
      within_shard: None, or the number of contiguous blocks inside which the batch is reversed.

    Returns:
      ``(images, labels)``: the images with their shape and dtype; float labels ``[B, K]``.

    Raises:
      ValueError: if a shape, dtype or option does not fit, a number is out of range, or not exactly one of ``centres`` and
        ``box`` is given.

    Cost:
      One fused pass: two reads and one write of the batch.
      XLA at [256, 32, 32, 3]: at most 5.7 times the FLOPs and 1.2 times the bytes of a copy of its arguments, and 0.01 times
      its memory more.

    Use:
      Part of: `batch_mix`.
      When: Call it with given draws: to repeat a mixture for a teacher, or to compare with timm draw by draw.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> images = jnp.stack([jnp.zeros((8, 8, 1)), jnp.ones((8, 8, 1))])
      >>> images, labels = rj.inputs.apply_batch_mix(
      ...     images, jnp.array([0, 1]), lam=0.75, use_cutmix=True, centres=(0, 0), num_classes=2
      ... )
      >>> float(images[0].mean()), labels[0].tolist()
      (0.0625, [0.9375, 0.0625])

    References:
      Zhang et al., mixup: Beyond Empirical Risk Minimization, 2017, arXiv 1710.09412. Yun et al., CutMix: Regularization
      Strategy to Train Strong Classifiers with Localizable Features, 2019, arXiv 1905.04899. As class ``Mixup`` of timm.
    """
    name = "inputs.apply_batch_mix"
    images = checks.images(name, "images", images)
    batch, (height, width) = images.shape[0], images.shape[1:3]
    checks.choice(name, "mode", mode, MODES)
    checks.boolean(name, "correct_lam", correct_lam)
    checks.number(name, "label_smoothing", label_smoothing, low=0.0, high=1.0)
    blocks = check_blocks(name, within_shard, batch)
    soft = _soft_labels(name, images, labels, num_classes, label_smoothing)
    draws = _draws(mode, batch, blocks)
    lam, use_cutmix = _check_lam(name, lam, draws), _check_flags(name, use_cutmix, draws)
    if (box is None) == (centres is None):
        checks.fail(name, "centres", "given, or box: exactly one of the two", centres)
    if box is None:
        centres = checks.integers(name, "centres", centres)
        if centres.shape not in ((2,), (*draws, 2)):
            checks.fail(name, "centres", f"(row, column) or integers of shape {[*draws, 2]}", centres)
        box = cutmix_box(lam, jnp.broadcast_to(centres, (*lam.shape, 2)) if lam.ndim else centres, (height, width))
    else:
        box = _check_box(name, box, draws)

    # An empty box is mixup, and so is a box where nothing is mixed; a weight of 1 is CutMix.
    y1, y2, x1, x2 = box
    pastes = use_cutmix & (lam < 1)
    y2, x2 = jnp.where(pastes, y2, y1), jnp.where(pastes, x2, x1)
    weight = jnp.where(use_cutmix, 1, lam)
    if correct_lam:
        area = ((y2 - y1) * (x2 - x1)).astype(lam.dtype) / (height * width)
        lam = jnp.where(pastes, 1 - area, lam)
    spread = lambda x: _spread(x, mode, batch, blocks)
    box = (spread(y1), spread(y2), spread(x1), spread(x2))
    other = reverse_rows(images, blocks)
    mixed = fill_box(_mix(images, other, spread(weight)), box, other)
    return mixed, _mix(soft, reverse_rows(soft, blocks), spread(lam))


def _mix(x: Array, other: Array, lam: Array) -> Array:
    dtype = trees.accumulator(x)
    lam = lam.astype(dtype).reshape(lam.shape + (1,) * (x.ndim - 1 if lam.ndim else 0))
    return (lam * x.astype(dtype) + (1 - lam) * other.astype(dtype)).astype(x.dtype)


def _draws(mode: str, batch: int, blocks: int) -> tuple[int, ...]:
    """The shape of what is drawn; the middle of an odd block counts as a pair."""
    if mode == "pair":
        return (blocks * ((batch // blocks + 1) // 2),)
    return () if mode == "batch" else (batch,)


def _spread(x: Array, mode: str, batch: int, blocks: int) -> Array:
    """One value for all, or one for each example, from one for each draw."""
    if mode != "pair" or x.ndim == 0:
        return x
    first = x.reshape(blocks, -1)
    second = first[:, : batch // blocks - first.shape[1]]
    return jnp.concatenate([first, jnp.flip(second, 1)], axis=1).reshape(batch)


def _soft_labels(name: str, images: Array, labels: Any, num_classes: Any, smoothing: Any) -> Array:
    """Smoothed probabilities [B, K], in the dtype of probabilities given, else in float32 or better."""
    labels = checks.array(name, "labels", labels)
    batch = images.shape[0]
    if num_classes is not None:
        checks.integer(name, "num_classes", num_classes, low=1)
    if jnp.issubdtype(labels.dtype, jnp.integer):
        if labels.shape != (batch,):
            checks.fail(name, "labels", f"class ids of shape [{batch}], or float probabilities of shape [{batch}, K]", labels)
        if num_classes is None:
            checks.fail(name, "num_classes", "given where labels are class ids", num_classes)
        dtype = out = trees.accumulator(images)
        here = labels[:, None].astype(jnp.promote_types(labels.dtype, jnp.int32)) == jnp.arange(num_classes)
        # A class id outside the range is seen.
        soft = here.astype(dtype) + jnp.where(jnp.any(here, axis=1, keepdims=True), 0, jnp.nan).astype(dtype)
    else:
        fits = jnp.issubdtype(labels.dtype, jnp.floating) and labels.ndim == 2 and labels.shape[0] == batch
        if not fits or num_classes not in (None, labels.shape[1]):
            text = f"class ids of shape [{batch}], or float probabilities of shape [{batch}, {num_classes or 'K'}]"
            checks.fail(name, "labels", text, labels)
        dtype, out = trees.accumulator(labels), labels.dtype
        soft, num_classes = labels.astype(dtype), labels.shape[1]
    smoothing = jnp.asarray(smoothing, dtype)
    return ((1 - smoothing) * soft + smoothing / max(num_classes, 1)).astype(out)


def _check_lam(name: str, lam: Any, draws: tuple[int, ...]) -> Array:
    if np.ndim(lam) == 0:
        return jnp.asarray(checks.number(name, "lam", lam, low=0.0, high=1.0), float)
    return checks.floating(name, "lam", lam, shape=draws)


def _check_flags(name: str, flags: Any, draws: tuple[int, ...]) -> Array:
    flags = checks.array(name, "use_cutmix", flags)
    if flags.dtype != jnp.bool_ or flags.shape not in ((), draws):
        checks.fail(name, "use_cutmix", f"a bool, or booleans of shape {list(draws)}", flags)
    return flags


def _check_box(name: str, box: Any, draws: tuple[int, ...]) -> Box:
    if not (isinstance(box, (tuple, list)) and len(box) == 4):
        checks.fail(name, "box", "four integers or integer arrays (y1, y2, x1, x2)", box)
    y1, y2, x1, x2 = edges = tuple(checks.integers(name, "box", edge) for edge in box)
    for edge in edges:
        if edge.shape not in ((), draws):
            checks.fail(name, "box", f"edges of shape [] or {list(draws)}", edge)
    return y1, y2, x1, x2
