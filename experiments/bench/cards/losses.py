"""The losses, folder by folder."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.bench.cards import case as c
from regjax import losses

LOGITS = (1024, 1000)
PIXELS = (8, 64, 64, 21)
PAIRS = (256, 128)
EXAMPLES = 50_000


def z(seed: int = 0) -> jax.Array:
    """Logits of a second network, or of a teacher."""
    return c.normal(*LOGITS, seed=seed + 1)


def y() -> jax.Array:
    """The labels of the logits."""
    return c.ids(1024, below=1000, seed=1)


def labelled(call: Callable[..., Any], *args: Any) -> c.Case:
    """``f(logits, labels, ...)``."""
    return c.loss(call, c.normal(*LOGITS), y(), *args)


def taught(call: Callable[..., Any], *args: Any) -> c.Case:
    """``f(logits, teacher's logits, ...)``."""
    return c.loss(call, c.normal(*LOGITS), z(), *args)


def trained(call: Callable[..., Any], networks: int, *args: Any, shape: tuple[int, ...] = LOGITS) -> c.Case:
    """``f(logits of each of several networks or passes, ...)``, with the gradient to all of them."""
    logits = [c.normal(*shape, seed=seed) for seed in range(networks)]
    by = tuple(range(networks))
    labels = c.ids(*shape[:-1], below=shape[-1])
    entropy = optax.softmax_cross_entropy_with_integer_labels
    plain = c.with_gradient(lambda *given: [entropy(one, given[-1]) for one in given[:-1]], by)
    return c.beside(plain, (*logits, labels), "cross-entropy of each", c.with_gradient(call, by), *logits, *args)


def product(call: Callable[..., Any], a: jax.Array, b: jax.Array, *args: Any, wrt: tuple[int, ...] = ()) -> c.Case:
    """``f(a, b, ...)`` of two sets of vectors, beside their inner products."""
    both = (lambda fn: c.with_gradient(fn, wrt)) if wrt else (lambda fn: fn)
    plain = lambda a, b: jnp.einsum("ik,jk->ij", a, b)
    return c.beside(both(plain), (a, b), "the product of both sets", both(call), a, b, *args)


def remembered(call: Callable[..., Any], memory: Any, logits: jax.Array, *args: Any) -> c.Case:
    """``f(logits, memory, ...)`` with a memory that is overwritten."""
    return c.loss(call, logits, memory.init(), *args)._replace(donate=(1,))


SMOOTHING = {
    "label_smoothing": lambda: labelled(losses.label_smoothing),
    "max_suppression": lambda: c.loss(losses.max_suppression, c.normal(*LOGITS)),
    "maxsup": lambda: labelled(losses.maxsup),
    "stablemax": lambda: _softmax(losses.stablemax),
    "log_stablemax": lambda: _softmax(losses.log_stablemax, jax.nn.log_softmax, "a log-softmax"),
    "stablemax_cross_entropy": lambda: labelled(losses.stablemax_cross_entropy),
    "spectral_decoupling": lambda: labelled(losses.spectral_decoupling),
    "binary_spectral_decoupling": lambda: c.beside(
        c.with_gradient(optax.sigmoid_binary_cross_entropy, 0),
        (c.normal(65_536), c.ids(65_536, below=2)),
        "the logistic loss",
        c.with_gradient(losses.binary_spectral_decoupling, 0),
        c.normal(65_536),
        c.ids(65_536, below=2),
    ),
    "confidence_penalty": lambda: labelled(losses.confidence_penalty),
    "focal": lambda: labelled(losses.focal),
    "poly1_cross_entropy": lambda: labelled(losses.poly1_cross_entropy),
    "ps_kd_targets": lambda: c.case(lambda y, p: losses.ps_kd_targets(y, p, 0.4), y(), c.probabilities(*LOGITS)),
    "ps_kd": lambda: remembered(
        lambda z, state, y, i: _ps_kd().apply(state, z, y, i, epoch=5), _ps_kd(), z(), y(), jnp.arange(1024)
    ),
}


def _softmax(call: Callable[..., Any], plain: Callable[..., Any] = jax.nn.softmax, of: str = "a softmax") -> c.Case:
    logits = c.normal(*LOGITS)
    return c.beside(c.with_gradient(plain, 0), (logits,), of, c.with_gradient(call, 0), logits)


def _ps_kd() -> Any:
    return losses.ps_kd(EXAMPLES, 1000, total_epochs=10)


NOISY_LABELS = {
    "generalized_cross_entropy": lambda: labelled(losses.generalized_cross_entropy),
    "symmetric_cross_entropy": lambda: labelled(losses.symmetric_cross_entropy),
    "bootstrapping": lambda: labelled(losses.bootstrapping),
    "elr_targets": lambda: c.beside(
        jax.nn.softmax, (z(),), "a softmax", lambda p, z: losses.elr_targets(p, z), c.probabilities(*LOGITS), z()
    ),
    "elr_penalty": lambda: c.loss(losses.elr_penalty, c.normal(*LOGITS), 0.7 * c.probabilities(*LOGITS, seed=1)),
    "elr": lambda: remembered(
        lambda z, state, y, i: _elr().apply(state, z, y, i), _elr(), c.normal(*LOGITS), y(), jnp.arange(1024)
    ),
    "elr_plus": lambda: remembered(
        lambda z, state, ema, y, i, j: _elr_plus().apply(state, z, ema, y, i, j, 0.7),
        _elr_plus(),
        c.normal(*LOGITS),
        z(),
        c.probabilities(*LOGITS),
        jnp.arange(1024),
        jnp.arange(1024)[::-1],
    ),
    "co_teaching": lambda: trained(lambda a, b, y: losses.co_teaching(a, b, y, forget_rate=0.2), 2, y()),
    "small_loss_weights": lambda: c.case(lambda loss: losses.small_loss_weights(loss, 6000), c.uniform(8192)),
    "fit_two_gaussians": lambda: c.case(losses.fit_two_gaussians, c.uniform(EXAMPLES)),
}


def _elr() -> Any:
    return losses.elr(EXAMPLES, 1000)


def _elr_plus() -> Any:
    return losses.elr_plus(EXAMPLES, 1000)


MARGINS = {
    "softmax_binary_cross_entropy": lambda: labelled(losses.softmax_binary_cross_entropy),
    "logit_norm": lambda: labelled(losses.logit_norm),
    "logit_adjusted": lambda: labelled(losses.logit_adjusted, jnp.arange(1, 1001)),
    "semantic_margin": lambda: labelled(
        lambda z, y, embeddings: losses.semantic_margin(z, y, embeddings, threshold=0.5), c.normal(1000, 512)
    ),
    "truncated_cross_entropy": lambda: trained(losses.truncated_cross_entropy, 2, y()),
    "calibrated_stacking": lambda: c.case(
        lambda z, seen: losses.calibrated_stacking(z, seen, 0.5), c.normal(*LOGITS), jnp.arange(1000) < 800
    ),
    # Predictions modulo the number of classes: 8 heads of 10 classes, or of two.
    "checkered": lambda: c.loss(losses.checkered, c.normal(1024, 8, 10), c.ids(1024, below=10)),
    "binary_checkoid": lambda: c.case(losses.binary_checkoid, c.normal(8192, 8), wrt=0),
    "binary_checkered": lambda: c.case(losses.binary_checkered, c.normal(8192, 8), c.ids(8192, below=2), wrt=0),
    # Gates of 16 sub-networks.
    "class_separation": lambda: c.case(losses.class_separation, c.probabilities(8192, 16), wrt=0),
    "class_balance": lambda: c.case(losses.class_balance, c.probabilities(8192, 16), wrt=0),
    "frechet_scores": lambda: _metric(losses.frechet_scores, wrt=(0,)),
    "frechet_mean_predict": lambda: _metric(losses.frechet_mean_predict),
    "frechet_straight_through": lambda: _metric(losses.frechet_straight_through, wrt=(0,)),
}


def _metric(call: Callable[..., Any], wrt: tuple[int, ...] = ()) -> c.Case:
    probs, distances = c.probabilities(*LOGITS), c.uniform(1000, 1000)
    both = (lambda fn: c.with_gradient(fn, wrt)) if wrt else (lambda fn: fn)
    return c.beside(both(jnp.matmul), (probs, distances), "their product", both(call), probs, distances)


DISTILLATION = {
    # Two networks, or two passes.
    "distillation": lambda: taught(losses.distillation),
    "teacher_cross_entropy": lambda: taught(losses.teacher_cross_entropy),
    "alpha_divergence": lambda: taught(lambda z, t: losses.alpha_divergence(z, t, alpha=0.5)),
    "adaptive_alpha_divergence": lambda: taught(losses.adaptive_alpha_divergence),
    "nkd": lambda: taught(losses.nkd, y()),
    "group_progressive_guidance": lambda: taught(losses.group_progressive_guidance, y()),
    "tes": lambda: taught(losses.tes, y()),
    "class_relation_distillation": lambda: c.loss(
        lambda z, t: losses.class_relation_distillation(z, t, num_known=500), c.normal(*LOGITS), c.normal(1024, 500, seed=1)
    ),
    "uskd": lambda: trained(losses.uskd, 2, y()),
    "symmetric_kl": lambda: trained(losses.symmetric_kl, 2),
    "r_drop": lambda: trained(losses.r_drop, 2, y()),
    "jensen_shannon_consistency": lambda: trained(losses.jensen_shannon_consistency, 3),
    # A teacher's probabilities or features.
    "vote_teachers": lambda: c.case(losses.vote_teachers, c.probabilities(4, *LOGITS)),
    "self_distillation": lambda: labelled(losses.self_distillation, c.probabilities(*LOGITS)),
    "multi_exit_loss": lambda: c.case(lambda loss: losses.multi_exit_loss(loss, (4, 9, 18, 27, 36)), c.uniform(5, 8192), wrt=0),
    "hidden_distillation": lambda: c.case(losses.hidden_distillation, c.normal(1024, 512), c.normal(1024, 512, seed=1), wrt=0),
    "unic_teacher_loss": lambda: c.case(losses.unic_teacher_loss, c.normal(64, 64, 256), c.normal(64, 64, 256, seed=1), wrt=0),
    "teacher_normalizer": lambda: c.case(_normalizer().apply, _normalizer().init(), c.normal(64, 64, 256)),
    "teacher_dropping": lambda: c.case(losses.teacher_dropping, c.key(), c.uniform(4, 8192), wrt=1),
    "apply_teacher_dropping": lambda: c.case(
        losses.apply_teacher_dropping, c.uniform(4, 8192), c.uniform(4, 8192, seed=1), wrt=0
    ),
    "batchnorm_matching": lambda: c.case(
        losses.batchnorm_matching, c.normal(64, 16, 16, 256), c.normal(256), c.uniform(256), wrt=0
    ),
    "ssre": lambda: c.beside(
        c.with_gradient(optax.softmax_cross_entropy_with_integer_labels, 0),
        (z(), y()),
        "cross-entropy",
        c.with_gradient(losses.ssre, (0, 2)),
        z(),
        y(),
        c.normal(1024, 512),
        c.normal(1024, 512, seed=1),
        c.normal(500, 512),
    ),
}


def _normalizer() -> Any:
    return losses.teacher_normalizer(256, momentum=0.1)


SEGMENTATION = {
    "boundary_masks": lambda: c.case(
        lambda y: losses.boundary_masks(y, num_classes=21), c.ids(8, 64, 64, below=21), like="results"
    ),
    "boundary_distillation": lambda: c.loss(
        losses.boundary_distillation, c.normal(*PIXELS), c.normal(*PIXELS, seed=1), c.ids(8, 256, 256, below=21)
    ),
    "channel_wise_distillation": lambda: c.loss(losses.channel_wise_distillation, c.normal(*PIXELS), c.normal(*PIXELS, seed=1)),
    "dist_relation": lambda: c.loss(losses.dist_relation, c.normal(*PIXELS), c.normal(*PIXELS, seed=1)),
    "label_assisted_teacher_loss": lambda: trained(
        losses.label_assisted_teacher_loss, 2, c.ids(8, 64, 64, below=21), shape=PIXELS
    ),
    "adele_multiscale": lambda: c.loss(losses.adele_multiscale, c.normal(3, *PIXELS), c.ids(8, 64, 64, below=21), jnp.ones(3)),
    "adele_correct_labels": lambda: c.case(
        losses.adele_correct_labels, c.ids(8, 64, 64, below=21), c.probabilities(*PIXELS), jnp.arange(21) < 15
    ),
    # A thousand proposals and a hundred boxes for each of 8 images.
    "box_iou": lambda: c.case(losses.box_iou, _boxes(1000), _boxes(100), like="results"),
    "pseudo_positive_mask": lambda: c.case(
        losses.pseudo_positive_mask, _boxes(1000), c.normal(8, 1000), _boxes(100), c.ids(8, 100, below=2) > 0
    ),
    "region_consistency": lambda: c.case(
        losses.region_consistency, c.normal(1024, 512), c.normal(1024, 512, seed=1), c.uniform(1024), wrt=(0, 1)
    ),
}


def _boxes(count: int) -> jax.Array:
    corner = c.uniform(8, count, 2, seed=count)
    return jnp.concatenate([corner, corner + c.uniform(8, count, 2)], -1)


RECONSTRUCTION = {
    "masked_patch_loss": lambda: c.case(
        losses.masked_patch_loss, c.normal(32, 196, 768), c.uniform(32, 224, 224, 3), c.uniform(32, 196) < 0.75, wrt=0
    ),
    "masked_denoising": lambda: c.case(
        losses.masked_denoising, c.normal(256, 32, 32, 3), c.normal(256, 32, 32, 3), c.uniform(256, 32, 32, 1), wrt=0
    ),
    "subject_derived": lambda: c.case(
        losses.subject_derived, *(c.normal(256, 32, 32, 3, seed=i) for i in range(4)), c.uniform(256), wrt=0
    ),
    "embedding_alignment": lambda: c.case(losses.embedding_alignment, c.normal(768), c.normal(16, 768), wrt=0),
    "mask_area": lambda: c.case(losses.mask_area, c.uniform(64, 56, 56, 20), wrt=0),
    "mask_variation": lambda: c.case(losses.mask_variation, c.uniform(64, 56, 56, 20), wrt=0),
    "explanation_mask_loss": lambda: c.case(
        losses.explanation_mask_loss, c.normal(64, 20), c.ids(64, below=20), c.uniform(64, 56, 56, 20), wrt=(0, 2)
    ),
    "learnability_loss": lambda: c.case(
        losses.learnability_loss, jnp.zeros(512), c.normal(1024, 512) / 32, jnp.sign(c.normal(1024)), wrt=0
    ),
    "feature_gradient_scores": lambda: c.case(
        lambda key, x, y: losses.feature_gradient_scores(x, y, key=key), c.key(), c.normal(4000, 512), c.ids(4000, below=2)
    ),
    "moe_gaussian_nll": lambda: c.case(
        losses.moe_gaussian_nll, c.normal(8192, 16), c.normal(8192, 16), c.normal(16), c.normal(8192), wrt=(0, 1, 2)
    ),
}

RETRIEVAL = {
    "info_nce": lambda: product(losses.info_nce, c.normal(*PAIRS), c.normal(*PAIRS, seed=1), wrt=(0, 1)),
    # The nearest of a training set.
    "knn_probabilities": lambda: product(
        lambda q, k, y: losses.knn_probabilities(q, k, y, num_classes=1000),
        c.normal(*PAIRS),
        c.normal(EXAMPLES, 128, seed=1),
        c.ids(EXAMPLES, below=1000),
    ),
    "interpolate_knn": lambda: c.beside(
        jax.nn.softmax, (z(),), "a softmax", losses.interpolate_knn, z(), c.probabilities(*LOGITS)
    ),
    "knn_weighted_cross_entropy": lambda: c.loss(
        losses.knn_weighted_cross_entropy, c.normal(*LOGITS), c.probabilities(*LOGITS), y()
    ),
    "knn_focal_cross_entropy": lambda: c.loss(losses.knn_focal_cross_entropy, c.normal(*LOGITS), c.probabilities(*LOGITS), y()),
    # 16 shots of 100 classes.
    "proker_fit": lambda: product(
        lambda x, same, y, z: losses.proker_fit(x, y, z), _unit(1600), _unit(1600), c.ids(1600, below=100), c.normal(1600, 100)
    ),
    "proker_predict": lambda: product(
        lambda q, k, z, a: losses.proker_predict(q, z, k, a), _unit(256), _unit(1600), c.normal(256, 100), c.normal(1600, 100)
    ),
    "superclass": lambda: remembered(
        lambda z, state, ids: losses.superclass(49_408).apply(state, z, ids),
        losses.superclass(49_408),
        c.normal(256, 49_408),
        c.ids(256, 77, below=49_408),
    ),
    "sum_of_norms_ot": lambda: c.case(
        lambda cost, a, b: losses.sum_of_norms_ot(cost, a, b, reg=0.1),
        c.uniform(48, 64),
        jnp.full(48, 1 / 48),
        jnp.full(64, 1 / 64),
        wrt=0,
    ),
    # A vocabulary of 8192 candidates.
    "sample_candidates": lambda: c.case(lambda key: losses.sample_candidates(key, 8192), c.key(), like="results"),
    "take_candidates": lambda: c.case(
        losses.take_candidates, c.ids(4096, below=8192), c.normal(8192, 128), c.normal(64, 8192), like="results"
    ),
    "vocabulary_dropout": lambda: c.beside(
        c.with_gradient(_score, 2),
        (c.normal(8192, 128), c.uniform(256, 8192), c.normal(*PAIRS)),
        "the loss over all candidates",
        c.with_gradient(losses.vocabulary_dropout(_score), 3),
        c.key(),
        c.normal(8192, 128),
        c.uniform(256, 8192),
        c.normal(*PAIRS),
    ),
    "soft_candidate_cross_entropy": lambda: c.loss(
        losses.soft_candidate_cross_entropy, c.normal(*LOGITS), c.normal(1000, 12, 2), c.normal(1024, 12, 2)
    ),
}


def _unit(count: int) -> jax.Array:
    vectors = c.normal(count, 512, seed=count)
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)


def _score(candidates: jax.Array, targets: jax.Array, features: jax.Array) -> jax.Array:
    return optax.sigmoid_binary_cross_entropy(features @ candidates.T, targets).mean()


CASES = SMOOTHING | NOISY_LABELS | MARGINS | DISTILLATION | SEGMENTATION | RECONSTRUCTION | RETRIEVAL
UNCOUNTED: dict[str, str] = {
    "loki_locus": "walks a tree on the host, in Python",
    "loki_next_class": "compares distances on the host, in NumPy",
    "prune_soft_labels": "draws one number",
}
