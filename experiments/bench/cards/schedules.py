"""The schedules: formulas of the step, but for the two that read arrays."""

from experiments.bench.cards import case as c
from regjax import schedules

CASES = {
    "lr_from_spectrum": lambda: c.case(schedules.lr_from_spectrum, c.normal(64), c.uniform(64)),
    "hessian_free_learning_rate": lambda: c.case(
        lambda state, updates: schedules.hessian_free_learning_rate().apply(state, updates, 0.1),
        schedules.hessian_free_learning_rate().init(c.kernels()),
        c.kernels(),
        donate=0,
    ),
}

_OF_NUMBERS = "a formula of a few numbers"
_OF_STEP = "a formula of the step"
UNCOUNTED = {
    "batch_max_eigenvalue": _OF_NUMBERS,
    "max_learning_rate": _OF_NUMBERS,
    "scale_learning_rate": _OF_NUMBERS,
    "cubic_sparsity": _OF_STEP,
    "dropout_schedule": _OF_STEP,
    "early_dropout": _OF_STEP,
    "late_dropout": _OF_STEP,
    "forget_rate": _OF_STEP,
    "geometric_step": _OF_STEP,
    "gsam_rho": _OF_STEP,
    "lr_range_test": _OF_STEP,
    "one_cycle": _OF_STEP,
    "one_cycle_momentum": _OF_STEP,
    "ps_kd_alpha": _OF_STEP,
    "scheduled_drop_path_rate": _OF_STEP,
    "scheduled_drop_path_rates": _OF_STEP,
    "sgdr": _OF_STEP,
    "sigmoid_rampup": _OF_STEP,
    "slow_start_fast_decay": _OF_STEP,
    "unlearning_alpha": _OF_STEP,
}
