"""How far are Lipschitz bounds from the truth? Gram iteration on random convolutions, and on networks trained on digits.

``python -m experiments.studies.lipschitz`` writes tables, pictures and ``results.json`` into ``runs/lipschitz``. After Delattre
et al., 2023, arXiv 2305.16173, and 2024, arXiv 2402.00240, with small networks.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments import plots
from experiments.studies import common
from experiments.studies.lipschitz_bounds import Bounded, compare
from experiments.studies.lipschitz_training import Measured, load, make_program, measure


class Method(NamedTuple):
    """A network trained with a penalty at some strengths; strength 0 is plain training."""

    network: str
    penalty: str
    strengths: tuple[float, ...]


METHODS = (
    Method("CNN, circular", "Lipschitz", (0.0, 0.03, 0.1, 0.3)),
    Method("CNN, circular", "Lipschitz, convolutions", (0.1,)),
    Method("CNN, circular", "spectral norm", (0.03, 0.1)),
    Method("CNN, zeros", "Lipschitz", (0.0, 0.1)),
    Method("MLP", "Lipschitz", (0.0, 0.1)),
)
"""Nothing is chosen: every strength is shown. 0.1 is the published one of the Lipschitz penalty."""

PUBLISHED = 0.1
COMPARED = ("Lipschitz", "spectral norm")
"""Penalties whose Jacobians at the strength of 0.1 are compared with those of plain training."""
N_ITER = tuple(range(7))
SHARP, CLOSE = 5, 1.02
"""The claim: so many squarings bring the bound of a random convolution so close to the truth."""

ROUNDING = 1e-5
"""Bounds are computed in single precision; less than this below the truth is rounding."""

ABOUT_ONE = 1.05
MARGIN = 0.01


@dataclasses.dataclass(frozen=True)
class LipschitzConfig:
    """The study.

    Attributes:
      seeds: how many networks of each kind; each has its own split, initialisation and batches.
      first_seed: the first.
      kernels: random 3x3 convolutions of every shape and size.
      sizes: positions along each axis of the convolutions' inputs.
      channels: of the random convolutions, inputs and outputs.
      steps: of power iteration.
      repeats: of a timed call.
      width: channels of the first convolutions; the MLP has eight times as many units.
      epochs: of training.
      batch_size: of training.
      learning_rate: of SGD with momentum 0.9, decaying to 0 along a cosine.
      n_iter: squarings in the penalty and in the networks' bounds.
      out: the folder of results.
      force: replace the results that the folder holds.
    """

    seeds: int = 5
    first_seed: int = 0
    kernels: int = 5
    sizes: tuple[int, ...] = (8, 16, 32)
    channels: tuple[int, int] = (16, 16)
    steps: int = 64
    repeats: int = 20
    width: int = 8
    epochs: int = 15
    batch_size: int = 64
    learning_rate: float = 0.05
    n_iter: int = 6
    out: Path = Path("runs/lipschitz")
    force: bool = False

    def __post_init__(self) -> None:
        """Refuses what cannot run."""
        for field, low in (
            ("seeds", 1),
            ("kernels", 1),
            ("steps", 1),
            ("repeats", 1),
            ("width", 1),
            ("epochs", 1),
            ("n_iter", 1),
        ):
            if getattr(self, field) < low:
                raise ValueError(f"LipschitzConfig: {field} must be at least {low}, got {getattr(self, field)}")
        if not 1 <= self.batch_size <= 1000:
            raise ValueError(f"LipschitzConfig: batch_size must be in [1, 1000], got {self.batch_size}")
        if not self.sizes or min(self.sizes) < 3:
            raise ValueError(f"LipschitzConfig: sizes must be at least the kernel's 3, got {self.sizes}")


Networks = dict[tuple[str, str, float], Measured]


def study(config: LipschitzConfig, *, quiet: bool = False) -> str:
    """Bounds random convolutions, trains all networks, and writes the folder of results.

    Args:
      config: the study.
      quiet: no lines about what was done.

    Returns:
      The tables as text, and where the results lie.

    Raises:
      ValueError: if the folder holds something already.
    """
    common.claim(config.out, config.force)
    say = (lambda text: None) if quiet else functools.partial(print, flush=True)
    begun = time.perf_counter()
    kernels = np.random.default_rng(config.first_seed).normal(size=(config.kernels, 3, 3, *config.channels))
    bounded = {n: compare(kernels, n, N_ITER, config.steps, config.repeats) for n in config.sizes}
    say(f"convolutions: {time.perf_counter() - begun:.0f} s with compilation")
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    data, found = load(seeds), {}
    for network, penalty, strengths in METHODS:
        started = time.perf_counter()
        params = make_program(config, network, penalty)(data, jnp.array(seeds), jnp.array(strengths))
        for i, strength in enumerate(strengths):
            chosen = jax.tree.map(lambda leaf: leaf[i], params)  # noqa: B023
            found[network, penalty if strength else "none", strength] = measure(network, chosen, data, config.n_iter)
        say(f"{network}, {penalty}: {time.perf_counter() - started:.0f} s with compilation")
    short = lambda values: {name: common.rounded(x) for name, x in values._asdict().items()}
    networks = [
        {"network": network, "penalty": penalty, "strength": strength, **short(values)}
        for (network, penalty, strength), values in found.items()
    ]
    results = {name: x for name, x in (("networks", networks), ("convolutions", {n: _kept(b) for n, b in bounded.items()}))}
    return common.publish(
        config.out,
        config,
        {"seconds": time.perf_counter() - begun, **results},
        tables(bounded, found),
        figures(bounded, found),
        study="lipschitz",
        text=_text(config),
    )


def steps_at(cost: np.ndarray, limit: float) -> int:
    """How many power steps fit into a cost, at least 1 and at most all; ``cost [P]`` ascends."""
    return int(np.clip(np.searchsorted(cost, limit * (1 + 1e-9), side="right"), 1, len(cost)))


def tables(bounded: Mapping[int, Bounded], found: Networks) -> dict[str, common.Table]:
    """What the networks have, how close bounds of random convolutions are, power iteration at equal cost, and the claims."""
    rows = []
    for (network, penalty, strength), values in found.items():
        mean = lambda x, scale=1.0, digits=2: common.shown(common.statistic(x), scale, digits)
        gap = np.exp(np.log(values.exact_product / values.jacobian))
        cells = (
            mean(values.accuracy, 100, 1),
            mean(values.bounds.max(-1)),
            mean(values.product),
            mean(values.exact_product),
            mean(values.jacobian),
            mean(values.mean_jacobian),
            mean(values.ratio),
            mean(gap, 1, 1),
        )
        rows.append((network, penalty, f"{strength:g}", *cells))
    header = ("network", "penalty", "strength", "accuracy %", "largest layer bound", "product of bounds")
    header += ("product of norms", "largest Jacobian", "mean Jacobian", "largest ratio", "product of norms / Jacobian")
    made = {"Networks, mean ± standard error over seeds": common.Table(header, rows)}

    rows = []
    for n, b in bounded.items():
        rows.append((f"circular, {n} x {n}", *(f"{x:.4f}" for x in b.circular.max(0))))
        rows.append((f"zeros, {n} x {n}", "", *(f"{x:.4f}" for x in b.zeros.max(0))))
    header = ("padding, input", *(f"{t}" for t in N_ITER))
    made["Bounds over true norms of random 3x3 convolutions, the worst kernel, by the number of squarings"] = common.Table(
        header, rows
    )

    rows = []
    for n, b in bounded.items():
        for at, t in enumerate(N_ITER[1:], start=1):
            by_flops = steps_at(b.power_flops, b.gram_flops[at])
            by_time = steps_at(b.power_seconds, b.gram_seconds[at])
            error = lambda ratios: f"{100 * (ratios.mean() - 1):+.2f}"
            cells = (f"{b.gram_flops[at] / 1e6:.1f}", f"{1e3 * b.gram_seconds[at]:.2f}", error(b.circular[:, at]))
            power = [(str(k), error(b.power[:, k - 1])) for k in (by_flops, by_time)]
            rows.append((f"{n} x {n}", str(t), *cells, *power[0], *power[1]))
    header = (
        "input",
        "squarings",
        "Mflop",
        "ms",
        "Gram error %",
        "power steps, equal flop",
        "error %",
        "power steps, equal time",
    )
    made["Cost of a bound, and power iteration at equal cost; errors are means over kernels"] = common.Table(
        (*header, "error %"), rows
    )
    made["Claims; differences over seeds by the paired t-test at 5 %, others by the worst case"] = common.Table(
        ("claim", "of", "here found", "here"), claims(bounded, found)
    )
    return made


def claims(bounded: Mapping[int, Bounded], found: Networks) -> list[tuple[str, str, str, str]]:
    """What the publications say: claim, of what, what was found, verdict."""
    held = lambda truth: "held" if truth else "the opposite"
    rows = []
    for n, b in bounded.items():
        worst = float(b.circular[:, N_ITER.index(SHARP)].max())
        text = f"{SHARP} squarings: at most {CLOSE:g} times the truth"
        rows.append((text, f"circular, {n} x {n}", f"{worst:.4f}", held(worst <= CLOSE)))
        rise = float(np.diff(b.circular, axis=1).max())
        rows.append(("each squaring comes closer", f"circular, {n} x {n}", f"largest change {rise:+.1e}", held(rise <= ROUNDING)))
        worst = float(b.zeros[:, N_ITER.index(SHARP) - 1].max())
        rows.append((text, f"zeros, {n} x {n}", f"{worst:.4f}", held(worst <= CLOSE)))
        least = min(float(b.circular.min()), float(b.zeros.min()))
        rows.append(("always an upper bound", f"random, {n} x {n}", f"least ratio {least:.6f}", held(least >= 1 - ROUNDING)))
        least = float(b.matrix.min())
        text = "the norm of the reshaped kernel is an upper bound too"
        rows.append((text, f"circular, {n} x {n}", f"least ratio {least:.3f}", held(least >= 1 - ROUNDING)))
    layers = min(float((values.bounds / values.norms).min()) for values in found.values())
    rows.append(("always an upper bound", "layers of all networks", f"least ratio {layers:.6f}", held(layers >= 1 - ROUNDING)))
    least = min(float((values.product / np.maximum(values.jacobian, values.ratio)).min()) for values in found.values())
    text = "the product bounds Jacobians and ratios"
    rows.append((text, "all networks", f"least ratio {least:.3f}", held(least >= 1 - ROUNDING)))
    for (network, penalty, strength), values in found.items():
        plain = found[network, "none", 0.0]
        title = f"{network}, {penalty} {strength:g}"
        if penalty.startswith("Lipschitz"):
            convolutions = values.bounds[:, :3] if penalty.endswith("convolutions") else values.bounds
            largest = common.statistic(convolutions.max(-1), np.full(len(convolutions), ABOUT_ONE))
            said = common.verdict(largest, -1)
            text = f"penalised layers end with bounds below {ABOUT_ONE:g}"
            rows.append((text, title, f"{common.shown(largest, 1, 3)}, largest {convolutions.max():.3f}", said))
        if penalty != "none":
            gain = common.shown(common.statistic(values.accuracy, plain.accuracy), 100, gain=True)
            said = common.verdict(common.statistic(values.accuracy + MARGIN, plain.accuracy), 1)
            rows.append(("accuracy within a point of plain training", title, gain, said))
    for penalty in COMPARED:
        values, plain = found["CNN, circular", penalty, PUBLISHED], found["CNN, circular", "none", 0.0]
        for text, of in (
            ("it lowers the largest Jacobian", lambda m: np.log(m.jacobian)),
            ("it brings the product closer to the Jacobian", lambda m: np.log(m.exact_product / m.jacobian)),
        ):
            value = common.statistic(of(values), of(plain))
            factor = f"factor {np.exp(value.gain):.3f}"
            rows.append((text, f"CNN, circular, {penalty} {PUBLISHED:g}", factor, common.verdict(value, -1)))
    return rows


def figures(bounded: Mapping[int, Bounded], found: Networks) -> dict[str, plt.Figure]:
    """The networks' bounds and what they bound, and errors over cost."""
    made = {}
    figure, panel = plt.subplots(figsize=(9.5, 4.4), layout="constrained")
    places = np.arange(len(found))
    parts = (
        ("product", "product of bounds", "v"),
        ("exact_product", "product of norms", "_"),
        ("jacobian", "largest Jacobian", "o"),
        ("ratio", "largest ratio of distances", "^"),
        ("mean_jacobian", "mean Jacobian", "s"),
    )
    for i, (part, label, marker) in enumerate(parts):
        values = np.stack([getattr(v, part) for v in found.values()])
        every = np.repeat(places[:, None], values.shape[1], axis=1)
        style = {"color": f"C{i}", "linestyle": "", "markersize": 12 if marker == "_" else 7}
        panel.plot(every.ravel(), values.ravel(), marker, alpha=0.35, **style)
        panel.plot(places, np.exp(np.log(values).mean(1)), marker, label=label, **style)
    labels = [f"{network}\n{penalty} {strength:g}" for network, penalty, strength in found]
    panel.set_xticks(places, labels, fontsize=7, rotation=60, ha="right", rotation_mode="anchor")
    panel.set(yscale="log", ylabel="Lipschitz constant of the logits")
    panel.axhline(1, color="#aaaaaa", linewidth=0.8)
    plots.bare(panel)
    figure.legend(loc="outside upper center", ncols=5, fontsize=8, frameon=False)
    made["networks"] = figure

    figure, panels = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    error = lambda ratios: np.maximum(np.abs(ratios.mean(0) - 1), 1e-7)
    for i, (n, b) in enumerate(bounded.items()):
        style = {"color": f"C{i}", "markersize": 4}
        ks = np.unique(np.geomspace(1, b.power.shape[1], 20).astype(int)) - 1
        costs = ((b.gram_flops / 1e6, b.power_flops / 1e6), (1e3 * b.gram_seconds, 1e3 * b.power_seconds))
        for panel, (gram, power) in zip(panels, costs, strict=True):
            panel.plot(gram, error(b.circular), "-o", label=f"Gram iteration, above, {n} x {n}", **style)
            panel.plot(power[ks], error(b.power)[ks], ":x", label=f"power iteration, below, {n} x {n}", **style)
    panels[0].set(xscale="log", yscale="log", xlabel="Mflop", ylabel="distance from the true norm, relative")
    panels[1].set(xscale="log", xlabel="milliseconds")
    for panel in panels:
        plots.bare(panel)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    made["cost"] = figure
    return made


