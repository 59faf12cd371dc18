"""Schedules: ``step -> value``, as in optax; any strength takes one."""

from regjax.schedules.batch_scaling import (
    SpectrumRate,
    batch_max_eigenvalue,
    lr_from_spectrum,
    max_learning_rate,
    scale_learning_rate,
)
from regjax.schedules.cubic_sparsity import cubic_sparsity
from regjax.schedules.drop_path import scheduled_drop_path_rate, scheduled_drop_path_rates
from regjax.schedules.dropout import dropout_schedule, early_dropout, late_dropout
from regjax.schedules.forget import forget_rate
from regjax.schedules.geometric import geometric_step
from regjax.schedules.learning_rate import (
    hessian_free_learning_rate,
    lr_range_test,
    one_cycle,
    one_cycle_momentum,
)
from regjax.schedules.ramps import ps_kd_alpha, sigmoid_rampup
from regjax.schedules.restarts import sgdr
from regjax.schedules.sharpness import gsam_rho
from regjax.schedules.slow_start import slow_start_fast_decay
from regjax.schedules.unlearning_alpha import unlearning_alpha

__all__ = [
    "SpectrumRate",
    "batch_max_eigenvalue",
    "cubic_sparsity",
    "dropout_schedule",
    "early_dropout",
    "forget_rate",
    "geometric_step",
    "gsam_rho",
    "hessian_free_learning_rate",
    "late_dropout",
    "lr_from_spectrum",
    "lr_range_test",
    "max_learning_rate",
    "one_cycle",
    "one_cycle_momentum",
    "ps_kd_alpha",
    "scale_learning_rate",
    "scheduled_drop_path_rate",
    "scheduled_drop_path_rates",
    "sgdr",
    "sigmoid_rampup",
    "slow_start_fast_decay",
    "unlearning_alpha",
]
