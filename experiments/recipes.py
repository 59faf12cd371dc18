"""Named recipes: the baseline, one for each technique, and two strong compositions.

Each is a function of the `Setting` whose keyword arguments are its hyperparameters; the defaults were chosen on validation
splits by ``python -m experiments.tune``, which tries the grids of `GRIDS`.
"""

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

import regjax as rj


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a recipe may depend on.

    Attributes:
      num_examples: training examples N.
      num_classes: classes K.
      feature_dim: penultimate features D.
      steps_per_epoch: optimiser steps in an epoch.
      epochs: epochs in the run, the last perhaps cut short.
      total_steps: optimiser steps in the run.
      learning_rate: the learning rate of the plain method.
    """

    num_examples: int
    num_classes: int
    feature_dim: int
    steps_per_epoch: int
    epochs: int
    total_steps: int
    learning_rate: float = 0.02


RecipeFn = Callable[..., rj.Recipe]
RECIPES: dict[str, RecipeFn] = {}


def named(fn: RecipeFn) -> RecipeFn:
    """Enters a recipe under its function's name."""
    RECIPES[fn.__name__] = fn
    return fn


def sgd(s: Setting, learning_rate: Any = None) -> optax.GradientTransformation:
    """The optimiser of the plain method: SGD with momentum 0.9 at a constant rate."""
    return optax.sgd(s.learning_rate if learning_rate is None else learning_rate, momentum=0.9)


def early(s: Setting, rate: float, until: float) -> Callable[[Any], Any]:
    """A rate that fades to nothing over the first part of the run."""
    return rj.schedules.early_dropout(rate, cutoff_steps=max(int(until * s.total_steps), 1))


def late(s: Setting, rate: float, start: float) -> Callable[[Any], Any]:
    """A rate that starts after the first part of the run."""
    return rj.schedules.late_dropout(rate, cutoff_steps=int(start * s.total_steps))


def on_unit_range(transform: Callable[..., Any]) -> Callable[..., Any]:
    """A transform of pixels in [0, 1] for normalised images, which the least and greatest value of their batch bring there."""

    def fn(key: Any, images: Any, labels: Any) -> tuple[Any, Any]:
        low = jnp.min(images)
        scale = jnp.maximum(jnp.max(images) - low, 1e-6)
        moved, labels = transform(key, (images - low) / scale, labels)
        return moved * scale + low, labels

    return fn


@named
def baseline(s: Setting) -> rj.Recipe:
    """Cross-entropy and SGD with momentum."""
    return rj.Recipe(optimizer=sgd(s))


# Inputs.


@named
def mixup(s: Setting, alpha: float = 8.0) -> rj.Recipe:
    """Convex combinations of two images and their labels."""
    return rj.Recipe(inputs=(partial(rj.inputs.mixup, alpha=alpha),), optimizer=sgd(s))


@named
def cutmix(s: Setting, alpha: float = 1.0, prob: float = 1.0) -> rj.Recipe:
    """A box of another image pasted in, labels mixed by area."""
    return rj.Recipe(inputs=(partial(rj.inputs.cutmix, alpha=alpha, prob=prob),), optimizer=sgd(s))


@named
def cutout(s: Setting, length: int = 6) -> rj.Recipe:
    """A square hole in each image."""
    return rj.Recipe(inputs=(partial(rj.inputs.cutout, length=length),), optimizer=sgd(s))


@named
def batch_mix(s: Setting, mixup_alpha: float = 4.0, cutmix_alpha: float = 4.0) -> rj.Recipe:
    """Mixup and CutMix taken in turn, each pair of images its own."""
    mix = partial(rj.inputs.batch_mix, mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha, mode="elem", label_smoothing=0.0)
    return rj.Recipe(inputs=(mix,), optimizer=sgd(s))


@named
def manifold_mixup(s: Setting, alpha: float = 16.0) -> rj.Recipe:
    """Mixup of the image or of what enters the first block, one of them drawn in each step."""
    draw = partial(rj.inputs.manifold_mixup_weights, alpha=alpha, layers=(0, 1))
    return rj.Recipe(layers=rj.Hooks(manifold=draw), optimizer=sgd(s))


