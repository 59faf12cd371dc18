"""Inputs: ``f(key, images, labels, *, ...) -> (images, labels)``, and under each a core without randomness."""

from regjax.inputs.augmentation.augmix import apply_augmix, augmix
from regjax.inputs.augmentation.metaaug import adam_student_step, meta_augment_objective
from regjax.inputs.augmentation.panorama import boundary_rearrange, boundary_restore
from regjax.inputs.augmentation.randaugment import randaugment, randaugment_magnitude, randaugment_op
from regjax.inputs.hiding.erasing import apply_random_erasing, random_erasing
from regjax.inputs.hiding.label_channel import apply_noisy_label_channel, noisy_label_channel
from regjax.inputs.hiding.modality import (
    apply_modality_dropout,
    apply_modality_dropout_set,
    modality_dropout,
    modality_dropout_set,
)
from regjax.inputs.hiding.noise_mask import noise_mask_image, noise_mask_policy_loss, sample_noise_mask, smooth_policy
from regjax.inputs.hiding.occlusion import apply_cutout, cutout
from regjax.inputs.hiding.patches import (
    PatchMask,
    apply_patch_mask,
    keep_tokens,
    patchify,
    random_patch_mask,
    restore_tokens,
    unpatchify,
)
from regjax.inputs.mixing.batch_mix import apply_batch_mix, batch_mix
from regjax.inputs.mixing.counterfactual import apply_mask_refill, cam_mask, cam_mask_refill, random_mask_refill
from regjax.inputs.mixing.cutmix import apply_cutmix, cutmix, cutmix_box, paste_box
from regjax.inputs.mixing.manifold import manifold_mixup, manifold_mixup_model, manifold_mixup_weights
from regjax.inputs.mixing.mixing import apply_mixup, mixup
from regjax.inputs.mixing.relevance import attention_relevance, grad_cam
from regjax.inputs.mixing.style import apply_batch_style, batch_style
from regjax.inputs.selection.importance import (
    importance_probabilities,
    importance_weights,
    last_layer_gradient_norm,
    path_probabilities,
    sample_indices,
)
from regjax.inputs.selection.importance_memory import ImportanceState, importance_sampling, importance_update
from regjax.inputs.selection.selmix import (
    selmix_coverage_multipliers,
    selmix_distribution,
    selmix_gain,
    selmix_recall_multipliers,
)
from regjax.inputs.selection.selmix_loop import SelMixState, class_balanced_confusion, class_prototypes, selmix_refresh
from regjax.inputs.selection.selmix_sampling import (
    ClassIndex,
    apply_selmix,
    class_index,
    sample_class_examples,
    sample_class_pairs,
    selmix_mix,
)

__all__ = [
    "ClassIndex",
    "ImportanceState",
    "PatchMask",
    "SelMixState",
    "adam_student_step",
    "apply_augmix",
    "apply_batch_mix",
    "apply_batch_style",
    "apply_cutmix",
    "apply_cutout",
    "apply_mask_refill",
    "apply_mixup",
    "apply_modality_dropout",
    "apply_modality_dropout_set",
    "apply_noisy_label_channel",
    "apply_patch_mask",
    "apply_random_erasing",
    "apply_selmix",
    "attention_relevance",
    "augmix",
    "batch_mix",
    "batch_style",
    "boundary_rearrange",
    "boundary_restore",
    "cam_mask",
    "cam_mask_refill",
    "class_balanced_confusion",
    "class_index",
    "class_prototypes",
    "cutmix",
    "cutmix_box",
    "cutout",
    "grad_cam",
    "importance_probabilities",
    "importance_sampling",
    "importance_update",
    "importance_weights",
    "keep_tokens",
    "last_layer_gradient_norm",
    "manifold_mixup",
    "manifold_mixup_model",
    "manifold_mixup_weights",
    "meta_augment_objective",
    "mixup",
    "modality_dropout",
    "modality_dropout_set",
    "noise_mask_image",
    "noise_mask_policy_loss",
    "noisy_label_channel",
    "paste_box",
    "patchify",
    "path_probabilities",
    "randaugment",
    "randaugment_magnitude",
    "randaugment_op",
    "random_erasing",
    "random_mask_refill",
    "random_patch_mask",
    "restore_tokens",
    "sample_class_examples",
    "sample_class_pairs",
    "sample_indices",
    "sample_noise_mask",
    "selmix_coverage_multipliers",
    "selmix_distribution",
    "selmix_gain",
    "selmix_mix",
    "selmix_recall_multipliers",
    "selmix_refresh",
    "smooth_policy",
    "unpatchify",
]
