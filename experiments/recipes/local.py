"""Recipes that act on the function around each image: adversarial training and smoothness."""

from functools import partial
from typing import Any

import optax

import regjax as rj
from experiments.recipes.setting import Setting, sgd, tuned


@tuned(epsilon=(0.03, 0.1, 0.2, 0.3, 0.4))
def fgsm(s: Setting, epsilon: float = 0.4) -> rj.Recipe:
    """Images moved by one signed step up the loss, from a random start beyond it."""
    return rj.Recipe(attack=partial(rj.objectives.fgsm_attack, epsilon=epsilon, method="n_fgsm"), optimizer=sgd(s))


@tuned(epsilon=(0.03, 0.1, 0.2, 0.3, 0.4))
def pgd(s: Setting, epsilon: float = 0.4) -> rj.Recipe:
    """Images at the worst point that five projected steps find."""
    attack = partial(rj.objectives.pgd_attack, epsilon=epsilon, step_size=epsilon / 3, num_steps=5)
    return rj.Recipe(attack=attack, optimizer=sgd(s))


@tuned(epsilon=(0.3, 1.0, 2.0, 4.0, 8.0))
def vat(s: Setting, epsilon: float = 4.0) -> rj.Recipe:
    """Predictions that stay the same in the direction in which they change most; the labels do not matter."""
    return rj.Recipe(local=((1.0, partial(rj.objectives.vat, epsilon=epsilon)),), optimizer=sgd(s))


@tuned(weight=(0.01, 0.03, 0.1, 0.3, 1.0))
def jacobian(s: Setting, weight: float = 0.3) -> rj.Recipe:
    """The squared derivative of the logits by the image, by one random projection."""
    return rj.Recipe(local=((weight, rj.objectives.jacobian_penalty),), optimizer=sgd(s))


@tuned(weight=(1.0, 10.0, 100.0, 1000.0))
def elle(s: Setting, weight: float = 1.0) -> rj.Recipe:
    """The loss as linear as possible between random neighbours of each image."""

    def penalty(logits_fn: Any) -> Any:
        each = lambda params, images, labels: optax.softmax_cross_entropy_with_integer_labels(logits_fn(params, images), labels)
        return rj.objectives.elle_penalty(each, epsilon=0.2)

    return rj.Recipe(local=((weight, penalty),), optimizer=sgd(s))
