"""Recipes that change the loss of each example."""

from functools import partial
from typing import Any

import jax.numpy as jnp

import regjax as rj
from experiments.recipes.setting import Setting, named, sgd, tuned


@tuned(alpha=(0.1, 0.3, 0.6, 0.9))
def label_smoothing(s: Setting, alpha: float = 0.6) -> rj.Recipe:
    """Labels mixed with the uniform distribution."""
    return rj.Recipe(loss=partial(rj.losses.label_smoothing, alpha=alpha), optimizer=sgd(s))


@tuned(weight=(0.1, 0.3, 0.7, 1.5))
def maxsup(s: Setting, weight: float = 0.7) -> rj.Recipe:
    """A penalty on the top logit."""
    return rj.Recipe(loss=partial(rj.losses.maxsup, weight=weight), optimizer=sgd(s))


@tuned(weight=(0.1, 0.3, 1.0, 3.0))
def confidence_penalty(s: Setting, weight: float = 1.0) -> rj.Recipe:
    """A reward for the entropy of the prediction."""
    return rj.Recipe(loss=partial(rj.losses.confidence_penalty, weight=weight), optimizer=sgd(s))


@tuned(gamma=(0.5, 1.0, 2.0, 5.0))
def focal(s: Setting, gamma: float = 5.0) -> rj.Recipe:
    """Cross-entropy that counts sure answers less."""
    return rj.Recipe(loss=partial(rj.losses.focal, gamma=gamma), optimizer=sgd(s))


@tuned(epsilon=(-1.0, 1.0, 2.0, 6.0))
def poly1(s: Setting, epsilon: float = -1.0) -> rj.Recipe:
    """Cross-entropy with another coefficient on the first term of its series."""
    return rj.Recipe(loss=partial(rj.losses.poly1_cross_entropy, epsilon=epsilon), optimizer=sgd(s))


@tuned(q=(0.3, 0.5, 0.7, 0.9))
def generalized_cross_entropy(s: Setting, q: float = 0.7) -> rj.Recipe:
    """Between cross-entropy and the mean absolute error: wrong labels pull less."""
    return rj.Recipe(loss=partial(rj.losses.generalized_cross_entropy, q=q), optimizer=sgd(s))


@tuned(alpha=(0.01, 0.1, 0.3), beta=(1.0, 3.0))
def symmetric_cross_entropy(s: Setting, alpha: float = 0.01, beta: float = 3.0) -> rj.Recipe:
    """Cross-entropy beside its reverse."""
    return rj.Recipe(loss=partial(rj.losses.symmetric_cross_entropy, alpha=alpha, beta=beta), optimizer=sgd(s))


@tuned(beta=(0.2, 0.3, 0.4, 0.6, 0.8))
def bootstrapping(s: Setting, beta: float = 0.4) -> rj.Recipe:
    """The prediction itself as part of the target."""
    return rj.Recipe(loss=partial(rj.losses.bootstrapping, mode="hard", beta=beta), optimizer=sgd(s))


@tuned(temperature=(0.04, 0.1, 0.3, 1.0))
def logit_norm(s: Setting, temperature: float = 0.1) -> rj.Recipe:
    """Cross-entropy of logits of one length."""
    return rj.Recipe(loss=partial(rj.losses.logit_norm, temperature=temperature), optimizer=sgd(s))


@tuned(weight=(0.3, 1.0, 3.0, 10.0), rate=(0.3, 0.6))
def r_drop(s: Setting, weight: float = 3.0, rate: float = 0.3) -> rj.Recipe:
    """Two dropout masks for each example, and predictions that agree."""
    twice = lambda key, images, labels: (jnp.concatenate([images, images]), jnp.concatenate([labels, labels]))

    def loss(logits: Any, labels: Any) -> Any:
        first, second = jnp.split(logits, 2)
        return rj.losses.r_drop(first, second, labels[: len(first)], weight=weight)

    return rj.Recipe(inputs=(twice,), layers=rj.Hooks(dropout=rate), loss=loss, optimizer=sgd(s))


@named
def stablemax(s: Setting) -> rj.Recipe:
    """StableMax in place of softmax."""
    return rj.Recipe(loss=rj.losses.stablemax_cross_entropy, optimizer=sgd(s))


@tuned(weight=(0.01, 0.1, 0.3, 1.0))
def spectral_decoupling(s: Setting, weight: float = 0.1) -> rj.Recipe:
    """An L2 penalty on the logits."""
    return rj.Recipe(loss=partial(rj.losses.spectral_decoupling, weight=weight), optimizer=sgd(s))


@tuned(weight=(1.0, 3.0, 7.0, 12.0), beta=(0.7, 0.9))
def elr(s: Setting, weight: float = 7.0, beta: float = 0.7) -> rj.Recipe:
    """Early-learning regularisation: a memory of each example's predictions."""
    return rj.Recipe(loss=rj.losses.elr(s.num_examples, s.num_classes, beta=beta, weight=weight), optimizer=sgd(s))


@tuned(weight=(0.3, 1.0, 3.0), temperature=(2.0, 5.0))
def saf(s: Setting, weight: float = 3.0, temperature: float = 5.0) -> rj.Recipe:
    """Cross-entropy, held to each example's predictions of three epochs ago: flatness without a second pass."""
    sizes = {"num_examples": s.num_examples, "num_classes": s.num_classes}
    start = max(3 * s.epochs // 10, 3)
    past = rj.objectives.saf(**sizes, weight=weight, temperature=temperature, start_epoch=start)

    def apply(state: Any, logits: Any, labels: Any, indices: Any, *, epoch: Any) -> Any:
        penalty, state = past.apply(state, logits, indices, epoch)
        return rj.losses.label_smoothing(logits, labels, alpha=0.0) + penalty, state

    return rj.Recipe(loss=rj.Stateful(past.init, apply), optimizer=sgd(s))


@tuned(alpha_final=(0.5, 0.8, 0.95))
def ps_kd(s: Setting, alpha_final: float = 0.95) -> rj.Recipe:
    """The previous epoch's predictions as part of the target."""
    loss = rj.losses.ps_kd(s.num_examples, s.num_classes, alpha_final=alpha_final, total_epochs=s.epochs)
    return rj.Recipe(loss=loss, optimizer=sgd(s))
