"""Examples of `regjax.diagnostics`: directions of gradients, contraction of noisy layers."""

import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, normal

d = rj.diagnostics
NAN = float("nan")
GRADS = normal(8, 5)
ONE_IS_ZERO = np.where(np.arange(8)[:, None] == 2, 0.0, GRADS)
SINGULAR = ({"grads": np.zeros((8, 5))}, {"grads": ONE_IS_ZERO}, {"grads": np.ones((8, 5))}, {"grads": 1e30 * np.eye(8)[:, :5]})


def grads_errors(call) -> dict:
    """What both refuse; ``call(grads)`` is given each."""
    return {
        "grads: integers": lambda: call(jnp.ones((3, 2), int)),
        "grads: a scalar": lambda: call(jnp.ones(())),
        "grads: an empty tree": lambda: call({}),
        "grads: an empty list": lambda: call([]),
        "grads: leaves of different length": lambda: call({"a": jnp.ones((3, 2)), "b": jnp.ones((2, 2))}),
        "grads: trees of different structure": lambda: call([{"a": jnp.ones(2)}, {"b": jnp.ones(2)}]),
        "grads: trees of different shapes": lambda: call([jnp.ones(2), jnp.ones(3)]),
    }


def eta(kind="dropout", **options):
    defaults = {"rate": 0.5} if kind != "gaussian" else {"std": 1.0, "bound": 1.0}
    return d.sdpi_contraction(kind, **{**defaults, "fan_in": 2, "fan_out": 3, **options})


EXAMPLES = (
    Example(
        name="diagnostics.gradient_direction_variance",
        call=lambda key, grads: d.gradient_direction_variance({"w": grads[:, :2], "b": grads[:, 2:]}),
        arrays={"grads": GRADS},
        rows=("grads",),
        result="scalar",
        wrt=("grads",),
        singular=SINGULAR,
        bad={
            **grads_errors(d.gradient_direction_variance),
            "grads: one": lambda: d.gradient_direction_variance(jnp.ones((1, 2))),
        },
    ),
    Example(
        name="diagnostics.gradient_direction_error",
        call=lambda key, grads, full_grad: d.gradient_direction_error(grads, full_grad),
        arrays={"grads": GRADS, "full_grad": GRADS.mean(0)},
        rows=("grads",),
        result="scalar",
        wrt=("grads", "full_grad"),
        singular=(*SINGULAR, {"full_grad": np.zeros(5)}, {"full_grad": GRADS[3]}),
        bad={
            **grads_errors(lambda grads: d.gradient_direction_error(grads, jnp.ones(2))),
            "full_grad: shape": lambda: d.gradient_direction_error(jnp.ones((3, 2)), jnp.ones(3)),
            "full_grad: structure": lambda: d.gradient_direction_error([{"a": jnp.ones(2)}], jnp.ones(2)),
            "full_grad: integers": lambda: d.gradient_direction_error(jnp.ones((3, 2)), jnp.ones(2, int)),
        },
    ),
    Example(
        name="diagnostics.sdpi_contraction",
        call=lambda key, rate, std: [eta(rate=rate), eta("drop_connect", rate=rate), eta("gaussian", std=std)],
        arrays={"rate": np.array(0.3), "std": np.array(0.7)},
        result="other",
        wrt=("rate", "std"),
        identity=lambda key, rate, std: (
            [eta(rate=0 * rate), eta("drop_connect", rate=0 * rate), eta("gaussian", std=0 * std)],
            [jnp.ones_like(rate)] * 3,
        ),
        singular=({"rate": np.array(0.0)}, {"rate": np.array(1.0)}, {"std": np.array(0.0)}, {"std": np.array(1e20)}),
        bad={
            "kind: misspelt": lambda: eta("dropconnect"),
            "rate: above 1": lambda: eta(rate=1.5),
            "rate: NaN": lambda: eta(rate=NAN),
            "rate: missing": lambda: eta(rate=None),
            "rate: of gaussian noise": lambda: eta("gaussian", rate=0.5),
            "std: negative": lambda: eta("gaussian", std=-1.0),
            "std: NaN": lambda: eta("gaussian", std=NAN),
            "std: missing": lambda: eta("gaussian", std=None),
            "std: of dropout": lambda: eta(std=1.0),
            "bound: negative": lambda: eta("gaussian", bound=-1.0),
            "bound: of dropout": lambda: eta(bound=1.0),
            "fan_in: missing": lambda: eta(fan_in=None),
            "fan_in: zero": lambda: eta("gaussian", fan_in=0),
            "fan_out: missing": lambda: eta("gaussian", fan_out=None),
            "fan_out: a float": lambda: eta("drop_connect", fan_out=3.0),
        },
    ),
)
