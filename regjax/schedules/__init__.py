"""Schedules: ``step -> value``, as in optax; any strength takes one."""

from regjax.schedules.drop_path import scheduled_drop_path_rate, scheduled_drop_path_rates
from regjax.schedules.dropout import dropout_schedule, early_dropout, late_dropout
from regjax.schedules.forget import forget_rate
from regjax.schedules.learning_rate import (
    hessian_free_learning_rate,
    lr_range_test,
    one_cycle,
    one_cycle_momentum,
)
from regjax.schedules.ramps import ps_kd_alpha, sigmoid_rampup

__all__ = [
    "dropout_schedule",
    "early_dropout",
    "forget_rate",
    "hessian_free_learning_rate",
    "late_dropout",
    "lr_range_test",
    "one_cycle",
    "one_cycle_momentum",
    "ps_kd_alpha",
    "scheduled_drop_path_rate",
    "scheduled_drop_path_rates",
    "sigmoid_rampup",
]
