"""Examples of `regjax.losses.robust` and `regjax.losses.confidence`."""

import functools

import jax.numpy as jnp

import regjax as rj
from tests.contracts.table.losses import X, Y, cross_entropy, logit_loss, refusals

gce, sce, boot = rj.losses.generalized_cross_entropy, rj.losses.symmetric_cross_entropy, rj.losses.bootstrapping
focal = rj.losses.focal

EXAMPLES = (
    logit_loss(
        "generalized_cross_entropy",
        strength="q",
        plain=cross_entropy,
        bad={
            **refusals(functools.partial(gce, X, Y), "q", negative=-0.1, **{"above 1": 1.1}),
            **refusals(functools.partial(gce, X, Y), "truncation", negative=-0.1, **{"above 1": 1.1}),
            "truncation: a schedule": lambda: gce(X, Y, truncation=lambda step: 0.5),
        },
    ),
    logit_loss(
        "symmetric_cross_entropy",
        strength="beta",
        plain=lambda logits, labels: 0.1 * cross_entropy(logits, labels),
        bad={
            **refusals(functools.partial(sce, X, Y), "alpha", negative=-0.1),
            "alpha: a schedule": lambda: sce(X, Y, alpha=lambda step: 0.1),
            "beta: negative": lambda: sce(X, Y, beta=-1.0),
            **refusals(functools.partial(sce, X, Y), "log_zero", positive=0.1),
        },
    ),
    logit_loss(
        "bootstrapping",
        identity=lambda key, logits, labels: (
            (boot(logits, labels, beta=1.0), boot(logits, labels, mode="soft", beta=1.0)),
            (cross_entropy(logits, labels), cross_entropy(logits, labels)),
        ),
        bad={
            **refusals(functools.partial(boot, X, Y), "beta", negative=-0.1, **{"above 1": 1.1}),
            "beta: a schedule": lambda: boot(X, Y, beta=lambda step: 0.1),
            "mode: misspelt": lambda: boot(X, Y, mode="sotf"),
            "mode: a number": lambda: boot(X, Y, mode=1),
            "stop_gradient: a number": lambda: boot(X, Y, stop_gradient=1),
        },
    ),
    logit_loss(
        "confidence_penalty",
        strength="weight",
        plain=cross_entropy,
        bad={"weight: negative": lambda: rj.losses.confidence_penalty(X, Y, weight=-0.1)},
    ),
    logit_loss("focal", strength="gamma", plain=cross_entropy, bad={"gamma: negative": lambda: focal(X, Y, gamma=-0.1)}),
    logit_loss(
        "poly1_cross_entropy",
        strength="epsilon",
        plain=cross_entropy,
        bad={"epsilon: an array of one": lambda: rj.losses.poly1_cross_entropy(X, Y, epsilon=jnp.ones(1))},
    ),
)
