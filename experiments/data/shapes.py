"""Generated segmentation: coloured discs, squares and triangles on textured ground, with masks and wrong annotations.

Everything is made in code from a seed: there is nothing to download, and the clean mask of every image is known.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from experiments.data import errors

CLASSES = ("background", "disc", "square", "triangle")
IGNORE = 255

_CELLS = 2  # objects stand in a grid of 2 x 2 cells, so that they do not cover each other
_COLOURS = np.array([(0.9, 0.3, 0.2), (0.2, 0.8, 0.4), (0.3, 0.4, 0.9)])


class Shapes(NamedTuple):
    """Images, their masks, and the objects they are made of.

    Attributes:
      images: float32 ``[N, S, S, 3]``, about in [-1, 1].
      masks: int32 ``[N, S, S]``, the true classes: 0 background, 1 disc, 2 square, 3 triangle.
      objects: boolean ``[N, 4, S, S]``, the pixels of each object; empty where there is none.
      classes: int32 ``[N, 4]``, the class of each object, 0 where there is none.
    """

    images: np.ndarray
    masks: np.ndarray
    objects: np.ndarray
    classes: np.ndarray


@dataclasses.dataclass(frozen=True)
class Corruption:
    """How annotations go wrong: what happens to an object, each with its probability; otherwise it stays as it is.

    Attributes:
      dilated: the probability that the annotation is too large.
      eroded: that it is too small.
      shifted: that it is displaced, in a random direction.
      missing: that the object is not annotated.
      pixels: the largest error of the first three, in pixels; each is uniform between 1 and this.
      band: a border of this many pixels around each annotated object is left unlabelled (``IGNORE``); 0 for none.
    """

    dilated: float = 0.4
    eroded: float = 0.0
    shifted: float = 0.1
    missing: float = 0.1
    pixels: float = 2.5
    band: int = 0

    def __post_init__(self) -> None:
        """Refuses what is no probability."""
        shares = [getattr(self, field) for field in ("dilated", "eroded", "shifted", "missing")]
        for field, share in zip(("dilated", "eroded", "shifted", "missing"), shares, strict=True):
            errors.number("Corruption", field, share, 0, 1)
        if sum(shares) > 1 + 1e-9:
            errors.refuse("Corruption", "missing", "such that the four probabilities sum to at most 1", self.missing)
        errors.number("Corruption", "pixels", self.pixels, 1)
        errors.number("Corruption", "band", self.band, 0, integer=True)


def make_shapes(num: int, *, side: int = 32, noise: float = 0.25, seed: int = 0) -> Shapes:
    """Draws images with one to four objects of random class, place, size, turn and shade.

    Args:
      num: N, at least 1.
      side: S, even and at least 16.
      noise: the standard deviation of the pixels' noise; the colours of classes differ by about 0.5 in each channel.
      seed: of everything.

    Returns:
      The images with all that is known about them.
    """
    owner = "make_shapes"
    errors.number(owner, "num", num, 1, integer=True)
    errors.number(owner, "side", side, 16, integer=True)
    errors.number(owner, "noise", noise, 0)
    errors.number(owner, "seed", seed, 0, integer=True)
    if side % 2:
        errors.refuse(owner, "side", "even", side)
    rng = np.random.default_rng([seed, 0])
    slots = _CELLS**2
    there = rng.random((num, slots)) < 0.7
    there[np.arange(num), rng.integers(slots, size=num)] = True
    classes = np.where(there, rng.integers(1, len(CLASSES), (num, slots)), 0).astype(np.int32)

    cell = side / _CELLS
    corner = np.stack(np.divmod(np.arange(slots), _CELLS), axis=-1) * cell
    centre = corner + cell / 2 + rng.uniform(-0.1, 0.1, (num, slots, 2)) * cell
    radius = rng.uniform(0.24, 0.38, (num, slots)) * cell
    turn = rng.uniform(0, 2 * np.pi, (num, slots))
    inside = _draw(side, classes, centre, radius, turn)

    # A ground of slow colours, objects of a shade of their class's colour, fine noise over both.
    slow = ndimage.zoom(rng.normal(size=(num, 4, 4, 3)), (1, side / 4, side / 4, 1), order=1)
    images = 0.2 * slow
    shades = _COLOURS[classes - 1] + 0.08 * rng.normal(size=(num, slots, 3))
    for slot in range(slots):
        images = np.where(inside[:, slot, :, :, None], 0.5 * images + shades[:, slot, None, None], images)
    images = images + noise * rng.normal(size=images.shape)
    masks = np.max(np.where(inside, classes[:, :, None, None], 0), axis=1).astype(np.int32)
    return Shapes(images.astype(np.float32), masks, inside, classes)


def _draw(side: int, classes: np.ndarray, centre: np.ndarray, radius: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """The pixels of each object, boolean ``[N, M, S, S]``."""
    grid = np.stack(np.meshgrid(np.arange(side) + 0.5, np.arange(side) + 0.5, indexing="ij"), axis=-1)
    offset = grid - centre[:, :, None, None]
    distance = np.linalg.norm(offset, axis=-1)
    angle = np.arctan2(offset[..., 0], offset[..., 1]) - turn[:, :, None, None]
    kind = classes[:, :, None, None]
    # A regular polygon of n sides: the distance along the nearest side's normal is at most the inner radius. All three kinds
    # have about the area of the disc.
    inside = distance <= radius[:, :, None, None]
    for sides, scale, label in ((4, 0.886, 2), (3, 0.778, 3)):
        step = 2 * np.pi / sides
        nearest = angle - step * np.round(angle / step)
        inside = np.where(kind == label, distance * np.cos(nearest) <= scale * radius[:, :, None, None], inside)
    return inside & (kind > 0)


def corrupt_annotations(shapes: Shapes, corruption: Corruption, *, seed: int = 0) -> np.ndarray:
    """Annotations with errors of their own for each object.

    Args:
      shapes: what is annotated.
      corruption: how often and how much it goes wrong.
      seed: of the errors alone.

    Returns:
      int32 ``[N, S, S]``: classes, and ``IGNORE`` in the unlabelled band.
    """
    errors.number("corrupt_annotations", "seed", seed, 0, integer=True)
    rng = np.random.default_rng([seed, 1])
    num, slots, side, _ = shapes.objects.shape
    labels = np.zeros((num, side, side), np.int32)
    fates = np.searchsorted(
        np.cumsum([corruption.dilated, corruption.eroded, corruption.shifted, corruption.missing]),
        rng.random((num, slots)),
        side="right",
    )
    amounts = rng.uniform(1, corruption.pixels, (num, slots))
    angles = rng.uniform(0, 2 * np.pi, (num, slots))
    for i, slot in zip(*np.nonzero(shapes.classes), strict=True):
        fate, amount, mask = fates[i, slot], amounts[i, slot], shapes.objects[i, slot]
        if fate == 0:
            mask = ndimage.distance_transform_edt(~mask) <= amount
        elif fate == 1:
            mask = ndimage.distance_transform_edt(mask) > amount
        elif fate == 2:
            step = np.rint(amount * np.array([np.sin(angles[i, slot]), np.cos(angles[i, slot])])).astype(int)
            mask = ndimage.shift(mask.astype(np.uint8), step, order=0).astype(bool)
        elif fate == 3:
            continue
        if corruption.band:
            near = ndimage.distance_transform_edt(~mask) <= corruption.band
            labels[i][near & (labels[i] == 0)] = IGNORE
        labels[i][mask] = shapes.classes[i, slot]
    return labels


def boundary_band(masks: np.ndarray, width: int = 2) -> np.ndarray:
    """The trimap: pixels within ``width`` of a boundary between classes.

    Args:
      masks: integer ``[N, S, S]``.
      width: in pixels, at least 1, on either side.

    Returns:
      boolean ``[N, S, S]``.
    """
    errors.number("boundary_band", "width", width, 1, integer=True)
    size = (1, 2 * width + 1, 2 * width + 1)
    return ndimage.maximum_filter(masks, size, mode="nearest") != ndimage.minimum_filter(masks, size, mode="nearest")
