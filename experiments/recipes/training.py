"""Recipes that change the objective, its gradient or the learning rate."""

from functools import partial

import jax

import regjax as rj
from experiments.recipes.setting import Setting, named, sgd, tuned

# Objectives.


@tuned(rho=(0.1, 0.3, 0.6, 1.2))
def sam(s: Setting, rho: float = 0.6) -> rj.Recipe:
    """The gradient at the worst nearby weights."""
    return rj.Recipe(objectives=(partial(rj.objectives.sam, rho=rho),), optimizer=sgd(s))


@tuned(rho=(1.0, 2.0, 4.0, 8.0, 16.0))
def asam(s: Setting, rho: float = 8.0) -> rj.Recipe:
    """SAM with a neighbourhood that scales with the weights."""
    return rj.Recipe(objectives=(partial(rj.objectives.sam, rho=rho, adaptive=True),), optimizer=sgd(s))


@tuned(epsilon=(0.03, 0.1, 0.3, 0.6, 1.0))
def amp(s: Setting, epsilon: float = 1.0) -> rj.Recipe:
    """Adversarial model perturbation in a ball around each leaf."""
    return rj.Recipe(objectives=(partial(rj.objectives.amp, epsilon=epsilon),), optimizer=sgd(s))


@tuned(coefficient=(0.01, 0.03, 0.1, 0.3))
def gradient_penalty(s: Setting, coefficient: float = 0.03) -> rj.Recipe:
    """A penalty on the squared norm of the gradient, by forward differences."""
    return rj.Recipe(objectives=(partial(rj.objectives.gradient_penalty, coefficient=coefficient),), optimizer=sgd(s))


@tuned(rho=(0.3, 0.6, 1.2), alpha=(0.1, 0.4))
def gsam(s: Setting, rho: float = 0.6, alpha: float = 0.1) -> rj.Recipe:
    """SAM whose step also narrows the gap between the loss at the worst nearby weights and that at the weights."""
    return rj.Recipe(objectives=(partial(rj.objectives.gsam, rho=rho, alpha=alpha),), optimizer=sgd(s))


@tuned(rho=(0.3, 0.6, 1.2), alpha=(0.3, 0.7, 1.4))
def look_sam(s: Setting, rho: float = 1.2, alpha: float = 0.7) -> rj.Recipe:
    """SAM in every fifth step; its turn towards flatness is used again in between."""
    look = partial(rj.objectives.look_sam, rho=rho, alpha=alpha, period=5)
    return rj.Recipe(objectives=(look,), optimizer=sgd(s))


@tuned(rho=(0.3, 0.6, 1.2))
def esam(s: Setting, rho: float = 0.6) -> rj.Recipe:
    """SAM on random leaves of the weights, and on the half of the batch whose loss rises most."""
    each = partial(rj.objectives.esam, rho=rho, key_arg=lambda batch, key: key)
    return rj.Recipe(objectives=(each,), optimizer=sgd(s))


@tuned(coefficient=(0.1, 0.3, 0.6))
def gradient_norm_penalty(s: Setting, coefficient: float = 0.6) -> rj.Recipe:
    """The gradient's norm, not squared, added to the loss, by one difference of gradients."""
    penalty = partial(rj.objectives.gradient_norm_penalty, radius=0.6, coefficient=coefficient)
    return rj.Recipe(objectives=(penalty,), optimizer=sgd(s))


# Gradients.


@named
def centralize_gradient(s: Setting) -> rj.Recipe:
    """Each unit's gradient without its mean over the inputs."""
    return rj.Recipe(gradients=(rj.gradients.centralize_gradient(),), optimizer=sgd(s))


@tuned(eta=(1e-4, 1e-3, 1e-2))
def gradient_noise(s: Setting, eta: float = 1e-4) -> rj.Recipe:
    """Gaussian noise on the gradient, fading with the steps."""
    return rj.Recipe(gradients=(rj.gradients.gradient_noise(jax.random.key(0), eta=eta),), optimizer=sgd(s))


@tuned(free_epochs=(1, 3, 10))
def lawn(s: Setting, free_epochs: int = 1) -> rj.Recipe:
    """After a few free epochs the norm of each kernel stays what it is."""
    return rj.Recipe(optimizer=rj.gradients.lawn(sgd(s), free_steps=free_epochs * s.steps_per_epoch))


@named
def orthogonal_gradient(s: Setting) -> rj.Recipe:
    """The part of the gradient along the weights is removed."""
    return rj.Recipe(gradients=(rj.gradients.orthogonal_gradient(),), optimizer=sgd(s))


@named
def l2_gradient(s: Setting, strength: float = 0.1) -> rj.Recipe:
    """The L2 penalty as a gradient transformation: the same method as ``l2``."""
    return rj.Recipe(gradients=(rj.gradients.add_penalty(rj.weights.l2, strength),), optimizer=sgd(s))


@tuned(weight_decay=(1e-3, 3e-3, 1e-2, 3e-2))
def decoupled_weight_decay(s: Setting, weight_decay: float = 0.01) -> rj.Recipe:
    """Weights shrink by a fixed factor in each step, whatever the learning rate."""
    return rj.Recipe(weights=(rj.gradients.decoupled_weight_decay(weight_decay),), optimizer=sgd(s))


@tuned(weight_decay=(0.3, 1.0, 3.0, 10.0))
def cautious_weight_decay(s: Setting, weight_decay: float = 10.0) -> rj.Recipe:
    """Decay of those weights alone that the update does not push away from zero."""
    decay = rj.gradients.cautious_weight_decay(weight_decay, learning_rate=s.learning_rate)
    return rj.Recipe(weights=(decay,), optimizer=sgd(s))


# Schedules.


@tuned(peak=(1.0, 2.0, 4.0))
def one_cycle(s: Setting, peak: float = 2.0) -> rj.Recipe:
    """The learning rate rises to ``peak`` times the plain one and falls to nothing.

    Peaks below 1 do better under label noise, as any lower rate does that stops before the noise is learnt; they are left out
    because the learning rate is the same for all recipes.
    """
    schedule = rj.schedules.one_cycle(total_steps=s.total_steps, peak_value=peak * s.learning_rate)
    return rj.Recipe(optimizer=sgd(s, schedule))


@tuned(peak=(1.0, 2.0, 4.0))
def sgdr(s: Setting, peak: float = 4.0) -> rj.Recipe:
    """The learning rate falls by a cosine and restarts, in periods that double."""
    schedule = rj.schedules.sgdr(
        peak * s.learning_rate, steps_per_epoch=s.steps_per_epoch, first_period_epochs=max(s.epochs // 7, 1)
    )
    return rj.Recipe(optimizer=sgd(s, schedule))
