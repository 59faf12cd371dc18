"""How much label noise may be ignored? Logistic regression on random features, as if every label were right.

``python -m experiments.studies.ignore_noise``: digits, 512 random ReLU features, labels flipped to any other class or to the
next one. The relative signal strength says where ignoring has to end. After Zhu et al., 2024, arXiv 2411.00079, with random
features in place of self-supervised ones.
"""

import dataclasses
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

import regjax as rj
from experiments import plots
from experiments.data import asymmetric_noise, symmetric_noise
from experiments.studies import common

CLASSES = 10
NOISES = ("symmetric", "next class")


@dataclasses.dataclass(frozen=True)
class IgnoreNoiseConfig:
    """The study.

    Attributes:
      noises: where a flipped label goes: to any other class, or to the next one.
      shares: of the training labels that are flipped, each in [0, 1].
      inverse_penalties: of the logistic regressions; small ones regularise.
      features: how many random ReLU features.
      iterations: of L-BFGS at most.
      seeds: how many; each has its own split, features and noise.
      out: the folder of results.
      force: replace the results that the folder holds.
    """

    noises: tuple[str, ...] = NOISES
    shares: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9)
    inverse_penalties: tuple[float, ...] = (0.01, 100.0)
    features: int = 512
    iterations: int = 100
    seeds: int = 3
    out: Path = Path("runs/ignore_noise")
    force: bool = False

    def __post_init__(self) -> None:
        """Refuses unknown names and impossible numbers."""
        common.check("IgnoreNoiseConfig", "noises", self.noises, NOISES)
        if self.seeds < 1 or not all(0 <= share <= 1 for share in self.shares):
            raise ValueError(f"IgnoreNoiseConfig: seeds must be at least 1 and shares in [0, 1], got {self}")


def flip(labels: np.ndarray, kind: str, share: float, seed: int) -> np.ndarray:
    """Labels of which a share is wrong."""
    if kind == "symmetric":
        return symmetric_noise(labels, CLASSES, share, seed)
    return asymmetric_noise(labels, CLASSES, share, seed)


def noisy_posterior(clean: np.ndarray, kind: str, share: float) -> np.ndarray:
    """The class probabilities of flipped labels, given those of the true ones."""
    wrong = (1 - clean) / (CLASSES - 1) if kind == "symmetric" else np.roll(clean, 1, axis=1)
    return (1 - share) * clean + share * wrong


def fit(features: np.ndarray, labels: np.ndarray, inverse_penalty: float, iterations: int) -> LogisticRegression:
    """Logistic regression that knows of no noise; stopped early where it has not converged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LogisticRegression(C=inverse_penalty, max_iter=iterations).fit(features, labels)


def run(seed: int, config: IgnoreNoiseConfig) -> dict[str, list[list[float]]]:
    """Test accuracies of one seed, by noise and penalty; the mean relative signal strength, and where it is 0."""
    rng = np.random.default_rng(seed)
    images, labels = load_digits(return_X_y=True)
    order, weights = rng.permutation(len(labels)), rng.normal(size=(64, config.features)) / 8
    features = np.maximum(StandardScaler().fit_transform(images) @ weights, 0)
    train, test = order[:1080], order[1080:]
    # The posteriors of the true labels are unknown: those of a model fitted to true labels stand for them.
    clean = fit(features[train], labels[train], config.inverse_penalties[0], config.iterations).predict_proba(features[test])
    strength = jax.jit(rj.diagnostics.relative_signal_strength)
    measured: dict[str, list[list[float]]] = {}
    for kind in config.noises:
        rows = measured[kind] = []
        for share in config.shares:
            noisy = flip(labels[train], kind, share, seed)
            signal = np.asarray(strength(clean.astype(np.float32), noisy_posterior(clean, kind, share).astype(np.float32)))
            models = [fit(features[train], noisy, c, config.iterations) for c in config.inverse_penalties]
            scores = [100 * model.score(features[test], labels[test]) for model in models]
            rows.append(common.rounded([*scores, signal.mean(), 100 * np.mean(signal < 1e-6)]))
    return measured


def study(config: IgnoreNoiseConfig) -> str:
    """Fits every model on every seed, and writes the folder of results; returns the tables and where they lie."""
    common.claim(config.out, config.force)
    with threadpool_limits(1):  # matrices this small only wait for each other's threads
        runs = [run(seed, config) for seed in range(config.seeds)]
    names = [f"C = {c:g}" for c in config.inverse_penalties]
    header = ("flipped", *(f"accuracy %, {name}" for name in names), "signal strength", "none left at %")
    size = (4.2 * len(config.noises), 3.4)
    figure, axes = plt.subplots(1, len(config.noises), figsize=size, layout="constrained", squeeze=False)
    tables = {}
    for panel, kind in zip(axes[0], config.noises, strict=True):
        values = np.array([measured[kind] for measured in runs])  # [seed, share, column]
        rows = []
        for at, share in enumerate(config.shares):
            cells = [common.statistic(values[:, at, column]) for column in range(values.shape[2])]
            digits = [1] * len(names) + [3, 1]
            rows.append((f"{100 * share:g} %", *(common.shown(c, digits=d) for c, d in zip(cells, digits, strict=True))))
        tables[f"{kind.capitalize()}, mean ± standard error over {config.seeds} seeds"] = common.Table(header, rows)
        x = 100 * np.array(config.shares)
        for column, name in enumerate(names):
            plots.seed_curve(panel, x, values[:, :, column], label=name)
        panel.plot(x, 100 * values[:, :, -2].mean(0), color="#888888", linestyle="--", label="100 x signal strength")
        panel.set(xlabel="flipped labels (%)", ylabel="test accuracy (%)", ylim=(0, 100), title=kind)
    axes[0, 0].legend(fontsize=8, frameon=False)
    return common.publish(
        config.out,
        config,
        {"columns": header[1:], "runs": runs},
        tables,
        {"accuracy": figure},
        study="ignore_noise",
        text="How much label noise may be ignored?\n\n"
        f"Digits, {config.features} random ReLU features, logistic regression on 1,080 examples. The signal strength is "
        "`regjax.diagnostics.relative_signal_strength` of a model fitted to true labels, mean over test images; the last "
        "column is the share of test images where it is 0.",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return common.command_line(study, IgnoreNoiseConfig, "python -m experiments.studies.ignore_noise", arguments)


if __name__ == "__main__":
    sys.exit(main())
