"""Inputs: ``f(key, images, labels, *, ...) -> (images, labels)``, and under each a core without randomness."""

from regjax.inputs.cutmix import apply_cutmix, cutmix, cutmix_box, paste_box
from regjax.inputs.mixing import apply_mixup, mixup
from regjax.inputs.occlusion import apply_cutout, cutout

__all__ = ["apply_cutmix", "apply_cutout", "apply_mixup", "cutmix", "cutmix_box", "cutout", "mixup", "paste_box"]