@named
def random_erasing(s: Setting, prob: float = 1.0, max_area: float = 0.6) -> rj.Recipe:
    """A rectangle of noise in each image."""
    erase = partial(rj.inputs.random_erasing, prob=prob, max_area=max_area, mode="pixel")
    return rj.Recipe(inputs=(erase,), optimizer=sgd(s))


@named
def randaugment(s: Setting, magnitude: float = 3.0) -> rj.Recipe:
    """Two random operations on each image."""
    augment = on_unit_range(partial(rj.inputs.randaugment, magnitude=magnitude, fill=0.0))
    return rj.Recipe(inputs=(augment,), optimizer=sgd(s))


@named
def augmix(s: Setting, severity: float = 3.0, weight: float = 12.0) -> rj.Recipe:
    """Each image three times, twice as a mix of chains of operations, and predictions that agree."""
    mix = on_unit_range(partial(rj.inputs.augmix, severity=severity))

    def views(key: Any, images: Any, labels: Any) -> tuple[Any, Any]:
        first, second = jax.random.split(key)
        augmented = [mix(k, images, labels)[0] for k in (first, second)]
        return jnp.concatenate([images, *augmented]), jnp.concatenate([labels] * 3)

    def loss(logits: Any, labels: Any) -> Any:
        clean, *augmented = jnp.split(logits, 3)
        consistency = rj.losses.jensen_shannon_consistency(clean, *augmented, weight=weight)
        return rj.losses.label_smoothing(clean, labels[: len(clean)], alpha=0.0) + consistency

    return rj.Recipe(inputs=(views,), loss=loss, optimizer=sgd(s))


@named
def batch_style(s: Setting, max_ratio: float = 0.05) -> rj.Recipe:
    """All images of a batch get the low-frequency amplitudes of one of them."""
    return rj.Recipe(inputs=(partial(rj.inputs.batch_style, max_ratio=max_ratio),), optimizer=sgd(s))


@named
def noise_mask(s: Setting, concentration: float = 0.1) -> rj.Recipe:
    """Each image times a smooth random mask."""

    def mask(key: Any, images: Any, labels: Any) -> tuple[Any, Any]:
        logs = jnp.full((len(images), 16), math.log(concentration))
        drawn, _ = rj.inputs.sample_noise_mask(key, logs, logs, image_size=images.shape[1:3], grid=4, kernel_size=3, sigma=1.0)
        return images * drawn, labels

    return rj.Recipe(inputs=(mask,), optimizer=sgd(s))


@named
def patch_masking(s: Setting, mask_ratio: float = 0.75) -> rj.Recipe:
    """A share of the 2x2 patches of each image hidden, as in a masked autoencoder."""

    def mask(key: Any, images: Any, labels: Any) -> tuple[Any, Any]:
        patches = rj.inputs.patchify(images, 2)
        hidden = rj.inputs.random_patch_mask(key, *patches.shape[:2], mask_ratio=mask_ratio).mask
        return rj.inputs.unpatchify(jnp.where(hidden[..., None], 0, patches), 2, shape=images.shape[1:3]), labels

    return rj.Recipe(inputs=(mask,), optimizer=sgd(s))


# Layers and their schedules.


@named
def dropout(s: Setting, rate: float = 0.6) -> rj.Recipe:
    """Dropout after every hidden layer."""
    return rj.Recipe(layers=rj.Hooks(dropout=rate), optimizer=sgd(s))


@named
def early_dropout(s: Setting, rate: float = 0.6, until: float = 1.0) -> rj.Recipe:
    """Dropout that fades to nothing over the first part of training."""
    return rj.Recipe(layers=rj.Hooks(dropout=early(s, rate, until)), optimizer=sgd(s))


@named
def late_dropout(s: Setting, rate: float = 0.6, start: float = 0.05) -> rj.Recipe:
    """Dropout that starts after the first part of training."""
    return rj.Recipe(layers=rj.Hooks(dropout=late(s, rate, start)), optimizer=sgd(s))


@named
def multi_sample_dropout(s: Setting, num_samples: int = 8, rate: float = 0.95) -> rj.Recipe:
    """Several dropout masks on the features in every step."""
    head = partial(rj.layers.multi_sample_dropout, num_samples=num_samples, rate=rate)
    return rj.Recipe(layers=rj.Hooks(head=head), optimizer=sgd(s))


