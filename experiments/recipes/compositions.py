"""Several techniques in one step."""

from functools import partial

import regjax as rj
from experiments.recipes.setting import Setting, sgd, tuned


@tuned(rate=(0.3, 0.5), rho=(0.1, 0.3), strength=(3e-2, 1e-1))
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


@tuned(rate=(0.3, 0.5), alpha=(0.5, 1.0), strength=(1e-1, 2e-1))
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
