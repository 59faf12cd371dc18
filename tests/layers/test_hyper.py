"""Hyper layers against loop-written float64 references, ordinary layers, and the kernels that they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import regjax as rj

RNG = np.random.default_rng(0)
B, IN, OUT, H = 4, 5, 3, 2


def drawn(*kernel):
    out = kernel[-1]
    shapes = (kernel, kernel, (H, out), (out,), (out,), (H, out), ())
    return rj.layers.HyperParams(*(RNG.normal(size=shape) for shape in shapes))


def dense_reference(p, x, hyper):
    y = np.zeros((len(x), p.kernel.shape[1]))
    for i in range(len(x)):
        for o in range(y.shape[1]):
            plain = p.bias[o] + sum(x[i, k] * p.kernel[k, o] for k in range(x.shape[1]))
            moved = sum(x[i, k] * p.response_kernel[k, o] for k in range(x.shape[1]))
            of_kernel = sum(hyper[i, j] * p.gate_kernel[j, o] for j in range(H))
            of_bias = sum(hyper[i, j] * p.gate_bias[j, o] for j in range(H))
            y[i, o] = p.scale * plain + of_kernel * moved + of_bias * p.response_bias[o]
    return y


def test_hyper_dense_equals_its_reference(x64):
    p, x, hyper = drawn(IN, OUT), RNG.normal(size=(B, IN)), RNG.normal(size=(B, H))
    want = dense_reference(p, x, hyper)
    free = p._replace(bias=None, response_bias=None, gate_bias=None)

    @jax.jit
    def run(p, free, x, hyper):
        dense = rj.layers.hyper_dense
        return {
            "rows": dense(p, x, hyper),
            "tokens": dense(p, jnp.stack([x, x[::-1]], 1), hyper),
            "each": jnp.stack([dense(p, x[i], hyper[i]) for i in range(B)]),
            "all": dense(p, x, hyper[0]),
            "free": dense(free, x, hyper),
            "none": dense(p, x),
        }

    got = run(p, free, x, hyper)
    for name, value in (("rows", want), ("each", want), ("none", dense_reference(p, x, 0 * hyper))):
        np.testing.assert_allclose(got[name], value, rtol=1e-12, atol=1e-12, err_msg=name)
    np.testing.assert_allclose(got["tokens"][:, 0], want, rtol=1e-12)
    np.testing.assert_allclose(got["tokens"][:, 1], dense_reference(p, x[::-1], hyper), rtol=1e-12)
    np.testing.assert_allclose(got["all"], dense_reference(p, x, np.tile(hyper[0], (B, 1))), rtol=1e-12)
    silent = p._replace(bias=0 * p.bias, response_bias=0 * p.bias)
    np.testing.assert_allclose(got["free"], dense_reference(silent, x, hyper), rtol=1e-12)


def test_an_example_has_the_kernel_that_its_hyperparameters_make(x64):
    """Dense and convolution: each row of a batch is an ordinary layer of the kernel s W + W' diag(h V)."""
    p, x, hyper = drawn(2, 3, 2, OUT), RNG.normal(size=(B, 5, 4, 2)), RNG.normal(size=(B, H))
    options = {"strides": (2, 1), "padding": "VALID", "dilation": (1, 1)}

    @jax.jit
    def run(p, x, hyper):
        def plain(x, h):
            kernel = p.scale * p.kernel + p.response_kernel * (h @ p.gate_kernel)
            bias = p.scale * p.bias + p.response_bias * (h @ p.gate_bias)
            y = jax.lax.conv_general_dilated(x[None], kernel, (2, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            return y[0] + bias

        each = rj.layers.hyper_conv(p, x, hyper, **options)
        return each, jax.vmap(plain)(x, hyper), rj.layers.hyper_conv(p, x, hyper[1], **options)[1]

    each, want, shared = run(p, x, hyper)
    np.testing.assert_allclose(each, want, rtol=1e-12)
    np.testing.assert_allclose(shared, want[1], rtol=1e-12)


def test_without_hyperparameters_or_gates_the_modules_are_ordinary_layers():
    dense = rj.layers.HyperDense(IN, OUT, H, rngs=nnx.Rngs(1))
    conv = rj.layers.HyperConv(IN, OUT, 3, H, rngs=nnx.Rngs(2))
    x = jnp.asarray(RNG.normal(size=(B, 6, IN)), jnp.float32)
    hyper = jnp.ones((B, H))
    want = x @ dense.kernel[...] + dense.bias[...]
    np.testing.assert_allclose(dense(x), want, rtol=1e-5, atol=1e-6)
    assert not np.allclose(dense(x, hyper), want, atol=1e-5), "the gates do not start at 0"
    plain = nnx.Conv(IN, OUT, (3,), rngs=nnx.Rngs(0))
    plain.kernel.set_value(conv.kernel[...])
    plain.bias.set_value(conv.bias[...])
    for layer, value in ((dense, want), (conv, plain(x))):
        layer.gate_kernel.set_value(jnp.zeros((H, OUT)))
        layer.gate_bias.set_value(jnp.zeros((H, OUT)))
        np.testing.assert_allclose(layer(x, hyper), value, rtol=1e-5, atol=1e-6)


def test_a_view_gives_all_layers_of_a_model_their_hyperparameters():
    model = nnx.Sequential(
        rj.layers.HyperDense(IN, 7, H, rngs=nnx.Rngs(0)),
        jnp.tanh,
        rj.layers.HyperDense(7, OUT, H, use_bias=False, rngs=nnx.Rngs(1)),
    )
    graph, state = nnx.split(model)
    x, hyper = jnp.ones((B, IN)), jnp.asarray(RNG.normal(size=(B, H)), jnp.float32)

    @jax.jit
    def outputs(state, hyper):
        return nnx.view(nnx.merge(graph, state), hyper=hyper)(x)

    want = model.layers[2](jnp.tanh(model.layers[0](x, hyper)), hyper)
    np.testing.assert_allclose(outputs(state, hyper), want, rtol=1e-5)
    gradient = jax.jacobian(lambda h: outputs(state, h).sum(-1))(hyper)
    assert np.all(np.abs(gradient[0, 0]) > 0) and not np.any(gradient[0, 1:]), "an example answers to its own row alone"
    low = rj.layers.HyperDense(IN, OUT, H, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert low(x, hyper).dtype == jnp.bfloat16


def test_initial_distributions():
    layer = rj.layers.HyperConv(5, 400, (3, 3), 30, rngs=nnx.Rngs(0))
    for name in ("kernel", "response_kernel", "bias", "response_bias"):
        values = np.asarray(getattr(layer, name)[...])
        assert abs(values).max() <= 45**-0.5 and abs(values.std() - (3 * 45) ** -0.5) < 6 * 0.09 / values.size**0.5
    for name in ("gate_kernel", "gate_bias"):
        values = np.asarray(getattr(layer, name)[...])
        assert abs(values.std() - 0.01) < 6 * 0.01 / (2 * values.size) ** 0.5
    assert layer.scale[...] == 1