@named
def drop_path(s: Setting, rate: float = 0.8) -> rj.Recipe:
    """Stochastic depth on the residual branches."""
    return rj.Recipe(layers=rj.Hooks(drop_path=rate), optimizer=sgd(s))


@named
def early_drop_path(s: Setting, rate: float = 0.8, until: float = 0.5) -> rj.Recipe:
    """Stochastic depth that fades to nothing over the first part of training."""
    return rj.Recipe(layers=rj.Hooks(drop_path=early(s, rate, until)), optimizer=sgd(s))


@named
def late_drop_path(s: Setting, rate: float = 0.8, start: float = 0.05) -> rj.Recipe:
    """Stochastic depth that starts after the first part of training."""
    return rj.Recipe(layers=rj.Hooks(drop_path=late(s, rate, start)), optimizer=sgd(s))


@named
def scheduled_drop_path(s: Setting, rate: float = 0.9) -> rj.Recipe:
    """Stochastic depth whose rate grows from nothing over training."""
    schedule = partial(
        rj.schedules.scheduled_drop_path_rate, keep_prob=1 - rate, layer=0, num_layers=1, total_steps=s.total_steps
    )
    return rj.Recipe(layers=rj.Hooks(drop_path=schedule), optimizer=sgd(s))


@named
def drop_block(s: Setting, rate: float = 0.7, block_size: int = 2) -> rj.Recipe:
    """Dropout of square blocks of the image."""
    drop = lambda key, images, labels: (rj.layers.drop_block(key, images, rate=rate, block_size=block_size), labels)
    return rj.Recipe(inputs=(drop,), optimizer=sgd(s))


@named
def drop_connect(s: Setting, rate: float = 0.8) -> rj.Recipe:
    """Dropout of the weights of the last layer, each example its own."""

    def head(key: Any, layer: Any, features: Any) -> Any:
        return rj.layers.drop_connect(key, features, layer.kernel[...], layer.bias[...], rate=rate, per_example=True)

    return rj.Recipe(layers=rj.Hooks(head=head), optimizer=sgd(s))


@named
def gaussian_noise(s: Setting, std: float = 3.0) -> rj.Recipe:
    """Normal noise added to every hidden layer."""
    return rj.Recipe(layers=rj.Hooks(noise=partial(rj.layers.gaussian_noise, std=std)), optimizer=sgd(s))


@named
def gaussian_dropout(s: Setting, std: float = 1.0) -> rj.Recipe:
    """Every hidden unit times normal noise of mean 1."""
    noise = partial(rj.layers.gaussian_noise, std=std, kind="multiplicative")
    return rj.Recipe(layers=rj.Hooks(noise=noise), optimizer=sgd(s))


@named
def nested_dropout(s: Setting, scale: float = 1.0) -> rj.Recipe:
    """Only the first k features are kept, with k drawn in each step; ``scale`` is relative to the number of features."""
    probs = rj.layers.nested_dropout_probs(s.feature_dim, scale=scale * s.feature_dim)
    return rj.Recipe(layers=rj.Hooks(features=partial(rj.layers.nested_dropout, probs=probs)), optimizer=sgd(s))


# Features.


@named
def neural_collapse_longtail(s: Setting, lambda_w: float = 0.01, lambda_b: float = 0.1) -> rj.Recipe:
    """Features drawn to learned class centres that are pushed apart."""
    technique = rj.features.neural_collapse(s.num_classes, s.feature_dim, lambda_w=lambda_w, lambda_b=lambda_b)
    return rj.Recipe(features=((1.0, technique),), optimizer=sgd(s))


# Losses.


@named
def label_smoothing(s: Setting, alpha: float = 0.6) -> rj.Recipe:
    """Labels mixed with the uniform distribution."""
    return rj.Recipe(loss=partial(rj.losses.label_smoothing, alpha=alpha), optimizer=sgd(s))


@named
def maxsup(s: Setting, weight: float = 0.7) -> rj.Recipe:
    """A penalty on the top logit."""
    return rj.Recipe(loss=partial(rj.losses.maxsup, weight=weight), optimizer=sgd(s))


