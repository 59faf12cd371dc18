"""Patches of images as tokens, and the random masks of a masked autoencoder."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks, sharding
from regjax.core.images import to_patches
from regjax.core.types import Array, Key


class PatchMask(NamedTuple):
    """Which patches of each image are hidden.

    Attributes:
      ids_keep: int32 ``[B, L_keep]``, the patches that stay, in a random order.
      mask: boolean ``[B, L]``, True where a patch is hidden.
      ids_restore: int32 ``[B, L]``, where each patch stands in the random order: below L_keep for those that stay.
    """

    ids_keep: Array
    mask: Array
    ids_restore: Array


def random_patch_mask(key: Key, batch: int, num_patches: int, *, mask_ratio: float = 0.75) -> PatchMask:
    r"""Hides the same number of random patches in every image: the mask of a masked autoencoder.

    Formula:
      `apply_patch_mask` of noise uniform in [0, 1): of L patches ``floor(L (1 - mask_ratio))`` stay.

    Args:
      key: a random key.
      batch: B, the number of images.
      num_patches: L, the number of patches of an image.
      mask_ratio: the share of hidden patches, in [0, 1), default 0.75; a Python number, as it decides a shape. At least one
        patch must stay.

    Returns:
      ``PatchMask(ids_keep [B, L_keep], mask [B, L], ids_restore [B, L])``: `keep_tokens` takes the first, the loss
      ``masked_patch_loss`` the second, `restore_tokens` the third.

    Raises:
      ValueError: if the key is none, a size is below 1, or ``mask_ratio`` is out of range, traced, or leaves no patch.

    Cost:
      Two sorts of L numbers for each image, none over the batch. The encoder then sees L_keep tokens in place of L.
      XLA at 2 times [256, 196]: at most 42 times the FLOPs and 9.9 times the bytes of a copy of its results, and 1.9 times its
      memory more.

    Use:
      For: few labels, compute budget.
      When: Pretraining a vision transformer on unlabelled images with `masked_patch_loss`. Setting the hidden patches to 0 is
        also an augmentation: with half or more hidden it helped much on digits with wrong labels.
      Not when: The encoder is convolutional and cannot leave tokens out: hidden patches then save no time. The ratio is to be
        scheduled: it sets a shape, so each value compiles anew.
      Badly with: `mixup` or `cutmix` before it in pretraining, as targets are then pixels of mixtures. `cutout` or
        `random_erasing`, whose holes become targets.

    Example:
      >>> import jax, regjax as rj
      >>> ids_keep, mask, ids_restore = rj.inputs.random_patch_mask(jax.random.key(0), 2, 196)
      >>> ids_keep.shape, mask.sum(axis=1).tolist()
      ((2, 49), [147, 147])

    References:
      He et al., Masked Autoencoders Are Scalable Vision Learners, 2021, arXiv 2111.06377. The authors' mask holds 0 and 1,
      and they truncate ``L (1 - mask_ratio)`` in floating point, which keeps 0 of 10 patches at 0.9; here that keeps 1.
    """
    name = "inputs.random_patch_mask"
    checks.key(name, key)
    checks.integer(name, "batch", batch, low=1)
    checks.integer(name, "num_patches", num_patches, low=1)
    kept = _num_kept(name, num_patches, mask_ratio)
    return _mask(jax.random.uniform(key, (batch, num_patches), jnp.float32), kept)


def apply_patch_mask(noise: Any, *, mask_ratio: float = 0.75) -> PatchMask:
    r"""The mask that given noise makes: the patches with the least noise stay. The core of `random_patch_mask`.

    Formula:
      .. math:: s = argsort(u), \quad r = argsort(s), \quad K = \lfloor L (1 - \rho) + 10^{-6} \rfloor

      for each image: the patches :math:`s_0, ..., s_{K-1}` stay, and patch j is hidden where :math:`r_j \geq K`. Of equal
      noise the first stays. The small number in the floor is there for products that are whole but for rounding.

    Args:
      noise: float ``[B, L]``, one number for each patch.
      mask_ratio: :math:`\rho`, the share of hidden patches, in [0, 1), default 0.75; a Python number.

    Returns:
      ``PatchMask(ids_keep [B, L_keep], mask [B, L], ids_restore [B, L])``.

    Raises:
      ValueError: if ``noise`` does not fit, or ``mask_ratio`` is out of range, traced, or leaves no patch.

    Cost:
      Two sorts of L numbers for each image, none over the batch.
      XLA at [256, 196]: at most 37 times the FLOPs and 6.5 times the bytes of a copy of its arguments, and 1.7 times its memory
      more.

    Use:
      Part of: `random_patch_mask`.
      When: Call it with scores in place of noise: patches of least score stay, such as the least attended ones.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> ids_keep, mask, ids_restore = rj.inputs.apply_patch_mask(jnp.array([[0.9, 0.1, 0.5, 0.3]]), mask_ratio=0.5)
      >>> ids_keep.tolist(), mask.tolist(), ids_restore.tolist()
      ([[1, 3]], [[True, False, True, False]], [[3, 0, 2, 1]])

    References:
      He et al., Masked Autoencoders Are Scalable Vision Learners, 2021, arXiv 2111.06377.
    """
    name = "inputs.apply_patch_mask"
    noise = checks.floating(name, "noise", noise, ndim=2)
    if noise.shape[1] < 1:
        checks.fail(name, "noise", "an array [B, L] with at least one patch", noise)
    return _mask(noise, _num_kept(name, noise.shape[1], mask_ratio))


def keep_tokens(tokens: Any, ids_keep: Any) -> Array:
    r"""The tokens of the patches that stay.

    Formula:
      .. math:: \tilde x_{ik} = x_{i, s_{ik}}

    Args:
      tokens: ``[B, L, ...]``, with their position embeddings added: the order of the result is random.
      ids_keep: integer ``[B, L_keep]``, as of `random_patch_mask`.

    Returns:
      ``[B, L_keep, ...]``, in the dtype of ``tokens``.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      One gather inside each image.
      XLA at [64, 64, 256]: at most 0.01 times the FLOPs and 0.69 times the bytes of a copy of its arguments, and 0 times its
      memory more.

    Use:
      Part of: `random_patch_mask`.
      When: Call it between the embedding of patches and the encoder.
      Badly with: Position embeddings that are added afterwards, as the order of the kept tokens is random. A class token among
        the tokens, which may be dropped.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> rj.inputs.keep_tokens(jnp.array([[[1.0], [2.0], [3.0]]]), jnp.array([[2, 0]])).tolist()
      [[[3.0], [1.0]]]

    References:
      He et al., Masked Autoencoders Are Scalable Vision Learners, 2021, arXiv 2111.06377. Keep a class token aside.
    """
    name = "inputs.keep_tokens"
    tokens = checks.array(name, "tokens", tokens, min_ndim=2)
    ids_keep = checks.integers(name, "ids_keep", ids_keep, shape=(tokens.shape[0], None))
    return _gather(tokens, ids_keep)


def restore_tokens(kept: Any, ids_restore: Any, mask_token: Any) -> Array:
    r"""The tokens in the order of the patches, with a mask token for each hidden one: the input of the decoder.

    Formula:
      .. math:: x_{ij} = \tilde x_{i, r_{ij}} \ if \ r_{ij} < K, \ else \ m

    Args:
      kept: float ``[B, L_keep, D]``, the encoded tokens in the order of ``ids_keep``.
      ids_restore: integer ``[B, L]``, as of `random_patch_mask`.
      mask_token: float ``[D]``, usually learned.

    Returns:
      ``[B, L, D]``, in the dtype of ``kept``.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      One gather inside each image; the mask tokens are never stored.
      XLA at [64, 16, 256]: at most 4.5 times the FLOPs and 2.8 times the bytes of a copy of its arguments, and 0 times its
      memory more.

    Use:
      Part of: `random_patch_mask`.
      When: Call it between the encoder and the decoder, then add the decoder's position embeddings.
      Badly with: A class token that is still among the kept ones, which shifts every position by one.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> kept, mask_token = jnp.array([[[3.0], [1.0]]]), jnp.array([-1.0])
      >>> rj.inputs.restore_tokens(kept, jnp.array([[1, 2, 0]]), mask_token).tolist()
      [[[1.0], [-1.0], [3.0]]]

    References:
      He et al., Masked Autoencoders Are Scalable Vision Learners, 2021, arXiv 2111.06377. Equal to their gather out of the
      kept tokens with mask tokens appended.
    """
    name = "inputs.restore_tokens"
    kept = checks.floating(name, "kept", kept, ndim=3)
    ids_restore = checks.integers(name, "ids_restore", ids_restore, shape=(kept.shape[0], None))
    mask_token = checks.floating(name, "mask_token", mask_token, shape=kept.shape[-1:])
    there = _gather(kept, jnp.minimum(ids_restore, kept.shape[1] - 1))
    hidden = jnp.broadcast_to(sharding.rows_like(ids_restore, kept)[:, :, None] >= kept.shape[1], there.shape)
    # The sum gives the token the sharding of the batch, which a choice on an Explicit mesh asks for.
    return jnp.where(hidden, jnp.zeros_like(there) + mask_token.astype(kept.dtype), there)


def patchify(images: Any, patch_size: int) -> Array:
    r"""Images as rows of square patches.

    Formula:
      With h, w the place of a patch and p, q that of a pixel in it:

      .. math:: x_{b,\ h W/P + w,\ (p P + q) C + c} = image_{b,\ h P + p,\ w P + q,\ c}

    Args:
      images: float ``[B, H, W, C]``.
      patch_size: P, the side of a patch; it divides H and W.

    Returns:
      ``[B, L, P * P * C]`` with ``L = (H / P) (W / P)``, in the dtype of ``images``.

    Raises:
      ValueError: if the images do not fit, or ``patch_size`` does not divide their sides.

    Cost:
      One read and write of the batch.
      XLA at [256, 32, 32, 3]: at most 0 times the FLOPs and 1.1 times the bytes of a copy of its arguments, and 0 times its
      memory more.

    Use:
      Part of: `random_patch_mask`, `masked_patch_loss`.
      When: Call it to make the tokens of a masked autoencoder, or patches to hide, in the order in which the mask counts them.
      Badly with: Weights of models that put channels first within a patch: the order here is row, column, channel.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> rj.inputs.patchify(jnp.arange(16.0).reshape(1, 4, 4, 1), 2)[0].astype(int).tolist()
      [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]

    References:
      He et al., Masked Autoencoders Are Scalable Vision Learners, 2021, arXiv 2111.06377.
    """
    name = "inputs.patchify"
    images = checks.images(name, "images", images)
    checks.integer(name, "patch_size", patch_size, low=1)
    if any(n < 1 or n % patch_size for n in images.shape[1:3]):
        checks.fail(name, "patch_size", f"a divisor of the sides of images {list(images.shape[1:3])}", patch_size)
    return to_patches(images, patch_size)


def unpatchify(patches: Any, patch_size: int, *, shape: tuple[int, int] | None = None) -> Array:
    r"""Rows of square patches as images: the inverse of `patchify`.

    Formula:
      That of `patchify`, read from right to left.

    Args:
      patches: float ``[B, L, P * P * C]``.
      patch_size: P, the side of a patch.
      shape: ``(H, W)`` of the images; None (default) for square ones.

    Returns:
      ``[B, H, W, C]``, in the dtype of ``patches``.

    Raises:
      ValueError: if the patches are not of this size, do not fill the images, or ``shape`` is missing for L not a square.

    Cost:
      One read and write of the batch.
      XLA at [256, 64, 48]: at most 0 times the FLOPs and 1.1 times the bytes of a copy of its arguments, and 0 times its memory
      more.

    Use:
      Part of: `patchify`.
      When: Call it to look at reconstructions, or to get images back after patches were hidden. Give shape where they are not
        square.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> images = jnp.arange(32.0).reshape(1, 4, 8, 1)
      >>> bool((rj.inputs.unpatchify(rj.inputs.patchify(images, 2), 2, shape=(4, 8)) == images).all())
      True

    References:
      He et al., Masked Autoencoders Are Scalable Vision Learners, 2021, arXiv 2111.06377.
    """
    name = "inputs.unpatchify"
    patches = checks.floating(name, "patches", patches, ndim=3)
    checks.integer(name, "patch_size", patch_size, low=1)
    length, pixels = patches.shape[1:]
    if pixels < 1 or pixels % patch_size**2:
        checks.fail(name, "patches", f"an array [B, L, {patch_size} * {patch_size} * C]", patches)
    if shape is None:
        side = round(length**0.5)
        if side * side != length:
            checks.fail(name, "shape", f"(H, W) where {length} patches are no square", shape)
        rows = columns = side
    else:
        if not (isinstance(shape, tuple) and len(shape) == 2):
            checks.fail(name, "shape", "(H, W) or None", shape)
        height, width = (checks.integer(name, "shape", n, low=1) for n in shape)
        if height % patch_size or width % patch_size or height * width != length * patch_size**2:
            checks.fail(name, "shape", f"(H, W) of an image of {length} patches of side {patch_size}", shape)
        rows, columns = height // patch_size, width // patch_size
    channels = pixels // patch_size**2
    x = sharding.reshape_rows(patches, (rows, columns, patch_size, patch_size, channels))
    return sharding.reshape_rows(x.transpose(0, 1, 3, 2, 4, 5), (rows * patch_size, columns * patch_size, channels))


def _mask(noise: Array, kept: int) -> PatchMask:
    shuffled = jnp.argsort(noise, axis=1, stable=True).astype(jnp.int32)
    ids_restore = jnp.argsort(shuffled, axis=1).astype(jnp.int32)
    return PatchMask(shuffled[:, :kept], ids_restore >= kept, ids_restore)


def _num_kept(name: str, num_patches: int, mask_ratio: Any) -> int:
    if isinstance(mask_ratio, jax.Array):
        checks.fail(name, "mask_ratio", "a Python number, as it decides how many patches stay, which is a shape", mask_ratio)
    ratio = float(checks.number(name, "mask_ratio", mask_ratio, low=0.0, high=1.0))
    # A whole product may come out a little too small: 10 * (1 - 0.9) is 0.99...
    kept = int(num_patches * (1 - ratio) + 1e-6)
    if kept < 1:
        checks.fail(name, "mask_ratio", f"a number that leaves at least one of {num_patches} patches", mask_ratio)
    return kept


def _gather(tokens: Array, ids: Array) -> Array:
    """``tokens[i, ids[i, k]]``: the batch is a dimension of the gather's own, so that no device asks another."""
    ids = sharding.rows_like(ids, tokens).reshape(ids.shape + (1,) * (tokens.ndim - 2))
    return jnp.take_along_axis(tokens, ids, axis=1, mode="clip")
