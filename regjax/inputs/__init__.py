"""Inputs: ``f(key, images, labels, *, ...) -> (images, labels)``, and under each a core without randomness."""

from regjax.inputs.augmix import apply_augmix, augmix
from regjax.inputs.batch_mix import apply_batch_mix, batch_mix
from regjax.inputs.counterfactual import apply_mask_refill, cam_mask, cam_mask_refill, random_mask_refill
from regjax.inputs.cutmix import apply_cutmix, cutmix, cutmix_box, paste_box
from regjax.inputs.erasing import apply_random_erasing, random_erasing
from regjax.inputs.importance import (
    importance_probabilities,
    importance_weights,
    last_layer_gradient_norm,
    path_probabilities,
    sample_indices,
)
from regjax.inputs.importance_memory import ImportanceState, importance_sampling, importance_update
from regjax.inputs.label_channel import apply_noisy_label_channel, noisy_label_channel
from regjax.inputs.manifold import manifold_mixup, manifold_mixup_model, manifold_mixup_weights
from regjax.inputs.metaaug import adam_student_step, meta_augment_objective
from regjax.inputs.mixing import apply_mixup, mixup
from regjax.inputs.modality import apply_modality_dropout, apply_modality_dropout_set, modality_dropout, modality_dropout_set
from regjax.inputs.noise_mask import noise_mask_image, noise_mask_policy_loss, sample_noise_mask, smooth_policy
from regjax.inputs.occlusion import apply_cutout, cutout
from regjax.inputs.panorama import boundary_rearrange, boundary_restore
from regjax.inputs.patches import (
    PatchMask,
    apply_patch_mask,
    keep_tokens,
    patchify,
    random_patch_mask,
    restore_tokens,
    unpatchify,
)
from regjax.inputs.randaugment import randaugment, randaugment_magnitude, randaugment_op
from regjax.inputs.relevance import attention_relevance, grad_cam
from regjax.inputs.selmix import selmix_coverage_multipliers, selmix_distribution, selmix_gain, selmix_recall_multipliers
from regjax.inputs.selmix_loop import SelMixState, class_balanced_confusion, class_prototypes, selmix_refresh
from regjax.inputs.selmix_sampling import (
    ClassIndex,
    apply_selmix,
    class_index,
    sample_class_examples,
    sample_class_pairs,
    selmix_mix,
)
from regjax.inputs.style import apply_batch_style, batch_style

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
