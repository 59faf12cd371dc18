"""Compiled programs are kept on disk, and no recipe compiles its step twice."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from experiments import commands
from experiments.engine import RunConfig, SeedData, Task, make_pipeline
from experiments.models import ModelConfig
from experiments.recipes import RECIPES

OPTIONS = ("jax_compilation_cache_dir", "jax_compilation_cache_max_size", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture
def no_folder():
    """As a command finds it: no folder is set; afterwards the tests' own is again."""
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@dataclasses.dataclass(frozen=True)
class Config:
    """A command.

    Attributes:
      seeds: how many.
    """

    seeds: int = 2


PRESETS = {"one": ("one seed", Config(1)), "few": ("some seeds", Config(3))}


@pytest.mark.parametrize(("config", "arguments"), [(Config, ["--seeds", "5"]), (PRESETS, ["few", "--seeds", "5"])])
def test_programs_are_kept_unless_a_flag_says_no(config, arguments, no_folder, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert commands.parse(config, [*arguments, "--no-program-cache"], "x") == Config(5)
    assert jax.config.jax_compilation_cache_dir is None
    assert commands.parse(config, arguments, "x") == Config(5)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / ".cache" / "regjax" / "programs")
    assert jax.config.jax_compilation_cache_max_size == commands.MOST_BYTES


def test_a_folder_that_was_chosen_stands(no_folder, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    commands.keep_programs()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)
    assert commands.parse(PRESETS, ["one"], "x") == Config(1)


def test_what_was_compiled_once_is_found_on_disk(no_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    commands.keep_programs()
    compilation_cache.reset_cache()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    seen = []
    for _ in range(2):
        with commands.compiling() as watched:
            jax.jit(lambda x: jnp.sin(x) @ x).lower(jax.ShapeDtypeStruct((3, 3), jnp.float32)).compile()
        seen += watched
        jax.clear_caches()
    assert [(one.programs, one.kept) for one in seen] == [(1, 0), (1, 1)]
    assert all(0 < one.seconds < 60 for one in seen)


@pytest.fixture(scope="module")
def task():
    """Two seeds of tiny images, fewer than a recipe would see."""
    random = np.random.default_rng(0)
    images = random.normal(size=(1, 40, 8, 8, 1)).astype(np.float32)
    labels = (np.arange(40) % 10)[None].astype(np.int32)
    config = RunConfig(model=ModelConfig(width=8, depth=2), epochs=2, points=1)
    return Task(SeedData(images, labels, labels, images[:, :8], labels[:, :8]), (0,), 10, 20, config)


def batch_of(task, step):
    index = jnp.arange(20) + 20 * (step % 2)
    return {"image": jnp.asarray(task.data.images[0])[index], "label": jnp.asarray(task.data.labels[0])[index], "index": index}


def started(name, task):
    """The step of a recipe and a function that makes its first state."""
    pipeline = make_pipeline(name, task, {})
    params, model_state = jax.tree.map(lambda x: x[0], task.initial)
    return pipeline.step, lambda: pipeline.init(jax.random.key(0), params, model_state, labels=jnp.asarray(task.data.labels[0]))


@pytest.mark.parametrize("name", RECIPES)
def test_the_state_after_a_step_is_of_the_type_of_the_first(name, task):
    """Another shape, dtype or weak type would compile the step again."""
    step, first = started(name, task)
    of = lambda tree: [(path, x.shape, x.dtype, x.weak_type) for path, x in jax.tree_util.tree_leaves_with_path(tree)]
    before = jax.eval_shape(first)
    after, _ = jax.eval_shape(step, before, jax.eval_shape(lambda: batch_of(task, 0)))
    assert of(after) == of(before)


@pytest.mark.parametrize("name", ["robust", "elr", "randaugment"])
def test_a_recipe_is_compiled_once(name, task):
    step, first = started(name, task)
    state, once = first(), jax.jit(step)
    batches = [batch_of(task, i) for i in range(3)]
    state, _ = once(state, batches[0])
    with commands.compiling() as later:
        for batch in batches[1:]:
            state, _ = once(state, batch)
    assert later[0].programs == 0 and int(state.step) == 3


def test_watching_counts_what_a_block_compiles():
    fn = jax.jit(lambda x: jnp.cos(x) * 3)
    x = jnp.ones(7)
    with commands.compiling() as first:
        fn(x)
    with commands.compiling() as second:
        fn(x)
    assert first[0].programs == 1 and second[0] == commands.Compiled(0, 0, 0)
