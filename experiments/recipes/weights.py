"""Recipes that act on the weights: penalties, proximal steps, pruning."""

from functools import partial

import regjax as rj
from experiments.recipes.setting import Setting, named, sgd, tuned

# Penalties.


@tuned(strength=(1e-3, 3e-3, 6e-3, 1e-2, 2e-2))
def l1(s: Setting, strength: float = 0.01) -> rj.Recipe:
    """The sum of absolute weights."""
    return rj.Recipe(penalties=((strength, rj.weights.l1),), optimizer=sgd(s))


@tuned(strength=(1e-2, 3e-2, 6e-2, 1e-1, 2e-1))
def l2(s: Setting, strength: float = 0.1) -> rj.Recipe:
    """Half the sum of squared weights."""
    return rj.Recipe(penalties=((strength, rj.weights.l2),), optimizer=sgd(s))


@tuned(strength=(1e-2, 3e-2, 6e-2, 1e-1))
def group_lasso(s: Setting, strength: float = 0.03) -> rj.Recipe:
    """The sum of the norms of the units' weights."""
    return rj.Recipe(penalties=((strength, rj.weights.group_lasso),), optimizer=sgd(s))


@tuned(strength=(1e-3, 3e-3, 1e-2, 3e-2, 6e-2))
def spectral(s: Setting, strength: float = 0.06) -> rj.Recipe:
    """Largest singular values drawn to 1, by one power step carried along."""
    return rj.Recipe(penalties=((strength, rj.weights.stateful_spectral_penalty()),), optimizer=sgd(s))


@tuned(strength=(3e-2, 1e-1, 3e-1, 6e-1))
def wasserstein_to_init(s: Setting, strength: float = 0.6) -> rj.Recipe:
    """The distribution of each leaf's weights drawn to that of its initial values."""
    penalty = rj.Stateful(
        lambda key, params: rj.weights.sorted_init(params),
        lambda initial, params: (rj.weights.wasserstein_to_init(params, initial), initial),
    )
    return rj.Recipe(penalties=((strength, penalty),), optimizer=sgd(s))


@tuned(strength=(1e-2, 1e-1, 3e-1, 1.0))
def spectral_norm(s: Setting, strength: float = 1.0) -> rj.Recipe:
    """Half the squares of the largest singular values, by one power step carried along."""
    return rj.Recipe(penalties=((strength, rj.weights.stateful_spectral_norm_penalty()),), optimizer=sgd(s))


@tuned(strength=(1e-2, 3e-2, 1e-1, 3e-1))
def orthonormality(s: Setting, strength: float = 0.3) -> rj.Recipe:
    """Units drawn to be orthonormal, on the smaller side of each kernel."""
    return rj.Recipe(penalties=((strength, partial(rj.weights.orthonormality, side="auto")),), optimizer=sgd(s))


@tuned(strength=(1e-2, 1e-1, 3e-1, 1.0))
def srip(s: Setting, strength: float = 0.3) -> rj.Recipe:
    """The largest deviation of a kernel from an isometry, by one power step carried along."""
    return rj.Recipe(penalties=((strength, rj.weights.stateful_srip()),), optimizer=sgd(s))


@tuned(weight=(1e-1, 1.0, 10.0))
def weight_distribution(s: Setting, weight: float = 10.0) -> rj.Recipe:
    """Kurtosis and skewness of each kernel drawn to those of a uniform distribution."""
    penalty = partial(rj.weights.weight_distribution_penalty, skip_first=False)
    return rj.Recipe(penalties=((weight, penalty),), optimizer=sgd(s))


@tuned(strength=(1e-2, 3e-2, 1e-1, 3e-1))
def hypersparse(s: Setting, strength: float = 0.1) -> rj.Recipe:
    """The smallest 90 % of the weights pushed to zero, the others left alone."""
    return rj.Recipe(penalties=((strength, partial(rj.weights.hypersparse_penalty, prune_rate=0.9)),), optimizer=sgd(s))


# Proximal steps.


@tuned(strength=(1e-2, 3e-2, 6e-2, 1e-1, 2e-1))
def proximal_l1(s: Setting, strength: float = 0.1) -> rj.Recipe:
    """Soft thresholding after every step: exact zeros."""
    prox = rj.gradients.proximal_step(rj.weights.prox_l1, strength, learning_rate=s.learning_rate)
    return rj.Recipe(weights=(prox,), optimizer=sgd(s))


@tuned(strength=(3e-2, 1e-1, 2e-1, 4e-1, 8e-1))
def proximal_group_lasso(s: Setting, strength: float = 0.4) -> rj.Recipe:
    """Whole units shrink to exactly zero."""
    prox = rj.gradients.proximal_step(rj.weights.prox_group_lasso, strength, learning_rate=s.learning_rate)
    return rj.Recipe(weights=(prox,), optimizer=sgd(s))


@tuned(strength=(1e-1, 3e-1, 1.0, 3.0))
def proximal_wgsef(s: Setting, strength: float = 1.0) -> rj.Recipe:
    """The envelope of at most 16 units in each layer: units beyond shrink to exactly zero."""
    prox = rj.gradients.proximal_step(partial(rj.weights.prox_wgsef, k=16), strength, learning_rate=s.learning_rate)
    return rj.Recipe(weights=(prox,), optimizer=sgd(s))


@tuned(radius=(0.25, 0.5, 1.0, 2.0))
def max_norm(s: Setting, radius: float = 0.25) -> rj.Recipe:
    """The weights of each unit in a ball."""
    project = partial(rj.weights.project_l2_ball, radius=radius, groups="out")
    return rj.Recipe(weights=(rj.gradients.proximal_step(project, 1.0),), optimizer=sgd(s))


# Pruning: the sparsity is reached in the middle of the run and held.


@tuned(sparsity=(0.5, 0.8, 0.9, 0.95))
def magnitude_pruning(s: Setting, sparsity: float = 0.95) -> rj.Recipe:
    """The smallest weights become zero, more of them by the cubic schedule."""
    start, end, every = s.total_steps // 4, s.total_steps // 2, s.steps_per_epoch
    return rj.Recipe(optimizer=rj.gradients.prune(sgd(s), sparsity=sparsity, start=start, end=end, every=every))


@named
def nm_pruning(s: Setting) -> rj.Recipe:
    """Two of four neighbouring weights stay."""
    return rj.Recipe(optimizer=rj.gradients.nm_pruning(sgd(s), n=2, m=4))


@tuned(sparsity=(0.5, 0.8, 0.9, 0.95))
def iss_p(s: Setting, sparsity: float = 0.95) -> rj.Recipe:
    """The smallest weights shrink by a factor in each step, and are cut in the middle of the run."""
    return rj.Recipe(weights=(rj.gradients.iss_p(sparsity, shrink_steps=s.total_steps // 2),), optimizer=sgd(s))


@tuned(decay=(1e-3, 3e-3, 1e-2, 3e-2))
def irrelevance_decay(s: Setting, decay: float = 0.03) -> rj.Recipe:
    """Decay of the weights on which the loss does not depend."""
    return rj.Recipe(optimizer=rj.gradients.irrelevance_decay(sgd(s), decay, gradient_scale=100.0))
