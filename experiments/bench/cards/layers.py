"""The layers: noise beside a copy of what it is put on, and what has weights beside a plain layer, with its gradient."""

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.bench.cards import case as c
from experiments.bench.cards.layers_noise import MASKING, NOISE
from experiments.bench.cards.layers_plain import KEY, lay, split, tokens, weight, yes
from experiments.bench.cards.layers_weights import ADAPTERS, DROPPED_WEIGHTS, ORDERED, STRUCTURED


# Mixtures of experts.
def feed_forward(x, kernel_in, kernel_out):
    """Two dense layers."""
    return jax.nn.relu(x @ kernel_in) @ kernel_out


def experts(number=8, features=256, hidden=512):
    """The parameters of a mixture."""
    return lay.MoEParams(
        *(weight(features, number), weight(number, features, hidden), jnp.zeros((number, hidden))),
        *(weight(number, hidden, features), jnp.zeros((number, features))),
    )


def moe(call, params, *given):
    """A mixture beside one expert for all tokens, each with its gradient."""
    plain = c.with_gradient(feed_forward, (0, 1, 2))
    args = tokens(), weight(256, 512), weight(512, 256)
    return c.beside(plain, args, "a dense layer with its gradient", c.with_gradient(call, (0, 1)), tokens(), params, *given)


def moe_module():
    """The same as a module."""
    make = lambda: lay.MixtureOfExperts(256, 512, 8, eom_rate=0.2, fom_rate=0.2, rngs=nnx.Rngs(0))
    graph, params, rest = split(make)
    return moe(lambda x, params, rest, key: nnx.merge(graph, params, rest)(x, rngs=key), params, rest, KEY)


def gated():
    """Tokens, a gate, and the outputs of two branches."""
    return tokens(), weight(256, 1), jnp.zeros(1), tokens(1), tokens(2)


EXPERTS = {
    "mixture_of_experts": lambda: moe(
        lambda x, params, key: lay.mixture_of_experts(key, x, params, eom_rate=0.2, fom_rate=0.2), experts(), KEY
    ),
    "apply_mixture_of_experts": lambda: moe(lay.apply_mixture_of_experts, experts()),
    "MixtureOfExperts": moe_module,
    "top2_gating": lambda: c.case(lambda logits: lay.top2_gating(logits, capacity=32), c.normal(16, 128, 8), like="results"),
    "load_balancing_loss": lambda: c.case(lay.load_balancing_loss, c.normal(16, 128, 8), wrt=0),
    "conditional_moe_routing": lambda: c.case(lay.conditional_moe_routing, KEY, *gated()),
    "apply_conditional_moe_routing": lambda: c.case(lay.apply_conditional_moe_routing, *gated(), yes(16, 128)),
    "cmr_budget_loss": lambda: c.case(lay.cmr_budget_loss, c.uniform(16, 128), wrt=0),
    "expert_output_masking": lambda: c.case(lay.expert_output_masking, KEY, c.normal(8, 512, 256)),
    "final_output_masking": lambda: c.case(lay.final_output_masking, KEY, tokens()),
    "apply_output_masking": lambda: c.case(lambda x, keep: lay.apply_output_masking(x, keep, rate=0.2), tokens(), yes(16, 128)),
    "gating_dropout": lambda: c.case(lay.gating_dropout, KEY, c.normal(16, 128, 8), yes(16, 128, 8)),
    "apply_gating_dropout": lambda: c.case(lay.apply_gating_dropout, c.normal(16, 128, 8), yes(16, 128, 8), jnp.array(True)),
}

CASES = {**NOISE, **DROPPED_WEIGHTS, **ADAPTERS, **ORDERED, **STRUCTURED, **MASKING, **EXPERTS}
UNCOUNTED = {
    "adapter_groups": "sorts the paths of a tree into groups; reads no array",
    "adapters_of": "looks the layers of a model up; reads no array",
    "ordered_layers": "looks the layers of a model up; reads no array",
    "drop_path_rates": "a line between two numbers, one for each block",
    "flat_block_butterfly_mask": "a pattern of NumPy booleans from sizes, made on the host",
}
