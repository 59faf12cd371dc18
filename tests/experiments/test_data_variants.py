"""Label noise, long tails, subsets and the validation part: exact counts, nesting, and refusals that name what is wrong."""

import dataclasses

import numpy as np
import pytest

from experiments import data

RNG = np.random.default_rng(0)
LABELS = RNG.choice(10, size=1437, p=np.arange(5, 15) / 95)
COUNTS = np.bincount(LABELS)


def confusion(clean, noisy):
    out = np.zeros((10, 10), int)
    for y, z in zip(clean, noisy, strict=True):
        out[y, z] += 1
    return out


def test_ranks_are_a_random_permutation_within_each_class():
    ranks = data.class_ranks(LABELS, 0)
    for k in range(10):
        assert sorted(ranks[k == LABELS]) == list(range(COUNTS[k]))
    np.testing.assert_array_equal(ranks, data.class_ranks(LABELS, 0))
    assert (ranks != data.class_ranks(LABELS, 1)).mean() > 0.9
    # Each example is first of its class equally often: 4 examples, 4,000 seeds, 4.5 standard deviations.
    first = np.mean([data.class_ranks(np.zeros(4, int), s) == 0 for s in range(4000)], axis=0)
    assert np.abs(first - 0.25).max() < 4.5 * np.sqrt(0.25 * 0.75 / 4000)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.137, 0.5])
def test_the_validation_part_is_stratified_and_disjoint(fraction):
    stays, leaves = data.stratified_split(LABELS, fraction, 3)
    assert sorted([*stays, *leaves]) == list(range(len(LABELS)))
    assert len(leaves) == round(fraction * len(LABELS))
    assert np.all(np.diff(stays) > 0) and np.all(np.diff(leaves) > 0)
    share = fraction * COUNTS
    got = np.bincount(LABELS[leaves], minlength=10)
    assert np.all((got >= np.floor(share)) & (got <= np.ceil(share)))


def test_balanced_subsets_are_exact_and_nested():
    ten, twenty = data.balanced_subset(LABELS, 10, 0), data.balanced_subset(LABELS, 20, 0)
    np.testing.assert_array_equal(np.bincount(LABELS[ten]), [10] * 10)
    np.testing.assert_array_equal(np.bincount(LABELS[twenty]), [20] * 10)
    assert set(ten) < set(twenty)
    assert set(ten) != set(data.balanced_subset(LABELS, 10, 1))


def test_long_tails_have_the_published_counts():
    # CIFAR-10-LT and CIFAR-100-LT with ratio 100 as in the literature: 12,406 and 10,847 images.
    ten = data.long_tail_counts([5000] * 10, 100.0)
    assert ten.tolist() == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50] and ten.sum() == 12406
    assert data.long_tail_counts([500] * 100, 100.0).sum() == 10847
    # 500 / 100 is 4.999... in floating point.
    assert data.long_tail_counts([500] * 10, 100.0)[[0, -1]].tolist() == [500, 5]
    assert data.long_tail_counts([7, 7, 7], 1.0).tolist() == [7, 7, 7]
    assert data.long_tail_counts([3, 3], 100.0).tolist() == [3, 1]
    assert data.long_tail_counts([4], 10.0).tolist() == [4]


def test_a_long_tail_takes_all_that_the_smallest_class_allows():
    counts = data.long_tail_counts(COUNTS, 20.0)
    for k in range(10):
        assert counts[k] == int(counts[0] * 20.0 ** (-k / 9)) <= COUNTS[k]
    one_more = [int((counts[0] + 1) * 20.0 ** (-k / 9)) for k in range(10)]
    assert any(n > have for n, have in zip(one_more, COUNTS, strict=True))
    rows = data.long_tail_subset(LABELS, 20.0, 0)
    np.testing.assert_array_equal(np.bincount(LABELS[rows]), counts)
    small = data.long_tail_subset(LABELS, 20.0, 0, largest=40)
    assert np.bincount(LABELS[small])[0] == 40 and set(small) < set(rows)


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.45, 1.0])
def test_symmetric_noise_is_exact(rate):
    noisy = data.symmetric_noise(LABELS, 10, rate, 0)
    table = confusion(LABELS, noisy)
    flipped = COUNTS - np.diag(table)
    assert noisy.dtype == np.int32 and flipped.sum() == round(rate * len(LABELS))
    assert np.all(np.abs(flipped - rate * COUNTS) < 1)
    # Uniform over the nine others: chi-squared of each class has 8 degrees of freedom, so all ten 80; 160 is beyond 1e-6.
    if rate:
        off = table[~np.eye(10, dtype=bool)].reshape(10, 9)
        expected = flipped[:, None] / 9
        assert np.sum((off - expected) ** 2 / expected) < 160


def test_symmetric_noise_over_all_classes_keeps_a_tenth_of_the_chosen():
    labels = np.repeat(np.arange(10), 1000)
    wrong = np.mean(data.symmetric_noise(labels, 10, 0.4, 0, over="all") != labels)
    assert abs(wrong - 0.36) < 4.5 * np.sqrt(0.4 * 0.09 / 10000)
    assert np.mean(data.symmetric_noise(labels, 10, 0.4, 0) != labels) == 0.4


