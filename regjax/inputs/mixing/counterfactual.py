"""Patches of each image, chosen by a class activation map or at random, filled from other images of the batch."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regjax.core import checks, sharding, trees
from regjax.core.partners import check_partner, take_partner
from regjax.core.types import Array, Key, Strength
from regjax.inputs.mixing.pairs import check_blocks, sample_partner


def cam_mask_refill(
    key: Key,
    images: Any,
    labels: Any = None,
    *,
    cam: Any,
    threshold: Any = 0.3,
    mask: str = "object",
    fill: str = "single",
    within_shard: int | None = None,
) -> tuple[Array, Any]:
    r"""Replaces the object, or the context, that a class activation map shows by parts of other images.

    Formula:
      With m the patches of `cam_mask` and p a random permutation of the batch, or for ``"multi"`` for each image i and patch
      j a shift :math:`s_{ij} \sim U\{1..B - 1\}`:

      .. math:: \tilde x_{ij} = m_{ij} x_{p(i) j} + (1 - m_{ij}) x_{ij}, \quad p(i) = (i + s_{ij}) \bmod B

    Args:
      key: a random key.
      images: float ``[B, H, W, C]``.
      labels: anything; it passes unchanged. The filled images serve feature distillation, see
        ``features.feature_distillation``; the cross-entropy stays on the clean ones.
      cam: float ``[B, h, w]``, at least 0: of the present model, by `attention_relevance` or `grad_cam`.
      threshold: of the map relative to its maximum, at least 0, default 0.3; from 1 on nothing counts as object. The
        authors: 0.3 for object with single and context with multi, 0.5 for context with single, 0.6 for object with multi.
      mask: what is replaced: ``"object"`` (default), the map above the threshold, or ``"context"``, the rest.
      fill: ``"single"`` (default), all patches from one partner, or ``"multi"``, each from an image of its own.
      within_shard: None fills from the whole batch; a number G that divides B fills inside each of G contiguous blocks, so
        that a batch sharded over G devices needs no communication.

    Returns:
      ``(images, labels)``, the images with their shape and dtype. No gradient reaches ``cam``.

    Raises:
      ValueError: if a shape, dtype or option does not fit, a number is out of range, or ``"multi"`` has one image only.

    Cost:
      One gather: two reads and one write of the batch, beside the map: a forward and a backward pass, mostly. Without
      ``within_shard`` a batch sharded over devices is gathered.
      XLA at [256, 32, 32, 3]: at most 1.2 times the FLOPs and 1.2 times the bytes of a copy of its arguments, and 0.046 times
      its memory more.

    Use:
      For: fine-tuning, distribution shift.
      When: A pretrained model is fine-tuned and must not forget what holds on other domains: student and frozen teacher see the
        refilled images and `feature_distillation` holds their features together, beside cross-entropy on clean images.
      Not when: There is no pretrained teacher, or training starts from scratch, when activation maps are noise. The extra
        passes are too dear: `random_mask_refill` needs no map.
      Badly with: Cross-entropy on the filled images, whose object may be gone while the label stays. `mixup` or `cutmix` before
        it, as maps then show two objects. Batches of one class, which refill an object with its like.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> images = jnp.stack([jnp.zeros((4, 4, 1)), jnp.ones((4, 4, 1))])
      >>> cam = jnp.array([[[0.1, 0.9], [0.2, 0.3]]] * 2)
      >>> filled, _ = rj.inputs.cam_mask_refill(jax.random.key(0), images, cam=cam, fill="multi")
      >>> filled[0, :, :, 0].astype(int).tolist()
      [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]]

    References:
      Xiao et al., Masked Images Are Counterfactual Samples for Robust Fine-tuning, 2023, arXiv 2303.03052; as the authors'
      code. Its variants that drop the masked tokens in place of filling them are not here.
    """
    name = "inputs.cam_mask_refill"
    checks.key(name, key)
    images = checks.images(name, "images", images)
    cam = checks.floating(name, "cam", cam, shape=(images.shape[0], None, None))
    _check_grid(name, "cam", cam.shape[1:], images)
    _check_cam_options(name, threshold, mask)
    hidden = _cam_mask(cam, threshold, mask)
    return _refill(name, key, images, hidden, fill, within_shard), labels


def random_mask_refill(
    key: Key,
    images: Any,
    labels: Any = None,
    *,
    grid: int | tuple[int, int],
    prob: Strength = 0.5,
    fill: str = "single",
    within_shard: int | None = None,
) -> tuple[Array, Any]:
    r"""Replaces random patches of each image by parts of other images.

    Formula:
      That of `cam_mask_refill` with :math:`m_{ij} \sim Bernoulli(prob)`.

    Args:
      key: a random key.
      images: float ``[B, H, W, C]``.
      labels: anything; it passes unchanged.
      grid: the patches in each direction, ``(h, w)`` or a number for both.
      prob: the probability that a patch is replaced, in [0, 1], default 0.5; 0 changes nothing.
      fill: ``"single"`` (default), all patches from one partner, or ``"multi"``, each from an image of its own.
      within_shard: None, or the number of blocks of the batch inside which to fill: see `cam_mask_refill`.

    Returns:
      ``(images, labels)``, the images with their shape and dtype.

    Raises:
      ValueError: if a shape, dtype or option does not fit, ``prob`` is out of range, or ``"multi"`` has one image only.

    Cost:
      One gather: two reads and one write of the batch. Without ``within_shard`` a batch sharded over devices is gathered.
      XLA at [256, 32, 32, 3]: at most 1.5 times the FLOPs and 1.3 times the bytes of a copy of its arguments, and 0.05 times
      its memory more.

    Use:
      For: fine-tuning, distribution shift.
      When: As `cam_mask_refill`, where no activation map is at hand. With `feature_distillation` from the pretrained model,
        accuracy on digits fell less when a cue that told the class in fine-tuning was flipped.
      Not when: There is no teacher to distil from: the labels of filled images are not mixed, so they are no training data by
        themselves, as those of `cutmix` are.
      Badly with: Cross-entropy on the filled images. `cutmix`, which does the same with labels. A grid much finer than the
        objects, where replacing half of the cells leaves no part whole.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> images = jnp.stack([jnp.zeros((4, 4, 1)), jnp.ones((4, 4, 1))])
      >>> filled, _ = rj.inputs.random_mask_refill(jax.random.key(0), images, grid=2, prob=1.0, fill="multi")
      >>> filled.mean((1, 2, 3)).tolist()
      [1.0, 0.0]

    References:
      Xiao et al., Masked Images Are Counterfactual Samples for Robust Fine-tuning, 2023, arXiv 2303.03052. Uncertain is
      whether the authors' fill replaces a fixed number of patches, as their variant that drops tokens does, or each
      independently, as here.
    """
    name = "inputs.random_mask_refill"
    checks.key(name, key)
    images = checks.images(name, "images", images)
    given = grid if isinstance(grid, tuple) else (grid, grid)
    if len(given) != 2:
        checks.fail(name, "grid", "a number of patches or (h, w)", grid)
    sides = tuple(checks.integer(name, "grid", n, low=1) for n in given)
    _check_grid(name, "grid", sides, images)
    checks.number(name, "prob", prob, low=0.0, high=1.0)
    key, mask_key = jax.random.split(key)
    hidden = jax.random.uniform(mask_key, (images.shape[0], *sides), jnp.float32) < prob
    return _refill(name, key, images, hidden, fill, within_shard), labels


def apply_mask_refill(images: Any, hidden: Any, *, partner: Any = None, shift: Any = None) -> Array:
    r"""Fills given patches from given images: the core of `cam_mask_refill` and `random_mask_refill`.

    Formula:
      .. math:: \tilde x_{ij} = m_{ij} x_{p(i) j} + (1 - m_{ij}) x_{ij}

      with p(i) the partner, or with shifts ``(i + s[i, j]) mod B``. A pixel ``(y, x)`` belongs to patch
      ``(floor(y h / H), floor(x w / W))``.

    Args:
      images: float ``[B, H, W, C]``.
      hidden: boolean ``[B, h, w]``: the patches m to fill.
      partner: integer ``[B]``, indices into the batch; or ``[G, B/G]``, indices into each of G contiguous blocks.
      shift: in place of ``partner``, integer ``[B, h, w]``, one for each patch; or ``[G, B/G, h, w]``, shifts inside each of
        G contiguous blocks.

    Returns:
      The images, with their shape and dtype.

    Raises:
      ValueError: if a shape or dtype does not fit, or not exactly one of ``partner`` and ``shift`` is given.

    Cost:
      One gather: two reads and one write of the batch; with ``shift`` pixel by pixel. Without blocks a batch sharded over
      devices is gathered.
      XLA at [256, 32, 32, 3]: at most 1.1 times the FLOPs and 1.2 times the bytes of a copy of its arguments, and 0.046 times
      its memory more.

    Use:
      Part of: `cam_mask_refill`, `random_mask_refill`.
      When: Call it with a mask of your own, such as a segmentation, or with partners chosen by class.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> images, hidden = jnp.arange(2.0).reshape(2, 1, 1, 1) * jnp.ones((2, 2, 2, 1)), jnp.array([[[True, False]]] * 2)
      >>> rj.inputs.apply_mask_refill(images, hidden, partner=jnp.array([1, 0]))[..., 0].astype(int).tolist()
      [[[1, 0], [1, 0]], [[0, 1], [0, 1]]]

    References:
      Xiao et al., Masked Images Are Counterfactual Samples for Robust Fine-tuning, 2023, arXiv 2303.03052.
    """
    name = "inputs.apply_mask_refill"
    images = checks.images(name, "images", images)
    batch = images.shape[0]
    hidden = checks.array(name, "hidden", hidden, shape=(batch, None, None))
    if hidden.dtype != jnp.bool_:
        checks.fail(name, "hidden", f"a boolean mask of shape [{batch}, h, w]", hidden)
    _check_grid(name, "hidden", hidden.shape[1:], images)
    if (partner is None) == (shift is None):
        checks.fail(name, "partner", "given, or shift in its place, not both", partner)
    if shift is None:
        other = take_partner(images, check_partner(name, partner, batch))
    else:
        shift = checks.integers(name, "shift", shift)
        grid = hidden.shape[1:]
        if shift.ndim not in (3, 4) or shift.shape[-2:] != grid or math.prod(shift.shape[:-2]) != batch:
            text = f"integers of shape [{batch}, {grid[0]}, {grid[1]}], or [G, {batch}/G, {grid[0]}, {grid[1]}] inside blocks"
            checks.fail(name, "shift", text, shift)
        other = _take_shifted(images, shift)
    mask = _to_pixels(hidden, images)[..., None]
    named = sharding.explicit_sharding(images)
    if named is not None:
        # A select on an Explicit mesh takes a mask that is sharded as the images are.
        mask = jax.sharding.reshard(mask, named.update(spec=jax.P(*named.spec[:3], None)))
        other = jax.sharding.reshard(other, named)
    return jnp.where(mask, other, images)


def cam_mask(cam: Any, *, threshold: Any = 0.3, mask: str = "object") -> Array:
    r"""The patches that a class activation map shows as the object, or as its context.

    Formula:
      .. math:: m_j = \left[ \frac{c_j}{\max_k c_k + 10^{-8}} > threshold \right]

      for the object, and its complement for the context. A map that is 0 everywhere shows no object.

    Args:
      cam: float ``[B, h, w]``, at least 0.
      threshold: a number of at least 0, default 0.3; from 1 on nothing is object.
      mask: ``"object"`` (default) or ``"context"``.

    Returns:
      Boolean ``[B, h, w]``.

    Raises:
      ValueError: if ``cam`` is not floating ``[B, h, w]``, ``threshold`` is negative, or ``mask`` is unknown.

    Cost:
      One read of the map and one write of the mask.
      XLA at [256, 8, 8]: at most 3.4 times the FLOPs and 1.3 times the bytes of a copy of its arguments, and 0.0086 times its
      memory more.

    Use:
      Part of: `cam_mask_refill`.
      When: Call it to look at what a threshold hides before training, or to use the mask for something other than refilling.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> rj.inputs.cam_mask(jnp.array([[[0.1, 2.0], [0.7, 0.5]]])).tolist()
      [[[False, True], [True, False]]]

    References:
      Xiao et al., Masked Images Are Counterfactual Samples for Robust Fine-tuning, 2023, arXiv 2303.03052.
    """
    name = "inputs.cam_mask"
    cam = checks.floating(name, "cam", cam, ndim=3)
    _check_cam_options(name, threshold, mask)
    return _cam_mask(cam, threshold, mask)


def _check_cam_options(name: str, threshold: Any, mask: Any) -> None:
    checks.number(name, "threshold", threshold, low=0.0)
    checks.choice(name, "mask", mask, ("object", "context"))


def _cam_mask(cam: Array, threshold: Any, mask: str) -> Array:
    cam = jax.lax.stop_gradient(cam).astype(trees.accumulator(cam))
    top = jnp.max(cam, axis=(1, 2), keepdims=True)
    seen = cam / (jnp.maximum(top, 0) + 1e-8) > threshold
    return seen if mask == "object" else ~seen


def _refill(name: str, key: Key, images: Array, hidden: Array, fill: Any, within_shard: Any) -> Array:
    """Draws where the patches come from, and fills them."""
    checks.choice(name, "fill", fill, ("single", "multi"))
    batch = images.shape[0]
    blocks = check_blocks(name, within_shard, batch)
    if fill == "single":
        return apply_mask_refill(images, hidden, partner=sample_partner(key, batch, "permutation", within_shard))
    if batch // blocks < 2:
        checks.fail(name, "images", "two or more in each block where fill is 'multi'", images)
    shift = jax.random.randint(key, (blocks, batch // blocks, *hidden.shape[1:]), 1, batch // blocks)
    return apply_mask_refill(images, hidden, shift=shift)


def _take_shifted(images: Array, shift: Array) -> Array:
    """Pixels of image ``(i + shift) mod B``, or of ``(i + shift) mod (B / G)`` inside G blocks."""
    blocks, size = (shift.shape[0], shift.shape[1]) if shift.ndim == 4 else (1, shift.shape[0])
    source = (jnp.arange(size)[:, None, None] + shift) % size
    spread = blocks % sharding.row_shards(images) > 0
    if blocks > 1 and not spread:
        # A gather with the blocks as its batch dimension stays on the device that holds the block.
        x = images.reshape(blocks, size, *images.shape[1:])
        source = _to_pixels(source.reshape(-1, *shift.shape[-2:]), images).reshape(*x.shape[:-1], 1)
        return jnp.take_along_axis(x, source, axis=1, mode="clip").reshape(images.shape)
    if shift.ndim == 4:
        source = (source + size * jnp.arange(blocks)[:, None, None, None]).reshape(-1, *shift.shape[-2:])
    source = _to_pixels(source, images)
    place = (source, jnp.arange(images.shape[1])[:, None], jnp.arange(images.shape[2]))
    named = sharding.explicit_sharding(images)
    return images[place] if named is None else images.at[place].get(out_sharding=named)


def _to_pixels(patches: Array, images: Array) -> Array:
    """Values ``[B, h, w]`` at the pixels ``[B, H, W]``: the nearest patch."""
    (rows, columns), (height, width) = patches.shape[1:], images.shape[1:3]
    patches = jnp.take(patches, np.arange(height) * rows // height, axis=1)
    return jnp.take(patches, np.arange(width) * columns // width, axis=2)


def _check_grid(name: str, argument: str, grid: tuple[int, ...], images: Array) -> None:
    if not all(1 <= n <= side for n, side in zip(grid, images.shape[1:3], strict=True)):
        checks.fail(name, argument, f"at least one patch and at most {list(images.shape[1:3])}, the pixels", grid)
