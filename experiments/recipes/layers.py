"""Recipes that act inside the network and on its features."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import regjax as rj
from experiments.recipes.setting import Setting, sgd, tuned


def steps(count: Any, least: int) -> Any:
    """The nearest whole number of steps; a traced count, as in a sweep, stays an array."""
    return jnp.maximum(jnp.round(count), least) if isinstance(count, jax.Array) else max(round(count), least)


def early(s: Setting, rate: float, until: float) -> Callable[[Any], Any]:
    """A rate that fades to nothing over the first part of the run."""
    return rj.schedules.early_dropout(rate, cutoff_steps=steps(until * s.total_steps, 1))


def late(s: Setting, rate: float, start: float) -> Callable[[Any], Any]:
    """A rate that starts after the first part of the run."""
    return rj.schedules.late_dropout(rate, cutoff_steps=steps(start * s.total_steps, 0))


# Layers and their schedules.


@tuned(rate=(0.3, 0.5, 0.6, 0.7))
def dropout(s: Setting, rate: float = 0.6) -> rj.Recipe:
    """Dropout after every hidden layer."""
    return rj.Recipe(layers=rj.Hooks(dropout=rate), optimizer=sgd(s))


@tuned(rate=(0.4, 0.6), until=(0.5, 1.0))
def early_dropout(s: Setting, rate: float = 0.6, until: float = 1.0) -> rj.Recipe:
    """Dropout that fades to nothing over the first part of training."""
    return rj.Recipe(layers=rj.Hooks(dropout=early(s, rate, until)), optimizer=sgd(s))


@tuned(rate=(0.5, 0.6, 0.7), start=(0.05, 0.2))
def late_dropout(s: Setting, rate: float = 0.6, start: float = 0.05) -> rj.Recipe:
    """Dropout that starts after the first part of training."""
    return rj.Recipe(layers=rj.Hooks(dropout=late(s, rate, start)), optimizer=sgd(s))


@tuned(rate=(0.3, 0.5, 0.7, 0.9, 0.95))
def multi_sample_dropout(s: Setting, num_samples: int = 8, rate: float = 0.95) -> rj.Recipe:
    """Several dropout masks on the features in every step."""
    head = partial(rj.layers.multi_sample_dropout, num_samples=num_samples, rate=rate)
    return rj.Recipe(layers=rj.Hooks(head=head), optimizer=sgd(s))


@tuned(rate=(0.2, 0.5, 0.8, 0.9))
def drop_path(s: Setting, rate: float = 0.8) -> rj.Recipe:
    """Stochastic depth on the residual branches."""
    return rj.Recipe(layers=rj.Hooks(drop_path=rate), optimizer=sgd(s))


@tuned(rate=(0.5, 0.8), until=(0.5, 1.0))
def early_drop_path(s: Setting, rate: float = 0.8, until: float = 0.5) -> rj.Recipe:
    """Stochastic depth that fades to nothing over the first part of training."""
    return rj.Recipe(layers=rj.Hooks(drop_path=early(s, rate, until)), optimizer=sgd(s))


@tuned(rate=(0.5, 0.8), start=(0.05, 0.2))
def late_drop_path(s: Setting, rate: float = 0.8, start: float = 0.05) -> rj.Recipe:
    """Stochastic depth that starts after the first part of training."""
    return rj.Recipe(layers=rj.Hooks(drop_path=late(s, rate, start)), optimizer=sgd(s))


@tuned(rate=(0.5, 0.8, 0.9))
def scheduled_drop_path(s: Setting, rate: float = 0.9) -> rj.Recipe:
    """Stochastic depth whose rate grows from nothing over training."""
    schedule = partial(
        rj.schedules.scheduled_drop_path_rate, keep_prob=1 - rate, layer=0, num_layers=1, total_steps=s.total_steps
    )
    return rj.Recipe(layers=rj.Hooks(drop_path=schedule), optimizer=sgd(s))


@tuned(rate=(0.1, 0.3, 0.5, 0.7), block_size=(2, 3))
def drop_block(s: Setting, rate: float = 0.7, block_size: int = 2) -> rj.Recipe:
    """Dropout of square blocks of the image."""
    drop = lambda key, images, labels: (rj.layers.drop_block(key, images, rate=rate, block_size=block_size), labels)
    return rj.Recipe(inputs=(drop,), optimizer=sgd(s))


@tuned(rate=(0.5, 0.8, 0.95))
def drop_connect(s: Setting, rate: float = 0.8) -> rj.Recipe:
    """Dropout of the weights of the last layer, each example its own."""

    def head(key: Any, layer: Any, features: Any) -> Any:
        return rj.layers.drop_connect(key, features, layer.kernel[...], layer.bias[...], rate=rate, per_example=True)

    return rj.Recipe(layers=rj.Hooks(head=head), optimizer=sgd(s))


@tuned(std=(0.1, 0.3, 1.0, 3.0, 10.0))
def gaussian_noise(s: Setting, std: float = 3.0) -> rj.Recipe:
    """Normal noise added to every hidden layer."""
    return rj.Recipe(layers=rj.Hooks(noise=partial(rj.layers.gaussian_noise, std=std)), optimizer=sgd(s))


@tuned(std=(0.5, 1.0, 1.5, 2.0))
def gaussian_dropout(s: Setting, std: float = 1.0) -> rj.Recipe:
    """Every hidden unit times normal noise of mean 1."""
    noise = partial(rj.layers.gaussian_noise, std=std, kind="multiplicative")
    return rj.Recipe(layers=rj.Hooks(noise=noise), optimizer=sgd(s))


@tuned(scale=(0.1, 0.3, 1.0, 3.0))
def nested_dropout(s: Setting, scale: float = 1.0) -> rj.Recipe:
    """Only the first k features are kept, with k drawn in each step; ``scale`` is relative to the number of features."""
    probs = rj.layers.nested_dropout_probs(s.feature_dim, scale=scale * s.feature_dim)
    return rj.Recipe(layers=rj.Hooks(features=partial(rj.layers.nested_dropout, probs=probs)), optimizer=sgd(s))


# Features.


@tuned(lambda_w=(0.001, 0.003, 0.01, 0.03))
def neural_collapse_longtail(s: Setting, lambda_w: float = 0.01, lambda_b: float = 0.1) -> rj.Recipe:
    """Features drawn to learned class centres that are pushed apart."""
    technique = rj.features.neural_collapse(s.num_classes, s.feature_dim, lambda_w=lambda_w, lambda_b=lambda_b)
    return rj.Recipe(features=((1.0, technique),), optimizer=sgd(s))
