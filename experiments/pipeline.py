"""The picture of the pipeline: the places of a training step, how many techniques act at each, and some of them.

``python -m experiments.readme`` writes it into ``docs/_static/pipeline.svg``.
"""

from collections.abc import Sequence
from html import escape

from regjax.catalog import STAGES, cards

WIDTH, HEIGHT = 1240, 430
_BOX, _GAP, _TOP, _TALL, _LEFT = 150, 22, 92, 190, 30
_FONT = 'font-family="system-ui, -apple-system, Segoe UI, Roboto, DejaVu Sans, sans-serif"'

_FLOW = {
    "inputs": ("the batch", ("cutmix", "mixup", "randaugment", "random_erasing")),
    "layers": ("the network", ("drop_path", "multi_sample_dropout", "LoRALinear", "nested_dropout")),
    "features": ("the representation", ("neural_collapse", "coral", "feature_distillation", "prototype_loss")),
    "losses": ("each example", ("maxsup", "label_smoothing", "elr", "distillation")),
    "objectives": ("the loss function", ("sam", "amp", "vat", "with_penalty")),
    "gradients": ("the update", ("orthogonal_gradient", "lawn", "prune", "proximal_step")),
    "weights": ("the parameters", ("spectral_penalty", "wgsef", "ema", "greedy_soup")),
}
"""What each stage acts on, and examples of it."""
_BESIDE = {
    "schedules": ("any strength over time", ("early_dropout", "one_cycle", "cubic_sparsity")),
    "diagnostics": (
        "measures any of these places",
        ("nc_metrics", "lanczos_spectrum", "expected_calibration_error", "softmax_collapse"),
    ),
}


def svg() -> str:
    """The picture, legible on light and dark pages."""
    counts = {stage: len(cards(stage)) for stage in STAGES}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'aria-label="The pipeline of a training step: inputs, layers, features, losses, objectives, gradients, weights">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="14" fill="#ffffff"/>',
        _text(_LEFT, 46, "A training step is a pipeline, and a technique acts at one place of it", 22, "#1f2937", "600"),
        _text(
            _LEFT,
            72,
            f"{sum(counts.values())} public techniques; each is a pure function, and all compose in one compiled step",
            15,
            "#6b7280",
        ),
    ]
    for i, (stage, (acts_on, examples)) in enumerate(_FLOW.items()):
        x = _LEFT + i * (_BOX + _GAP)
        parts += _box(x, _TOP, _BOX, _TALL, stage, counts[stage], acts_on, examples, hue="#0f766e", fill="#f0fdfa")
        if i:
            y = _TOP + _TALL / 2
            parts.append(
                f'<path d="M{x - _GAP + 3} {y} h{_GAP - 10} m-6 -5 l6 5 l-6 5" fill="none" stroke="#6b7280" stroke-width="2"/>'
            )
    whole = len(_FLOW) * (_BOX + _GAP) - _GAP
    for j, (stage, (acts_on, examples)) in enumerate(_BESIDE.items()):
        y = _TOP + _TALL + 18 + j * 56
        parts.append(f'<rect x="{_LEFT}" y="{y}" width="{whole}" height="46" rx="8" fill="#f8fafc" stroke="#94a3b8"/>')
        parts.append(_text(_LEFT + 14, y + 29, f"{stage} ({counts[stage]})", 17, "#334155", "600"))
        parts.append(_text(_LEFT + 190, y + 29, acts_on, 14, "#6b7280"))
        parts.append(_text(_LEFT + 420, y + 29, "   ".join(examples), 13, "#334155", family="monospace"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _box(
    x: float,
    y: float,
    width: float,
    height: float,
    stage: str,
    count: int,
    acts_on: str,
    examples: Sequence[str],
    *,
    hue: str,
    fill: str,
) -> list[str]:
    lines = [
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="{fill}" stroke="{hue}" stroke-width="1.5"/>',
        _text(x + 12, y + 30, stage, 18, hue, "600"),
        _text(x + width - 12, y + 30, str(count), 14, hue, anchor="end"),
        _text(x + 12, y + 52, acts_on, 13, "#6b7280"),
    ]
    size = 12.5 if max(map(len, examples)) < 17 else 11
    return lines + [_text(x + 12, y + 84 + 24 * i, name, size, "#334155", family="monospace") for i, name in enumerate(examples)]


def _text(
    x: float, y: float, text: str, size: float, fill: str, weight: str = "400", family: str = "", anchor: str = "start"
) -> str:
    font = 'font-family="ui-monospace, SFMono-Regular, Menlo, DejaVu Sans Mono, monospace"' if family else _FONT
    style = f'font-size="{size}" font-weight="{weight}" fill="{fill}" text-anchor="{anchor}"'
    return f'<text x="{x}" y="{y}" {font} {style} xml:space="preserve">{escape(text)}</text>'
