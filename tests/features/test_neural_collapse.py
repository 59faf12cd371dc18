"""Neural collapse as an aim, against loop-written float64 references and the published values."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

import regjax as rj

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(16, 5))
LABELS = RNG.integers(0, 3, size=16)  # class 3 is absent
CENTERS = RNG.normal(size=(4, 5))
WHERE = RNG.random(16) < 0.6
VARIANTS = ("mean_min_angle", "min_angle", "cosine")


def within(features, labels, centers, where=None):
    total = 0.0
    for k in range(len(centers)):
        squares, count = 0.0, 0
        for i in range(len(features)):
            if labels[i] == k and (where is None or where[i]):
                squares += sum((features[i][d] - centers[k][d]) ** 2 for d in range(len(centers[k])))
                count += 1
        total += max(squares / (count + 1e-10), 1e-12)
    return total / len(centers)


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def between(centers, variant):
    k = len(centers)
    m = centers - sum(centers) / k
    cosines = [[cosine(m[i], m[j]) for j in range(k)] for i in range(k)]
    if variant == "cosine":
        return math.sqrt(sum((-1 / (k - 1) if i == j else cosines[i][j]) ** 2 for i in range(k) for j in range(k)))
    nearest = [max(cosines[i][j] for j in range(k) if j != i) for i in range(k)]
    if variant == "min_angle":
        return -math.acos(max(nearest))
    return -sum(math.acos(c) for c in nearest) / k


def test_equal_their_references(x64):
    technique = rj.features.neural_collapse(4, 5, lambda_w=0.3, lambda_b=0.7, variant="min_angle")

    @jax.jit
    def run(features, centers):
        distances = [rj.features.within_class_collapse(features, LABELS, centers, where=where) for where in (None, WHERE)]
        angles = [rj.features.between_class_angle(centers, variant=variant) for variant in VARIANTS]
        return distances, angles, technique.loss(centers, features, LABELS, 0, where=WHERE)

    distances, angles, both = run(FEATURES, CENTERS)
    np.testing.assert_allclose(distances, [within(FEATURES, LABELS, CENTERS, where) for where in (None, WHERE)], rtol=1e-12)
    np.testing.assert_allclose(angles, [between(CENTERS, variant) for variant in VARIANTS], rtol=1e-12)
    want = 0.3 * within(FEATURES, LABELS, CENTERS, WHERE) + 0.7 * between(CENTERS, "min_angle")
    assert both == pytest.approx(want, rel=1e-12)


within_class_collapse = jax.jit(rj.features.within_class_collapse)
between_class_angle = jax.jit(rj.features.between_class_angle, static_argnames="variant")


def test_published_values(x64):
    square = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    padded = np.pad(square, ((0, 0), (0, 2)))
    assert between_class_angle(np.eye(4)) == pytest.approx(-1.9106332, abs=5e-8)
    assert between_class_angle(np.eye(4), variant="min_angle") == pytest.approx(-1.9106332, abs=5e-8)
    assert between_class_angle(np.eye(4), variant="cosine") == pytest.approx(4 / 3, abs=1e-12)
    assert between_class_angle(padded) == pytest.approx(-math.pi / 2, abs=1e-12)
    assert between_class_angle(padded, variant="cosine") == pytest.approx(2.108185, abs=5e-7)
    assert within_class_collapse(CENTERS[LABELS], LABELS, CENTERS) == pytest.approx(1e-12, rel=1e-9)


def test_gradients_equal_their_closed_forms(x64):
    by_features, by_centers = jax.jit(jax.grad(rj.features.within_class_collapse, argnums=(0, 2)))(
        jnp.asarray(FEATURES), LABELS, jnp.asarray(CENTERS)
    )
    counts = np.bincount(LABELS, minlength=4)
    want = 2 * (FEATURES - CENTERS[LABELS]) / (4 * counts[LABELS][:, None])
    np.testing.assert_allclose(by_features, want, rtol=1e-9)
    moved = np.zeros((4, 5))
    for i, k in enumerate(LABELS):
        moved[k] -= want[i]
    np.testing.assert_allclose(by_centers, moved, rtol=1e-9, atol=1e-15)


def test_copies_of_the_batch_or_of_one_class_change_nothing(x64):
    one = float(within_class_collapse(FEATURES, LABELS, CENTERS))
    copied = within_class_collapse(np.tile(FEATURES, (3, 1)), np.tile(LABELS, 3), CENTERS)
    more = np.concatenate([np.arange(16), np.flatnonzero(LABELS == 1)])
    assert copied == pytest.approx(one, rel=1e-9)
    assert within_class_collapse(FEATURES[more], LABELS[more], CENTERS) == pytest.approx(one, rel=1e-9)


def test_the_angle_is_invariant_to_shift_scale_and_rotation(x64):
    rotation = np.linalg.qr(RNG.normal(size=(5, 5)))[0]
    run = jax.jit(lambda c: [rj.features.between_class_angle(c, variant=v) for v in VARIANTS])
    np.testing.assert_allclose(run(3 * CENTERS @ rotation + 7), run(CENTERS), rtol=1e-10)


def test_descent_on_the_angle_ends_at_the_simplex():
    def descend(centers, _):
        return centers - 0.05 * jax.grad(rj.features.between_class_angle)(centers), None

    centers = jax.random.normal(jax.random.key(0), (4, 8))
    centers = jax.jit(lambda c: jax.lax.scan(descend, c, length=1000)[0])(centers)
    assert between_class_angle(centers, variant="min_angle") < -math.acos(-1 / 3) + 0.05


def test_examples_that_do_not_count_may_hold_anything():
    features = jnp.where(WHERE[:, None], FEATURES, jnp.nan).astype(jnp.float32)
    labels = jnp.where(WHERE, LABELS, -1)
    value, gradient = jax.jit(jax.value_and_grad(rj.features.within_class_collapse))(features, labels, CENTERS, where=WHERE)
    assert value == pytest.approx(within(FEATURES, LABELS, CENTERS, WHERE), rel=1e-6)
    assert np.all(np.asarray(gradient)[~WHERE] == 0) and np.all(np.isfinite(gradient))


def test_a_wrong_label_is_seen():
    for wrong in (-1, 4):
        labels = LABELS.copy()
        labels[2] = wrong
        assert np.isnan(within_class_collapse(FEATURES, labels, CENTERS))


def test_labels_of_eight_bits_and_many_classes(x64):
    labels, centers = np.array([3, 200], np.uint8), RNG.normal(size=(300, 5))
    got = within_class_collapse(FEATURES[:2], labels, centers)
    assert got == pytest.approx(within(FEATURES[:2], labels, centers), rel=1e-12)


def test_gradients_are_routed_and_scaled_as_the_authors_train(x64):
    features, centers = jnp.asarray(FEATURES), jnp.asarray(CENTERS)

    @jax.jit
    def run(centers, features):
        def gradients(lambda_w, scale=None):
            technique = rj.features.neural_collapse(4, 5, lambda_w=lambda_w, lambda_b=0.4, center_gradient_scale=scale)
            return jax.grad(technique.loss, argnums=(0, 1))(centers, features, LABELS, 0)

        distance = jax.grad(rj.features.within_class_collapse, argnums=(2, 0))(features, LABELS, centers)
        angle = jax.grad(rj.features.between_class_angle)(centers)
        return distance, angle, gradients(0.05), gradients(0.05, 3.0), gradients(0.0)

    distance, angle, (by_centers, by_features), tripled, (alone, none) = run(centers, features)
    np.testing.assert_allclose(by_centers, distance[0] + 8 * angle, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(by_features, 0.05 * distance[1], rtol=1e-9)
    np.testing.assert_allclose(tripled[0], 3 * (0.05 * distance[0] + 0.4 * angle), rtol=1e-9, atol=1e-14)
    # Without the distance: the angle alone, on the centres alone.
    np.testing.assert_allclose(alone, 0.4 * angle, rtol=1e-9)
    assert not none.any()


def test_starts_at_its_step_and_follows_schedules_with_one_trace():
    ramp = optax.linear_schedule(0.0, 0.1, 10)
    technique = rj.features.neural_collapse(4, 5, lambda_w=ramp, lambda_b=0.2, start_step=3, center_gradient_scale=1.0)
    features, centers = jnp.asarray(FEATURES, jnp.float32), jnp.asarray(CENTERS, jnp.float32)
    traces = []

    @jax.jit
    def run(step):
        traces.append(1)
        return jax.value_and_grad(technique.loss, argnums=(0, 1))(centers, features, LABELS, step)

    for step in (0, 2):
        value, gradient = run(step)
        assert value == 0 and not any(g.any() for g in gradient)
    for step in (3, 8):
        want = 0.01 * step * within(FEATURES, LABELS, CENTERS) + 0.2 * between(CENTERS, "mean_min_angle")
        assert run(step)[0] == pytest.approx(want, rel=1e-5)
    assert len(traces) == 1


def test_traced_strengths():
    @jax.jit
    def run(strength):
        technique = rj.features.neural_collapse(4, 5, lambda_w=strength, lambda_b=strength)
        return jax.value_and_grad(technique.loss)(jnp.asarray(CENTERS, jnp.float32), FEATURES, LABELS, 0)

    want = 0.4 * (within(FEATURES, LABELS, CENTERS) + between(CENTERS, "mean_min_angle"))
    assert run(0.4)[0] == pytest.approx(want, rel=1e-5)
    value, gradient = run(0.0)
    assert value == 0 and not gradient.any()


def test_initial_centers_are_standard_normal():
    centers = np.asarray(rj.features.neural_collapse(100, 100).init(jax.random.key(0)))
    assert centers.dtype == np.float32 and centers.shape == (100, 100)
    assert abs(centers.mean()) < 4 / 100 and abs(centers.std() - 1) < 4 / (100 * math.sqrt(2))


def test_singular_geometries_have_finite_gradients():
    @jax.jit
    def run(centers, features, where):
        def total(centers, features):
            out = rj.features.within_class_collapse(features, jnp.array([0, 1]), centers, where=where)
            return out + sum(rj.features.between_class_angle(centers, variant=v) for v in VARIANTS)

        return jax.value_and_grad(total, argnums=(0, 1))(centers, features)

    line = jnp.array([[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])  # the middle one is the mean: no direction
    for centers in (jnp.zeros((3, 2)), jnp.ones((3, 2)), line, jnp.array([[0.0, 0.0], [0.0, 0.0], [1.0, 2.0]]), 1e4 * line):
        for where in (jnp.array([True, True]), jnp.array([False, False])):
            value, gradient = run(centers, centers[:2], where)
            assert jnp.isfinite(value) and all(jnp.all(jnp.abs(g) < 1e4) for g in gradient)


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_gradients_on_a_mesh_equal_one_device(kind):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(getattr(AxisType, kind),))
    technique = rj.features.neural_collapse(8, 5)
    centers = RNG.normal(size=(8, 5)).astype(np.float32)
    run = jax.jit(jax.value_and_grad(technique.loss, argnums=(0, 1)))
    features = FEATURES.astype(np.float32)
    want = run(centers, features, LABELS, 0)
    put = lambda x, *spec: jax.device_put(x, jax.NamedSharding(mesh, jax.P(*spec)))
    # The harder case, centres divided as well; the contracts have them on every device.
    with jax.set_mesh(mesh):
        got = run(put(centers, "data"), put(features, "data"), put(LABELS, "data"), 0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)


@pytest.mark.parametrize("check_vma", [True, False])
def test_the_mean_of_gradients_over_devices_is_that_of_the_whole_batch(check_vma):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    whole, split = rj.features.neural_collapse(4, 5), rj.features.neural_collapse(4, 5, axis_name="data")
    centers, features = CENTERS.astype(np.float32), FEATURES.astype(np.float32)

    def local(centers, features, labels):
        centers = jax.lax.pcast(centers, "data", to="varying") if check_vma else centers
        value, gradient = jax.value_and_grad(split.loss)(centers, features, labels, 0)
        return jax.lax.pmean(value, "data"), jax.lax.pmean(gradient, "data")

    specs = (jax.P(), jax.P("data"), jax.P("data"))
    mapped = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=jax.P(), check_vma=check_vma)
    got = jax.jit(mapped)(centers, features, LABELS)
    want = jax.jit(jax.value_and_grad(whole.loss))(centers, features, LABELS, 0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)
