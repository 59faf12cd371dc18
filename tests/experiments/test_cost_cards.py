"""No card lies about its cost: what XLA counts for every technique, at a size that users have, is within what its card states."""

import os
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest

from experiments.bench import cards
from experiments.bench.cards import case, measuring, sentence
from regjax import catalog

TECHNIQUES = catalog.techniques()


@pytest.mark.parametrize("stage", catalog.STAGES)
def test_every_technique_is_counted_or_says_why_not(stage):
    counted, uncounted = cards.cases(stage), cards.uncounted(stage)
    names = {name for name in TECHNIQUES if name.startswith(f"{stage}.")}
    assert set(counted) | set(uncounted) == names and not set(counted) & set(uncounted)
    assert all(len(reason.split()) > 2 for reason in uncounted.values())
    for name in names:
        cost = catalog.card(name).sections["Cost"]
        assert (sentence.stated(cost) is not None) == (name in counted), f"{name}: {cost}"


@pytest.mark.slow
@pytest.mark.parametrize("stage", catalog.STAGES)
def test_what_is_counted_is_what_the_cards_state(stage):
    """In a process of its own: the tests' XLA flags, which save compiling, change what is counted."""
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "experiments.bench.cards", stage]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(cards.cases(stage))


def test_a_card_that_lies_is_found():
    copied = case.case(lambda x: 2 * x, case.normal(100, 200))
    counts = sentence.measured(copied)
    assert counts == pytest.approx((1.0, 1.0, 0.0), abs=0.01)
    text = sentence.sentence(counts, copied.of, copied.at)
    assert text == (
        "XLA at [100, 200]: at most 1.1 times the FLOPs and 1.1 times the bytes of a copy of its arguments, and 0 times its "
        "memory more."
    )
    wrapped = text.replace(" and 1.1", "\n      and 1.1")
    assert sentence.stated(f"One pass.\n{wrapped}") == ((1.1, 1.1, 0.0), copied.of, copied.at)
    faults = lambda cost, at=counts: sentence.faults("f", cost, copied, sentence.Counts(*at))
    assert faults(wrapped) == []
    assert "states no bound" in faults("One pass.")[0]
    assert faults(wrapped, (1.0, 2.0, 0.0)) == ["f: bytes 2, the card says at most 1.1"]
    assert faults(wrapped, (0.5, 1.0, 0.0)) == ["f: flops 0.5, the card's bound of 1.1 is too wide"]
    assert "the card says a sum at [100, 200]" in faults(wrapped.replace("a copy of its arguments", "a sum"))[0]


def test_bounds_leave_a_tenth_and_two_digits():
    for value, most in ((0.0, 0), (0.001, 0.01), (1.0, 1.1), (1.01, 1.2), (0.0523, 0.058), (123.0, 140), (48.2, 54)):
        assert sentence.bound(value) == pytest.approx(most), value


def test_times_are_of_both_by_turns_and_donated_arguments_are_fresh():
    size = 300
    slow = lambda x: jax.lax.fori_loop(0, 40, lambda _, y: jnp.tanh(y @ x), x)
    for made in (case.case(slow, case.normal(size, size)), case.case(slow, case.normal(size, size), donate=0)):
        times = measuring.timed(made, turns=3, seconds=1e-4)
        assert times["low"] <= times["ratio"] <= times["high"] and times["ms"] > times["plain_ms"] > 0
        assert times["ratio"] > 3  # forty products of 54 MFLOP beside a copy of 90,000 numbers
        counts = sentence.measured(made)
    row = measuring.entry(made, counts, {**times, "ratio": 123.4, "low": 0.5, "high": 0.001, "ms": 7.0})
    machine = {"device": "d", "threads": 1, "cores": 2, "jax": "0"}
    text = measuring.markdown({"machine": machine, "turns": 3, "techniques": {"weights.slow": row}})
    assert "## Weights" in text and "| `slow` | a copy of its arguments | [300, 300] | 123 (0.50 to 0.001) | 7.00 |" in text


def test_gradients_are_of_the_named_arguments():
    x, y = case.normal(3, 4), case.normal(3, 4, seed=1)
    gradient, value = case.with_gradient(lambda x, y: x * y, (0,))(x, y)
    assert jnp.allclose(gradient[0], y / 12) and jnp.allclose(value, x * y)


SOURCE = '''def technique():
    """Something.

    Cost:
      One pass,
      no more.
{old}
    Example:
      >>> 1
      1
    """
'''


def test_sentences_are_written_into_the_source_and_replaced(tmp_path):
    path = tmp_path / "written.py"
    old = "      XLA at [1]: at most 9 times the FLOPs and 9 times\n      the bytes of a sum, and 9 times its memory more.\n"
    new = "XLA at [2]: at most 1 times the FLOPs and 1 times the bytes of a copy of its arguments, and 0 times its memory more."
    for before in (SOURCE.format(old=""), SOURCE.format(old=old)):
        path.write_text(before)
        module = types.ModuleType("written")
        exec(compile(before, str(path), "exec"), module.__dict__)
        assert sentence.write(module.technique, new)
        after = path.read_text()
        assert re.search(r"no more\.\n      XLA at \[2\][^>]*memory more\.\n\n    Example:\n", after)
        assert max(map(len, after.splitlines())) <= sentence.WIDTH and after.count("XLA at") == 1
        assert sentence.stated(after.split("Cost:")[1].split("Example:")[0]) == ((1, 1, 0), "a copy of its arguments", "[2]")