@pytest.mark.parametrize("targets", [None, data.CONFUSIONS["digits"], data.CONFUSIONS["cifar10"]])
def test_asymmetric_noise_has_the_exact_confusion(targets):
    wrong = np.array([(k + 1) % 10 for k in range(10)] if targets is None else targets)
    table = confusion(LABELS, data.asymmetric_noise(LABELS, 10, 0.3, 0, targets=targets))
    affected = wrong != np.arange(10)
    flips = table[np.arange(10), wrong] * affected
    assert flips.sum() == round(0.3 * COUNTS[affected].sum())
    assert np.all(np.abs(flips - 0.3 * COUNTS * affected) < 1)
    np.testing.assert_array_equal(np.diag(table) + flips, COUNTS)


def test_noise_is_nested_over_rates_and_differs_between_seeds():
    for noise in (data.symmetric_noise, data.asymmetric_noise):
        little, much = noise(LABELS, 10, 0.2, 0), noise(LABELS, 10, 0.4, 0)
        flipped = little != LABELS
        np.testing.assert_array_equal(little[flipped], much[flipped])
        np.testing.assert_array_equal(little, noise(LABELS, 10, 0.2, 0))
        assert np.any(little != noise(LABELS, 10, 0.2, 1))


def test_one_seed_keeps_and_flips_independently():
    # Were the streams the same, the examples kept by a subset would be those that the noise flips first.
    kept = np.zeros(len(LABELS), bool)
    kept[data.balanced_subset(LABELS, 20, 0)] = True
    flipped = data.symmetric_noise(LABELS, 10, 0.5, 0) != LABELS
    assert abs(np.mean(flipped[kept]) - 0.5) < 0.17  # 200 draws: 0.5 +- 4.8 standard deviations


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: data.class_ranks(LABELS, -1), "class_ranks: seed must be an integer >= 0, got -1"),
        (lambda: data.class_ranks(LABELS * 1.0, 0), "class_ranks: labels must be a vector of non-negative integers"),
        (lambda: data.class_ranks(LABELS - 1, 0), "labels must be a vector of non-negative integers, got int64[1437]"),
        (lambda: data.stratified_split(LABELS, 1.0, 0), "fraction must be a finite number in [0, 1), got 1.0"),
        (lambda: data.balanced_subset(LABELS, 0, 0), "per_class must be an integer >= 1, got 0"),
        (lambda: data.balanced_subset(LABELS, 2.5, 0), "per_class must be an integer >= 1, got 2.5"),
        (lambda: data.balanced_subset([0, 0, 1], 2, 0), "per_class must be at most 1, the size of the smallest class, got 2"),
        (lambda: data.long_tail_counts([5, 0], 2.0), "counts must be a vector of positive integers"),
        (lambda: data.long_tail_subset(LABELS, 0.5, 0), "ratio must be a finite number >= 1, got 0.5"),
        (lambda: data.long_tail_counts([5, 5], 2.0, 6), "small enough for class 0, which has 5 of 6 examples, got 6"),
        (lambda: data.symmetric_noise(LABELS, 10, 1.2, 0), "rate must be a finite number in [0, 1], got 1.2"),
        (lambda: data.symmetric_noise(LABELS, 10, float("nan"), 0), "rate must be a finite number in [0, 1], got nan"),
        (lambda: data.symmetric_noise(LABELS, 9, 0.1, 0), "labels must be below num_classes = 9, got 9"),
        (lambda: data.symmetric_noise(LABELS, 10, 0.1, 0, over="other"), "(did you mean 'others'?), got 'other'"),
        (lambda: data.asymmetric_noise(LABELS, 10, 0.1, 0, targets=[1, 0]), "targets must be 10 class ids below 10, got [1, 0]"),
        (lambda: data.asymmetric_noise(LABELS, 10, 0.1, 0, targets=[10] * 10), "targets must be 10 class ids below 10"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("name", "", "a name"),
        ("name", None, "a name"),
        ("test_split", " ", "a name"),
        ("data_dir", "", "a folder or None"),
        ("data_dir", 3, "a folder or None"),
        ("batch_size", 0, "an integer >= 1"),
        ("batch_size", True, "an integer >= 1"),
        ("batch_size", 1.5, "an integer >= 1"),
        ("seed", -1, "an integer >= 0"),
        ("validation", 1.0, "a finite number in [0, 1)"),
        ("validation", -0.1, "a finite number in [0, 1)"),
        ("label_noise", 1.5, "a finite number in [0, 1]"),
        ("label_noise", float("nan"), "a finite number in [0, 1]"),
        ("label_noise", "0.5", "a finite number in [0, 1]"),
        ("noise_kind", "symetric", "one of 'symmetric', 'asymmetric', 'confusion' (did you mean 'symmetric'?)"),
        ("noise_over", "none", "one of 'others', 'all'"),
        ("imbalance", 0.5, "a finite number >= 1"),
        ("imbalance", float("inf"), "a finite number >= 1"),
        ("per_class", 0, "an integer >= 1"),
        ("normalise", "whiten", "one of 'standard', 'unit'"),
    ],
)
def test_a_bad_field_is_named_with_its_value(field, value, expected):
    with pytest.raises(ValueError) as error:
        data.DataConfig(**{field: value})
    assert str(error.value) == f"DataConfig: {field} must be {expected}, got {value!r}"


def test_the_config_is_a_value():
    config = data.DataConfig(label_noise=0.2, per_class=np.int64(3))
    assert config == dataclasses.replace(config) and hash(config) == hash(dataclasses.replace(config))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1
    with pytest.raises(ValueError, match="noise_kind must be 'symmetric' or 'asymmetric' but for digits, mnist, cifar10"):
        data.DataConfig(name="svhn_cropped", noise_kind="confusion")
