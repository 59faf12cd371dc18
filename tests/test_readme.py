"""The README says what is there: numbers, tables, the picture, and examples that run."""

import functools
import re

from experiments import pipeline, readme

TEXT = (readme.ROOT / "README.md").read_text()


def test_lists_and_table_are_up_to_date():
    assert readme.fill(TEXT, "numbers", readme.numbers(readme.ROOT)) == TEXT, "run python -m experiments.readme"
    table = readme.demo(readme.ROOT / readme.RESULTS, readme.SHOWN)
    assert readme.fill(TEXT, "demo", table) == TEXT, "run python -m experiments.readme"
    assert readme.fill(TEXT, "studies", readme.studies(readme.ROOT)) == TEXT, "run python -m experiments.readme"
    assert (readme.ROOT / readme.PICTURE).read_text() == pipeline.svg(), "run python -m experiments.readme"
    text = (readme.ROOT / readme.BENCH / "README.md").read_text()
    tables = readme.bench(readme.ROOT / readme.BENCH / "results")
    assert tables and readme.fill(text, "bench", tables) == text, "run python -m experiments.readme"
    text = (readme.ROOT / readme.BENCH / "COSTS.md").read_text()
    tables = readme.costs(readme.ROOT / readme.BENCH / "results")
    assert tables and readme.fill(text, "costs", tables) == text, "run python -m experiments.readme"


def test_the_examples_run_as_they_stand():
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    import regjax as rj

    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert [len(block.strip().splitlines()) <= 12 for block in blocks] == [True] * 4
    whole, chain, transform, sparse = blocks
    first = {}
    exec(whole, first)
    assert first["updates"]["w"].shape == (64, 10) and bool(jnp.abs(first["updates"]["w"]).max() > 0)
    names = {"model": lambda params, images: images.reshape(len(images), -1) @ params["kernel"] + params["bias"], "jax": jax}
    setup = "import regjax as rj\n"
    exec(setup + transform, names)
    exec(chain, names)
    params = {"kernel": jnp.ones((64, 3)), "bias": jnp.zeros(3)}
    batch = {"image": jax.random.normal(jax.random.key(0), (6, 8, 8, 1)), "label": jax.nn.one_hot(jnp.arange(6) % 3, 3)}
    state, losses = names["tx"].init(params), []
    for i in range(3):
        params, state, loss = names["step"](params, state, batch, jax.random.key(i))
        losses.append(float(loss))
    assert losses[-1] == losses[-1] and params["kernel"].shape == (64, 3)

    given = {"optax": optax, "nnx": nnx, "rj": rj, "partial": functools.partial, "rngs": nnx.Rngs(0)}
    given["model"] = nnx.Sequential(nnx.Linear(4, 8, rngs=nnx.Rngs(1)), nnx.relu, nnx.Linear(8, 3, rngs=nnx.Rngs(2)))
    given["opt_state"] = rj.gradients.prune(optax.sgd(0.1), sparsity=0.5).init(params)
    x, before = jnp.ones((2, 4)), given["model"](jnp.ones((2, 4)))
    exec(sparse, given)
    assert given["mask"]["kernel"].shape == (64, 3)
    assert type(given["model"].layers[0]) is nnx.Linear and jnp.array_equal(given["model"](x), before)
    assert rj.gradients.find_mask(given["tx"].init(params))["kernel"].all()
