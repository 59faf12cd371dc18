"""Images that are of no class, found by small loss, by a linear separation of features, or by the two in turn.

``python -m experiments.studies.web_noise``: digits of which some images are replaced by others with random labels, as a web
search returns them: pieces of photographs, or pixels of digits that make no digit. In every epoch a detector marks training
examples as noise, and the network trains on the rest. After Albert et al., 2024, arXiv 2407.05528, without its mixup,
pseudo-labels and contrastive term; and the linear separation is penalised, for the features are many beside so few examples.
"""

import dataclasses
import functools
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits, load_sample_image
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

import regjax as rj
from experiments import plots
from experiments.studies import common

METHODS = ("all examples", "small loss", "linear", "alternating", "true noise")
"""What the network trains on: everything, what a detector leaves, or, for comparison, what is no noise in truth."""


NOISES = ("photographs", "shuffled pixels")


@dataclasses.dataclass(frozen=True)
class WebNoiseConfig:
    """The study.

    Attributes:
      noises: what the images of no class show.
      seeds: how many; each has its own split, noise and initialisation.
      share: of the training images that are of no class, in (0, 1).
      hidden: units of each of the network's two hidden layers; the linear detector sees the first.
      epochs: of training.
      warmup: the epochs before anything is detected.
      threshold: the posterior of the large losses from which an example is suspect.
      inverse_penalty: of the linear separation; infinite in the paper.
      out: the folder of results.
      force: replace the results that the folder holds.
    """

    noises: tuple[str, ...] = NOISES
    seeds: int = 5
    share: float = 0.3
    hidden: int = 128
    epochs: int = 30
    warmup: int = 2
    threshold: float = 0.95
    inverse_penalty: float = 0.01
    out: Path = Path("runs/web_noise")
    force: bool = False

    def __post_init__(self) -> None:
        """Refuses unknown names and impossible numbers."""
        common.check("WebNoiseConfig", "noises", self.noises, NOISES)
        if self.seeds < 1 or not 0 < self.share < 1 or not 1 <= self.warmup < self.epochs or not 0 < self.threshold < 1:
            raise ValueError(f"WebNoiseConfig: seeds, warmup, epochs - warmup must be at least 1, shares in (0, 1), got {self}")


def noisy_digits(seed: int, share: float, kind: str) -> tuple[np.ndarray, ...]:
    """Training images and labels, which of them are of no class, and test images and labels."""
    rng = np.random.default_rng(seed)
    images, labels = load_digits(return_X_y=True)
    order = rng.permutation(len(labels))
    train, test = order[:1080], order[1080:]
    x, y = images[train] / 16, labels[train]
    noise = rng.permutation(1080) < round(share * 1080)
    if kind == "photographs":
        others = np.stack([_piece(rng) for _ in range(1080)])
    else:  # every pixel of another training image
        others = x[rng.integers(0, 1080, size=(1080, 64)), np.arange(64)]
    y = np.where(noise, rng.integers(0, 10, size=1080), y)
    return np.where(noise[:, None], others, x), y, noise, images[test] / 16, labels[test]


@functools.cache
def _photographs() -> tuple[np.ndarray, ...]:
    return tuple(load_sample_image(name).mean(axis=2) for name in ("china.jpg", "flower.jpg"))


def _piece(rng: np.random.Generator) -> np.ndarray:
    """A square of a photograph as 8 x 8 grey pixels in [0, 1]."""
    photograph = _photographs()[rng.integers(2)]
    top, left = rng.integers(0, np.array(photograph.shape) - 32)
    small = photograph[top : top + 32, left : left + 32].reshape(8, 4, 8, 4).mean(axis=(1, 3)).ravel()
    return (small - small.min()) / max(np.ptp(small), 1.0)


def posterior_of_large_losses(losses: np.ndarray) -> np.ndarray:
    """The probability that each loss is of the heap of the large ones."""
    scaled = (losses - losses.min()) / max(np.ptp(losses), 1e-8)
    return np.asarray(_fit(scaled.astype(np.float32)).posteriors[:, 1])


_fit = jax.jit(rj.losses.fit_two_gaussians)


