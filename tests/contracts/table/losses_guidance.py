"""Examples of `regjax.losses`: the guidance of subnetworks by larger ones."""

import functools

import regjax as rj
from tests.contracts.example import Example
from tests.contracts.table.losses_distillation import LABELS, MIXED, WEAK, X, Y, errors, extremes, strengths, two

guidance = rj.losses.group_progressive_guidance
NAMES = (WEAK[0], "teacher_logits")

EXAMPLES = (
    Example(
        name="losses.group_progressive_guidance",
        call=lambda key, **arrays: guidance(**arrays, alpha=0.7, temperature=2.0),
        arrays=two(*NAMES) | LABELS,
        rows=(*NAMES, "labels"),
        result="rows",
        wrt=("logits",),
        frozen=("teacher_logits",),
        singular=(*extremes(*NAMES), MIXED),
        identity=lambda key, logits, teacher_logits, labels: (
            guidance(logits, teacher_logits, labels, alpha=0.0),
            rj.losses.maxsup(logits, labels, weight=0.0),
        ),
        bad={
            **errors(guidance, *NAMES, Y),
            **strengths(functools.partial(guidance, X, X, Y), "alpha", negative=-0.1, above=1.1),
            **strengths(functools.partial(guidance, X, X, Y), "temperature", zero=0.0),
        },
    ),
)