@named
def stablemax(s: Setting) -> rj.Recipe:
    """StableMax in place of softmax."""
    return rj.Recipe(loss=rj.losses.stablemax_cross_entropy, optimizer=sgd(s))


@named
def spectral_decoupling(s: Setting, weight: float = 0.1) -> rj.Recipe:
    """An L2 penalty on the logits."""
    return rj.Recipe(loss=partial(rj.losses.spectral_decoupling, weight=weight), optimizer=sgd(s))


@named
def elr(s: Setting, weight: float = 7.0, beta: float = 0.7) -> rj.Recipe:
    """Early-learning regularisation: a memory of each example's predictions."""
    return rj.Recipe(loss=rj.losses.elr(s.num_examples, s.num_classes, beta=beta, weight=weight), optimizer=sgd(s))


@named
def ps_kd(s: Setting, alpha_final: float = 0.95) -> rj.Recipe:
    """The previous epoch's predictions as part of the target."""
    loss = rj.losses.ps_kd(s.num_examples, s.num_classes, alpha_final=alpha_final, total_epochs=s.epochs)
    return rj.Recipe(loss=loss, optimizer=sgd(s))


# Objectives.


@named
def sam(s: Setting, rho: float = 0.6) -> rj.Recipe:
    """The gradient at the worst nearby weights."""
    return rj.Recipe(objectives=(partial(rj.objectives.sam, rho=rho),), optimizer=sgd(s))


@named
def asam(s: Setting, rho: float = 8.0) -> rj.Recipe:
    """SAM with a neighbourhood that scales with the weights."""
    return rj.Recipe(objectives=(partial(rj.objectives.sam, rho=rho, adaptive=True),), optimizer=sgd(s))


@named
def amp(s: Setting, epsilon: float = 1.0) -> rj.Recipe:
    """Adversarial model perturbation in a ball around each leaf."""
    return rj.Recipe(objectives=(partial(rj.objectives.amp, epsilon=epsilon),), optimizer=sgd(s))


@named
def gradient_penalty(s: Setting, coefficient: float = 0.03) -> rj.Recipe:
    """A penalty on the squared norm of the gradient, by forward differences."""
    return rj.Recipe(objectives=(partial(rj.objectives.gradient_penalty, coefficient=coefficient),), optimizer=sgd(s))


# Gradients.


@named
def orthogonal_gradient(s: Setting) -> rj.Recipe:
    """The part of the gradient along the weights is removed."""
    return rj.Recipe(gradients=(rj.gradients.orthogonal_gradient(),), optimizer=sgd(s))


@named
def l2_gradient(s: Setting, strength: float = 0.1) -> rj.Recipe:
    """The L2 penalty as a gradient transformation: the same method as ``l2``."""
    return rj.Recipe(gradients=(rj.gradients.add_penalty(rj.weights.l2, strength),), optimizer=sgd(s))


@named
def decoupled_weight_decay(s: Setting, weight_decay: float = 0.01) -> rj.Recipe:
    """Weights shrink by a fixed factor in each step, whatever the learning rate."""
    return rj.Recipe(weights=(rj.gradients.decoupled_weight_decay(weight_decay),), optimizer=sgd(s))


@named
def proximal_l1(s: Setting, strength: float = 0.1) -> rj.Recipe:
    """Soft thresholding after every step: exact zeros."""
    prox = rj.gradients.proximal_step(rj.weights.prox_l1, strength, learning_rate=s.learning_rate)
    return rj.Recipe(weights=(prox,), optimizer=sgd(s))


@named
def proximal_group_lasso(s: Setting, strength: float = 0.4) -> rj.Recipe:
    """Whole units shrink to exactly zero."""
    prox = rj.gradients.proximal_step(rj.weights.prox_group_lasso, strength, learning_rate=s.learning_rate)
    return rj.Recipe(weights=(prox,), optimizer=sgd(s))


# Weights.


@named
def l1(s: Setting, strength: float = 0.01) -> rj.Recipe:
    """The sum of absolute weights."""
    return rj.Recipe(penalties=((strength, rj.weights.l1),), optimizer=sgd(s))


