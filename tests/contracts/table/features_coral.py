"""Examples of correlation alignment."""

import functools

import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, normal

coral, domain_coral = rj.features.coral, functools.partial(rj.features.domain_coral, num_domains=3)
DOMAINS = np.array([0, 1, 0, 1, 1, 0, 0, 2], np.int32)
WHERE = np.array([True, True, True, False, True, True, True, True])
X, D = jnp.ones((4, 3)), jnp.array([0, 1, 0, 1])

EXAMPLES = (
    Example(
        name="features.coral",
        call=lambda key, features_a, features_b, where: coral(features_a, features_b, where_a=where),
        mapped=lambda axis, key, features_a, features_b, where: coral(features_a, features_b, where_a=where, axis_name=axis),
        arrays={"features_a": normal(8, 3), "features_b": 0.5 + normal(8, 3, seed=1), "where": WHERE},
        rows=("features_a", "features_b", "where"),
        result="scalar",
        wrt=("features_a", "features_b"),
        singular=(
            {"features_a": np.zeros((8, 3)), "features_b": np.zeros((8, 3))},
            {"features_a": 1e4 * np.sign(normal(8, 3))},
            {"where": np.zeros(8, bool)},
        ),
        bad={
            "features_a: integers": lambda: coral(X.astype(int), X),
            "features_a: a vector": lambda: coral(jnp.ones(3), X),
            "features_b: another width": lambda: coral(X, jnp.ones((4, 2))),
            "variant: misspelt": lambda: coral(X, X, variant="deeep"),
            "where_a: weights": lambda: coral(X, X, where_a=jnp.ones(4)),
            "where_b: another number": lambda: coral(X, X, where_b=jnp.ones(3, bool)),
            "axis_name: a number": lambda: coral(X, X, axis_name=0),
        },
    ),
    Example(
        name="features.domain_coral",
        call=lambda key, features, domains, where: domain_coral(features, domains, where=where, variant="deep"),
        mapped=lambda axis, key, features, domains, where: domain_coral(
            features, domains, where=where, variant="deep", axis_name=axis
        ),
        arrays={"features": normal(8, 3), "domains": DOMAINS, "where": WHERE},
        rows=("features", "domains", "where"),
        result="scalar",
        wrt=("features",),
        singular=({"features": np.zeros((8, 3))}, {"domains": np.ones(8, np.int32)}, {"where": np.zeros(8, bool)}),
        bad={
            "features: integers": lambda: domain_coral(X.astype(int), D),
            "domains: floats": lambda: domain_coral(X, jnp.ones(4)),
            "domains: another number": lambda: domain_coral(X, D[:3]),
            "num_domains: none": lambda: domain_coral(X, D, num_domains=0),
            "variant: misspelt": lambda: domain_coral(X, D, variant="corals"),
            "where: weights": lambda: domain_coral(X, D, where=jnp.ones(4)),
            "axis_name: a number": lambda: domain_coral(X, D, axis_name=0),
        },
    ),
)
