"""Plots of spectra show what is measured."""

import matplotlib.pyplot as plt
import numpy as np

import regjax as rj
from experiments import plots


def test_the_area_counts_eigenvalues_and_every_ritz_value_is_marked():
    figure, axes = plt.subplots()
    values = np.array([[0.0, 0.1, 2.0], [0.0, 0.3, 2.0]])
    weights = np.array([[0.9, 0.05, 0.05], [0.8, 0.2, 0.0]])
    plots.spectral_density(axes, values, weights, num_rows=100, label="batch")
    curve, *marks = axes.lines
    x, y = curve.get_data()
    assert abs(np.trapezoid(y, x) - 100) < 0.01 and curve.get_label() == "batch" and axes.get_yscale() == "log"
    want = rj.diagnostics.spectral_density(values.astype(np.float32), weights.astype(np.float32))
    np.testing.assert_allclose(y, 100 * want.density, rtol=1e-5)
    for mark, expected in zip(marks, ([0, 0.1, 2], [0, 0.3]), strict=True):
        np.testing.assert_allclose(mark.get_xdata(), expected, rtol=1e-6)
    plots.spectral_density(axes, values[0], weights[0], num_rows=1)
    plt.close(figure)