@named
def l2(s: Setting, strength: float = 0.1) -> rj.Recipe:
    """Half the sum of squared weights."""
    return rj.Recipe(penalties=((strength, rj.weights.l2),), optimizer=sgd(s))


@named
def group_lasso(s: Setting, strength: float = 0.03) -> rj.Recipe:
    """The sum of the norms of the units' weights."""
    return rj.Recipe(penalties=((strength, rj.weights.group_lasso),), optimizer=sgd(s))


@named
def spectral(s: Setting, strength: float = 0.06) -> rj.Recipe:
    """Largest singular values drawn to 1, by one power step carried along."""
    return rj.Recipe(penalties=((strength, rj.weights.stateful_spectral_penalty()),), optimizer=sgd(s))


@named
def wasserstein_to_init(s: Setting, strength: float = 0.6) -> rj.Recipe:
    """The distribution of each leaf's weights drawn to that of its initial values."""
    penalty = rj.Stateful(
        lambda key, params: rj.weights.sorted_init(params),
        lambda initial, params: (rj.weights.wasserstein_to_init(params, initial), initial),
    )
    return rj.Recipe(penalties=((strength, penalty),), optimizer=sgd(s))


# Schedules.


@named
def one_cycle(s: Setting, peak: float = 2.0) -> rj.Recipe:
    """The learning rate rises to ``peak`` times the plain one and falls to nothing.

    Peaks below 1 do better under label noise, as any lower rate does that stops before the noise is learnt; they are left out
    because the learning rate is the same for all recipes.
    """
    schedule = rj.schedules.one_cycle(total_steps=s.total_steps, peak_value=peak * s.learning_rate)
    return rj.Recipe(optimizer=sgd(s, schedule))


# Strong compositions.


@named
def robust(s: Setting, rate: float = 0.3, rho: float = 0.3, strength: float = 0.03) -> rj.Recipe:
    """Dropout, MaxSup, L2, SAM and one cycle together."""
    schedule = rj.schedules.one_cycle(total_steps=s.total_steps, peak_value=s.learning_rate)
    return rj.Recipe(
        layers=rj.Hooks(dropout=rate),
        loss=partial(rj.losses.maxsup, weight=0.1),
        penalties=((strength, rj.weights.l2),),
        objectives=(partial(rj.objectives.sam, rho=rho),),
        optimizer=sgd(s, schedule),
    )


@named
def noise_tolerant(s: Setting, rate: float = 0.5, alpha: float = 1.0, strength: float = 0.1) -> rj.Recipe:
    """Cutout, mixup, multi-sample dropout, label smoothing and a proximal group lasso together."""
    prox = rj.gradients.proximal_step(rj.weights.prox_group_lasso, strength, learning_rate=s.learning_rate)
    return rj.Recipe(
        inputs=(partial(rj.inputs.cutout, length=2), partial(rj.inputs.mixup, alpha=alpha)),
        layers=rj.Hooks(head=partial(rj.layers.multi_sample_dropout, num_samples=4, rate=rate)),
        loss=partial(rj.losses.label_smoothing, alpha=0.1),
        optimizer=sgd(s),
        weights=(prox,),
    )