def linear_detector(features: np.ndarray, suspects: np.ndarray, inverse_penalty: float) -> np.ndarray:
    """What a hyperplane puts on the side of the suspects; they themselves where one side is empty."""
    if suspects.all() or not suspects.any():
        return suspects
    scaled = StandardScaler().fit_transform(features)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without a penalty, separable features have no optimum to converge to
        separator = LogisticRegression(C=inverse_penalty, class_weight="balanced", max_iter=300).fit(scaled, suspects)
    return separator.predict(scaled)


def run(method: str, kind: str, seed: int, config: WebNoiseConfig) -> dict[str, list[float]]:
    """Trains one network; test accuracy and the quality of the detection in each epoch."""
    x, y, noise, test_x, test_y = noisy_digits(seed, config.share, kind)
    sizes = (config.hidden, config.hidden)
    net = MLPClassifier(sizes, solver="sgd", alpha=0, batch_size=50, learning_rate_init=0.05, random_state=seed)
    curves: dict[str, list[float]] = {"accuracy": [], "detection": [], "kept": [], "found": []}
    for epoch in range(config.epochs):
        marked = np.zeros(len(y), bool)
        if method == "true noise":
            marked = noise
        elif method != METHODS[0] and epoch >= config.warmup:
            losses = -np.log(np.maximum(net.predict_proba(x)[np.arange(len(y)), y], 1e-30))
            marked = posterior_of_large_losses(losses) > config.threshold
            if method == "linear" or (method == "alternating" and (epoch - config.warmup) % 2 == 0):
                features = np.maximum(x @ net.coefs_[0] + net.intercepts_[0], 0)
                marked = linear_detector(features, marked, config.inverse_penalty)
        net.partial_fit(x[~marked], y[~marked], classes=np.arange(10))
        kept, found = np.mean(~marked[~noise]), np.mean(marked[noise])
        values = net.score(test_x, test_y), (kept + found) / 2, kept, found
        for curve, value in zip(curves.values(), values, strict=True):
            curve.append(round(100 * float(value), 3))
    return curves


def study(config: WebNoiseConfig) -> str:
    """Trains every method on every seed, and writes the folder of results; returns the tables and where they lie."""
    common.claim(config.out, config.force)
    with threadpool_limits(1):  # matrices this small only wait for each other's threads
        every = lambda method, kind: [run(method, kind, seed, config) for seed in range(config.seeds)]
        runs = {kind: {method: every(method, kind) for method in METHODS} for kind in config.noises}
    header = ("trained on", "accuracy %", "gain", "detection %: first", "last", "clean kept %", "noise found %")
    tables = {}
    figure, axes = plt.subplots(2, len(config.noises), figsize=(4.2 * len(config.noises), 6), layout="constrained", squeeze=False)
    for column, (kind, measured) in enumerate(runs.items()):
        curve = lambda method, name, measured=measured: np.array([r[name] for r in measured[method]])
        rows = []
        for method in METHODS:
            last = common.statistic(curve(method, "accuracy")[:, -1], curve(METHODS[0], "accuracy")[:, -1])
            cells = [("detection", config.warmup), ("detection", -1), ("kept", -1), ("found", -1)]
            quality = [common.shown(common.statistic(curve(method, name)[:, epoch])) for name, epoch in cells]
            rows.append((method, common.shown(last), common.shown(last, gain=True), *quality))
        tables[f"{kind.capitalize()}, mean ± standard error over {config.seeds} seeds"] = common.Table(header, rows)
        for panel, name, methods in zip(axes[:, column], ("detection", "accuracy"), (METHODS[1:4], METHODS), strict=True):
            for method in methods:
                plots.seed_curve(
                    panel, 1 + np.arange(config.epochs), curve(method, name), label=method, color=f"C{METHODS.index(method)}"
                )
            panel.set(xlabel="epoch", ylabel=f"{'noise detected' if name == 'detection' else 'test accuracy'} (%)", title=kind)
            panel.set_ylim(bottom=50 if name == "detection" else 80)
    axes[1, 0].legend(fontsize=8, frameon=False)
    return common.publish(
        config.out,
        config,
        {"runs": runs},
        tables,
        {"curves": figure},
        study="web_noise",
        text="Which detector finds training images that are of no class?\n\n"
        f"Digits, {round(100 * config.share)} % of the 1,080 training images replaced, {config.epochs} epochs. "
        "Detection is the mean of the shares of noise found and of clean examples kept, in its first epoch and in the last.",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return common.command_line(study, WebNoiseConfig, "python -m experiments.studies.web_noise", arguments)


if __name__ == "__main__":
    sys.exit(main())
