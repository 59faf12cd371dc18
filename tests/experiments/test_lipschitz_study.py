"""The study of Lipschitz bounds: what it is built of, and the folder it writes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj
from experiments.studies import lipschitz, lipschitz_bounds
from experiments.studies import lipschitz_training as training

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)


def test_convolutions_are_what_their_loops_say_and_true_norms_those_of_the_matrix():
    kernel, n = RNG.normal(size=(3, 3, 2, 4)).astype(np.float32), 5
    x = RNG.normal(size=(n, n, 2)).astype(np.float32)
    for padding, true in (("circular", lipschitz_bounds.circular_norm), ("zeros", lipschitz_bounds.zeros_norm)):
        expected = np.zeros((n, n, 4))
        for i, j, a, b in np.ndindex(n, n, 3, 3):
            row, column = i + a - 1, j + b - 1
            if padding == "circular" or (0 <= row < n and 0 <= column < n):
                expected[i, j] += x[row % n, column % n] @ kernel[a, b]
        np.testing.assert_allclose(training.convolve(x, kernel, padding), expected, rtol=1e-4, atol=1e-4)
        inputs = jnp.eye(n * n * 2).reshape(-1, n, n, 2)
        matrix = np.asarray(training.convolve(inputs, kernel, padding)).reshape(n * n * 2, -1)
        assert true(kernel, n) == pytest.approx(np.linalg.norm(matrix.astype(np.float64), 2), rel=1e-5)


def test_power_iteration_comes_from_below_and_its_cost_is_counted():
    kernel = jnp.asarray(RNG.normal(size=(3, 3, 3, 4)), jnp.float32)
    found = np.asarray(lipschitz_bounds.power_estimates(kernel, jax.random.normal(jax.random.key(0), (6, 6, 3)), 200))
    true = lipschitz_bounds.circular_norm(np.asarray(kernel), 6)
    assert (found <= true * (1 + 1e-5)).all() and (np.diff(found) >= -1e-4).all() and found[-1] > 0.98 * true > found[0]
    assert lipschitz_bounds.power_flops(3, 3, 4, 6, 2) == 2 * 2 * (2 * 9 * 3 * 4 * 36)
    one, three = (lipschitz_bounds.gram_flops(3, 4, 6, t) for t in (1, 3))
    assert three - one == pytest.approx(2 * 6 * 4 * 8 * 3**3)
    assert [lipschitz.steps_at(np.array([1.0, 2.0, 3.0]), x) for x in (0.5, 2.0, 2.9, 9.0)] == [1, 2, 2, 3]


def test_networks_are_bounded_by_their_products_and_measured_exactly():
    data = training.Data(*(jnp.asarray(RNG.normal(size=(1, 6, 64)), jnp.float32), jnp.zeros((1, 6), int)) * 2)
    for network in training.NETWORKS:
        params = training.initialise(jax.random.key(1), network, 2)
        one = jax.tree.map(lambda leaf: leaf[None], params)
        found = training.measure(network, one, data, 6)
        assert (found.bounds >= found.norms * (1 - 1e-5)).all() and (found.bounds <= 1.2 * found.norms).all()
        assert found.product[0] * (1 + 1e-5) >= found.exact_product[0] >= max(found.jacobian[0], found.ratio[0]) > 0
        assert found.mean_jacobian[0] <= found.jacobian[0]
        # Without ReLU's kinks the Jacobian is the difference quotient; the ratio is the largest over pairs, by a loop.
        x = np.asarray(data.test_images[0])
        logits = np.asarray(training.forward(network, params, x))
        pairs = [(i, j) for i in range(6) for j in range(i)]
        ratios = [np.linalg.norm(logits[i] - logits[j]) / np.linalg.norm(x[i] - x[j]) for i, j in pairs]
        assert found.ratio[0] == pytest.approx(max(ratios), rel=1e-4)
        # A border of zeros makes a circular convolution one with zero padding.
        if network == "CNN, zeros":
            assert training.sizes(network) == {"conv1": 10, "conv2": 10, "conv3": 6}


def test_penalties_count_what_they_say():
    params = training.initialise(jax.random.key(2), "CNN, circular", 2)
    value = lambda name: float(training.make_penalty("CNN, circular", name, 5).apply((), params)[0])
    bounds = np.asarray(training.layer_bounds("CNN, circular", params, 5))
    assert value("Lipschitz") == pytest.approx(bounds[bounds > 1].sum(), rel=1e-5)
    convolutions = bounds[:3]
    assert value("Lipschitz, convolutions") == pytest.approx(convolutions[convolutions > 1].sum(), rel=1e-5)
    penalty = training.make_penalty("CNN, circular", "spectral norm", 5)
    norms = [np.linalg.norm(np.asarray(rj.weights.as_matrix(layer["kernel"])), 2) for layer in params.values()]
    got, _ = penalty.apply(penalty.init(jax.random.key(0), params), params)
    assert float(got) == pytest.approx(np.square(norms).sum() / 2, rel=1e-2)


def test_the_study_writes_its_folder_and_overwrites_none(tmp_path, capsys, monkeypatch):
    methods = (("MLP", "Lipschitz", (0.0, 0.1)),)
    monkeypatch.setattr(lipschitz, "METHODS", tuple(lipschitz.Method(*method) for method in methods))
    monkeypatch.setattr(lipschitz, "N_ITER", (0, 1, 5))
    monkeypatch.setattr(lipschitz, "COMPARED", ())
    arguments = ["--out", str(tmp_path), "--seeds", "2", "--kernels", "2", "--sizes", "5", "--channels", "3", "4", "--steps", "4"]
    arguments += ["--repeats", "1", "--width", "2", "--epochs", "2"]
    assert lipschitz.main(arguments) == 0
    assert "always an upper bound" in capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    plain, pressed = results["networks"]
    assert [plain["penalty"], pressed["penalty"]] == ["none", "Lipschitz"] and np.shape(plain["bounds"]) == (2, 3)
    assert np.max(pressed["bounds"]) < np.max(plain["bounds"]) and min(plain["accuracy"]) > 0.5
    ratios = np.array(results["convolutions"]["5"]["circular"])
    assert ratios.shape == (2, 3) and (np.diff(ratios, axis=1) <= 0).all() and (ratios >= 1 - 1e-5).all()
    assert (tmp_path / "networks.png").stat().st_size > 10_000 and (tmp_path / "cost.png").stat().st_size > 10_000
    assert lipschitz.main(arguments) == 2 and "--force" in capsys.readouterr().err


def test_impossible_settings_are_refused():
    for wrong in ({"seeds": 0}, {"batch_size": 0}, {"sizes": (2,)}, {"n_iter": 0}):
        with pytest.raises(ValueError, match=f"LipschitzConfig: {next(iter(wrong))}"):
            lipschitz.LipschitzConfig(**wrong)