GRIDS: Mapping[str, Mapping[str, Sequence[Any]]] = {
    "baseline": {},
    "mixup": {"alpha": (0.5, 1.0, 2.0, 4.0, 8.0)},
    "cutmix": {"alpha": (1.0,), "prob": (0.5, 0.75, 1.0)},
    "cutout": {"length": (2, 4, 6)},
    "batch_mix": {"mixup_alpha": (1.0, 4.0), "cutmix_alpha": (1.0, 4.0)},
    "manifold_mixup": {"alpha": (1.0, 2.0, 4.0, 8.0, 16.0)},
    "random_erasing": {"prob": (0.5, 1.0), "max_area": (0.33, 0.6)},
    "randaugment": {"magnitude": (1.0, 2.0, 3.0, 5.0)},
    "augmix": {"severity": (1.0, 3.0), "weight": (1.0, 3.0, 12.0)},
    "batch_style": {"max_ratio": (0.05, 0.1, 0.3, 1.0)},
    "noise_mask": {"concentration": (0.1, 0.3, 1.0, 3.0)},
    "patch_masking": {"mask_ratio": (0.25, 0.5, 0.75, 0.85)},
    "dropout": {"rate": (0.3, 0.5, 0.6, 0.7)},
    "early_dropout": {"rate": (0.4, 0.6), "until": (0.5, 1.0)},
    "late_dropout": {"rate": (0.5, 0.6, 0.7), "start": (0.05, 0.2)},
    "multi_sample_dropout": {"rate": (0.3, 0.5, 0.7, 0.9, 0.95)},
    "drop_path": {"rate": (0.2, 0.5, 0.8, 0.9)},
    "early_drop_path": {"rate": (0.5, 0.8), "until": (0.5, 1.0)},
    "late_drop_path": {"rate": (0.5, 0.8), "start": (0.05, 0.2)},
    "scheduled_drop_path": {"rate": (0.5, 0.8, 0.9)},
    "drop_block": {"rate": (0.1, 0.3, 0.5, 0.7), "block_size": (2, 3)},
    "drop_connect": {"rate": (0.5, 0.8, 0.95)},
    "gaussian_noise": {"std": (0.1, 0.3, 1.0, 3.0, 10.0)},
    "gaussian_dropout": {"std": (0.5, 1.0, 1.5, 2.0)},
    "nested_dropout": {"scale": (0.1, 0.3, 1.0, 3.0)},
    "neural_collapse_longtail": {"lambda_w": (0.001, 0.003, 0.01, 0.03)},
    "label_smoothing": {"alpha": (0.1, 0.3, 0.6, 0.9)},
    "maxsup": {"weight": (0.1, 0.3, 0.7, 1.5)},
    "spectral_decoupling": {"weight": (0.01, 0.1, 0.3, 1.0)},
    "elr": {"weight": (1.0, 3.0, 7.0, 12.0), "beta": (0.7, 0.9)},
    "ps_kd": {"alpha_final": (0.5, 0.8, 0.95)},
    "sam": {"rho": (0.1, 0.3, 0.6, 1.2)},
    "asam": {"rho": (1.0, 2.0, 4.0, 8.0, 16.0)},
    "amp": {"epsilon": (0.03, 0.1, 0.3, 0.6, 1.0)},
    "gradient_penalty": {"coefficient": (0.01, 0.03, 0.1, 0.3)},
    "decoupled_weight_decay": {"weight_decay": (1e-3, 3e-3, 1e-2, 3e-2)},
    "proximal_l1": {"strength": (1e-2, 3e-2, 6e-2, 1e-1, 2e-1)},
    "proximal_group_lasso": {"strength": (3e-2, 1e-1, 2e-1, 4e-1, 8e-1)},
    "l1": {"strength": (1e-3, 3e-3, 6e-3, 1e-2, 2e-2)},
    "l2": {"strength": (1e-2, 3e-2, 6e-2, 1e-1, 2e-1)},
    "group_lasso": {"strength": (1e-2, 3e-2, 6e-2, 1e-1)},
    "spectral": {"strength": (1e-3, 3e-3, 1e-2, 3e-2, 6e-2)},
    "wasserstein_to_init": {"strength": (3e-2, 1e-1, 3e-1, 6e-1)},
    "one_cycle": {"peak": (1.0, 2.0, 4.0)},
    "robust": {"rate": (0.3, 0.5), "rho": (0.1, 0.3), "strength": (3e-2, 1e-1)},
    "noise_tolerant": {"rate": (0.3, 0.5), "alpha": (0.5, 1.0), "strength": (1e-1, 2e-1)},
}
"""The values that `experiments.tune` tries for each recipe."""


def make_recipe(name: str, setting: Setting, **hyperparameters: Any) -> rj.Recipe:
    """The recipe of a name; a ValueError names the nearest ones to an unknown name."""
    check_names([name])
    return RECIPES[name](setting, **hyperparameters)


def check_names(names: Sequence[str]) -> None:
    """Refuses unknown recipes and names the nearest known ones."""
    for name in names:
        if name not in RECIPES:
            near = difflib.get_close_matches(name, RECIPES, 3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"the recipes are {', '.join(RECIPES)}"
            raise ValueError(f"no recipe {name!r}; {hint}")