def _kept(b: Bounded) -> dict[str, Any]:
    """What JSON holds of the convolutions of one size."""
    return {
        name: [float(f"{x:.6g}") for x in np.ravel(values)] if np.ndim(values) == 1 else common.rounded(values, 7)
        for name, values in b._asdict().items()
    }


def _text(config: LipschitzConfig) -> str:
    inputs, outputs = config.channels
    w = config.width
    return f"""How far are the Lipschitz bounds of layers, and their product, from the truth?

Networks: digits of 8 x 8 pixels in standard units, 360 test images, {config.seeds} seeds, {config.epochs} epochs of SGD with
momentum 0.9 at rate {config.learning_rate:g} on batches of {config.batch_size}. The CNN has three convolutions 3x3 of
{w}, {w} and {2 * w} channels with ReLU, the mean over 2 x 2 positions after the second (norm 1/2), and a dense layer; the MLP
has two hidden layers of {8 * w} units. `Lipschitz` is `lipschitz_penalty` with {config.n_iter} squarings on all kernels, or on
the convolutions alone as published; `spectral norm` is `stateful_spectral_norm_penalty`, which takes a convolution as its
reshaped matrix. No strength is chosen: all are shown, and test images choose nothing.

- Layer bounds are those of `gram_iteration_conv` and `gram_iteration` with {config.n_iter} squarings. With zero padding it is the
  less of `zero_padding_bound` and the circular bound for an input with a border of zeros, of which the layer is a part.
- Norms are singular values of each layer's whole matrix. Products are of all layers, times 1/2 for the pooling of the CNN.
- The Jacobian is that of the logits by the pixels: its largest singular value at each test image, exact. The largest ratio is
  |f(x) - f(y)| / |x - y| over all pairs of test images. Both are below the true Lipschitz constant, which is unknown; the product
  of norms is above it.
- Random convolutions: {config.kernels} Gaussian 3x3 kernels of {inputs} to {outputs} channels. The truth is, with circular
  padding, the largest singular value over the matrices of all frequencies, with zero padding that of Lanczos iteration, both in
  double precision. `zero_padding_bound` holds for inputs of every size, so part of its gap is the input's size.
- Power iteration applies the convolution and its transpose; its estimate is below the truth, so it is no bound, however close.
  Operations are counted by formula, times are of compiled calls on two shared cores, the fastest of {config.repeats}.
- The claim about accuracy is tried with 1 point added to it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return common.command_line(study, LipschitzConfig, "python -m experiments.studies.lipschitz", arguments)


if __name__ == "__main__":
    sys.exit(main())
