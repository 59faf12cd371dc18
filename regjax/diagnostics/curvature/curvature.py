"""Products of curvature matrices with vectors, the Hessian's and the Gauss-Newton matrix's, and how the examples' differ."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, sharding, trees
from regjax.core.types import Array, Key, PyTree
from regjax.diagnostics.curvature import _vectors

# ``matvec(vector) -> vector``: trees of the same structure and shapes.
MatVec = Callable[[PyTree], PyTree]


def hessian_matvec(loss_fn: Callable[..., Array], params: PyTree, *args: Any) -> MatVec:
    r"""The product of a loss's Hessian with a vector, without the Hessian.

    Formula:
      .. math:: v \mapsto \nabla^2 f(w) \, v = \frac{d}{dt} \nabla f(w + t v) \quad at \ t = 0

    Args:
      loss_fn: ``loss_fn(params, *args) -> scalar``, with a mode (dropout, batch statistics) that does not change between calls.
      params: the weights w; leaves that are no floats are held fixed. Low-precision weights are widened to float32 first.
      *args: the batch and whatever else ``loss_fn`` takes.

    Returns:
      A function of a tree like ``params`` that returns one, in float32 or better. Leaves that are no floats are passed on.

    Raises:
      ValueError: if ``loss_fn`` is no function or returns no scalar; in the product, if the vector does not match ``params``.

    Cost:
      One forward and backward pass when it is made, and about two for each product. Make it within `jax.jit`, where
      it is used: its intermediate values would else be constants of the compiled program.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 2.1 times the FLOPs and 2.4 times the bytes of a forward and
      backward pass, and 0.35 times its memory more.

    Use:
      Part of: `top_eigenvalue`, `lanczos_spectrum`, `stochastic_lanczos`, `hessian_variance`.
      When: For one loss on one fixed batch. Take `ggn_matvec` where negative curvature disturbs, as in `lr_from_spectrum`.
      Badly with: Losses whose gradient is not their own (`modulate_backward`, `attach_gradient`, straight-through masks): the
        product is not that of their Hessian. Of a loss under `sam` it is the Hessian at the perturbed weights. Keys that change
        between calls.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> loss_fn = lambda w: w[0] ** 2 * w[1]
      >>> rj.diagnostics.hessian_matvec(loss_fn, jnp.array([1.0, 3.0]))(jnp.array([1.0, 0.0])).tolist()
      [6.0, 2.0]

    References:
      Pearlmutter, Fast Exact Multiplication by the Hessian, 1994, Neural Computation 6.
    """
    name = "diagnostics.hessian_matvec"
    loss = _vectors.loss_of(name, loss_fn, params)
    leaves = _vectors.floats(params)
    _, product = jax.linearize(jax.grad(lambda leaves: loss(leaves, *args)), leaves)
    return _matvec(name, params, leaves, product)


def ggn_matvec(
    model_fn: Callable[..., PyTree], loss_fn: Callable[..., Array], params: PyTree, inputs: PyTree, *targets: Any
) -> MatVec:
    r"""The product of a vector with the generalised Gauss-Newton matrix: the Hessian without the model's own curvature.

    Formula:
      .. math:: v \mapsto J^T H J v, \quad J = \partial z / \partial w, \quad H = \nabla^2_z \ell(z, y), \quad z = m(w, x)

      Positive semi-definite where the loss is convex in the outputs, and equal to the Hessian where the model is linear in
      its weights.

    Args:
      model_fn: ``model_fn(params, inputs) -> outputs``, a floating array or a tree of them.
      loss_fn: ``loss_fn(outputs, *targets) -> scalar``.
      params: the weights w, as in `hessian_matvec`.
      inputs: the batch x.
      *targets: what the loss takes besides the outputs.

    Returns:
      A function of a tree like ``params`` that returns one, in float32 or better.

    Raises:
      ValueError: if a function is none or returns what it should not; in the product, if the vector does not match ``params``.

    Cost:
      Two forward passes and one of the loss when it is made, and about one forward and one backward pass for each product.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 1.5 times the FLOPs and 1.5 times the bytes of a forward and
      backward pass, and 0.01 times its memory more.

    Use:
      Part of: `top_eigenvalue`, `lanczos_spectrum`, `stochastic_lanczos`.
      When: A matrix without negative eigenvalues is needed, for step sizes, a Laplace posterior or early in training, when the
        Hessian has many. For cross-entropy it is the Fisher information.
      Not when: Saddles or negative curvature are the question: it cannot show them.
      Badly with: Losses that are not convex in the outputs (`generalized_cross_entropy`, `focal`, `poly1_cross_entropy`), for
        which it may be indefinite after all.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> model_fn = lambda w, x: w**2 * x
      >>> loss_fn = lambda z, y: jnp.sum((z - y) ** 2) / 2
      >>> product = rj.diagnostics.ggn_matvec(model_fn, loss_fn, jnp.array([1.0, 2.0]), jnp.ones(2), jnp.zeros(2))
      >>> product(jnp.ones(2)).tolist()
      [4.0, 16.0]

    References:
      Schraudolph, Fast Curvature Matrix-Vector Products for Second-Order Gradient Descent, 2002, Neural Computation 14.
    """
    name = "diagnostics.ggn_matvec"
    checks.function(name, "model_fn", model_fn)
    leaves = _vectors.floats(params)

    def model(leaves: list[Array]) -> PyTree:
        outputs = model_fn(trees.with_float_leaves(params, leaves), inputs)
        if not all(hasattr(leaf, "dtype") and trees.is_float(leaf) for leaf in jax.tree.leaves(outputs)):
            checks.fail(name, "model_fn", "a function that returns floating-point outputs", outputs)
        return jax.tree.map(lambda z: z.astype(trees.accumulator(z)), outputs)

    outputs, pull = jax.vjp(model, leaves)
    _, push = jax.linearize(model, leaves)
    loss = _vectors.loss_of(name, loss_fn, outputs)
    of_outputs = lambda z: jax.tree.unflatten(jax.tree.structure(outputs), z)
    _, curve = jax.linearize(jax.grad(lambda z: loss(z, *targets)), jax.tree.leaves(outputs))
    return _matvec(name, params, leaves, lambda v: pull(of_outputs(curve(jax.tree.leaves(push(v)))))[0])


def hessian_variance(
    key: Key,
    per_example_hvp: Callable[..., PyTree],
    params: PyTree,
    *examples: PyTree,
    num_probes: int = 1,
    chunk_size: int | None = None,
) -> Array:
    r"""How much the Hessians of single examples differ: the noise scale that sets the curvature of small batches.

    Formula:
      For random v of length 1, averaged over probes,

      .. math:: \frac{1}{n - 1} \sum_i \|H_i v - \bar H v\|^2 \approx P \sigma^2, \quad \bar H = \frac 1 n \sum_i H_i

      where :math:`\sigma^2` is the variance of one entry of :math:`H_i`: the ``noise_scale`` of
      `regjax.schedules.batch_max_eigenvalue`.

    Args:
      key: a random key.
      per_example_hvp: ``per_example_hvp(vector, *example) -> H_i vector``, such as
        ``lambda v, *example: hessian_matvec(loss_fn, params, *example)(v)``.
      params: a tree like the vectors, of which only the shapes are read.
      *examples: the arguments of each example, trees of arrays ``[n, ...]``, n at least 2.
      num_probes: how many random vectors, default 1.
      chunk_size: how many examples are in memory together, a divisor of n; None (default): all. Of examples sharded over
        devices a multiple of their number stays where it is.

    Returns:
      A scalar in float32 or better.

    Raises:
      ValueError: if ``per_example_hvp`` is no function or returns another tree, there are fewer than two examples, their arrays
        disagree on n, or ``chunk_size`` does not divide n.

    Cost:
      One product for each example and probe; the memory of ``chunk_size`` vectors. XLA counts the body of the loop once.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 0.5 times the FLOPs and 5.7 times the bytes of one product with
      the Hessian, and 5.9 times its memory more.

    Use:
      For: compute budget, unstable training.
      When: A learning rate is moved to another batch size by `max_learning_rate`: measure this and `top_eigenvalue` on some
        hundred examples, now and then in training, as both change.
      Not when: The rule of thumb will do: `scale_learning_rate`. One probe is noisy for narrow networks, so raise
        ``num_probes`` until it stands still.
      Badly with: Batch normalisation by batch statistics, and contrastive losses: there is no Hessian of a single example.
        Dropout, whose masks add noise that is none of the data's.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> entries = jnp.array([1.0, 2.0, 3.0])  # three "Hessians" 1, 2 and 3, each times the identity
      >>> hvp = lambda v, a: a * v
      >>> round(float(rj.diagnostics.hessian_variance(jax.random.key(0), hvp, jnp.zeros(5), entries)), 4)
      1.0

    References:
      Granziol et al., Learning Rates as a Function of Batch Size: A Random Matrix Theory Approach to Neural Network Training,
      2022, arXiv 2006.09092. The paper subtracts the square of the product of v with the mean, which leaves the spread of the
      mean Hessian's own eigenvalues in the estimate; here only the noise remains.
    """
    name = "diagnostics.hessian_variance"
    checks.key(name, key)
    checks.function(name, "per_example_hvp", per_example_hvp)
    checks.integer(name, "num_probes", num_probes, low=1)
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(examples)}
    if len(lengths) != 1 or () in lengths or min(lengths) < (2,):
        expected = "arrays that share the number of examples, at least 2, on axis 0"
        checks.fail(name, "examples", expected, [jnp.shape(leaf) for leaf in jax.tree.leaves(examples)])
    (count,) = lengths.pop()
    size = count if chunk_size is None else checks.integer(name, "chunk_size", chunk_size, low=1)
    if count % size:
        checks.fail(name, "chunk_size", f"a divisor of the number of examples, {count}", chunk_size)
    leaves = _vectors.floats(params)
    dtype = trees.accumulator(*leaves)
    # One mesh axis cannot shard both the examples and the vectors: sharded vectors need the examples on every device.
    spread_out = any(any(named.spec) for named in map(sharding.explicit_sharding, leaves) if named is not None)
    rows = jax.tree.map(lambda x: sharding.replicate(jnp.asarray(x)) if spread_out else jnp.asarray(x), examples)
    chunks = jax.tree.map(lambda x: _in_chunks(x, size), rows)

    def along(key: Key) -> Array:
        vector = _vectors.unit(_vectors.normals(key, leaves))

        def add(carry: Any, chunk: tuple[PyTree, ...]) -> Any:
            seen, mean, spread = carry
            one = lambda *example: on_leaves(name, lambda v: per_example_hvp(v, *example), params, "per_example_hvp")(vector)
            products = jax.vmap(one)(*chunk)
            means = [jnp.mean(x, axis=0) for x in products]
            within = trees.sum_squares([x - m for x, m in zip(products, means, strict=True)]).astype(dtype)
            # Two groups of examples as one: nothing cancels, however large the mean is beside the noise.
            apart = [new - old for new, old in zip(means, mean, strict=True)]
            share = size / (seen + size)
            spread = spread + within + trees.sum_squares(apart).astype(dtype) * seen * share
            mean = [old + d * share.astype(d.dtype) for old, d in zip(mean, apart, strict=True)]
            return (seen + size, mean, spread), None

        start = (jnp.zeros((), dtype), [jnp.zeros_like(v) for v in vector], jnp.zeros((), dtype))
        return jax.lax.scan(add, start, chunks)[0][2] / (count - 1)

    return jnp.mean(jax.lax.map(along, jax.random.split(key, num_probes)))


def on_leaves(name: str, matvec: MatVec, like: PyTree, argument: str = "matvec") -> Callable[[list[Array]], list[Array]]:
    """A product of trees as one of lists of floating leaves."""

    def product(leaves: list[Array]) -> list[Array]:
        image = matvec(trees.with_float_leaves(like, leaves))
        checks.same_structure(name, argument, image, like, "the vector it is given")
        return [sharding.placed_like(a.astype(v.dtype), v) for a, v in zip(_vectors.floats(image), leaves, strict=True)]

    return product


def _matvec(name: str, params: PyTree, leaves: list[Array], product: Callable[[list[Array]], list[Array]]) -> MatVec:
    """A product of lists of floating leaves as one of trees like the parameters."""

    def matvec(vector: PyTree) -> PyTree:
        checks.same_structure(name, "vector", vector, params, "params")
        own = [jnp.asarray(v) for v, p in zip(jax.tree.leaves(vector), jax.tree.leaves(params), strict=True) if trees.is_float(p)]
        image = iter(product([sharding.placed_like(v.astype(leaf.dtype), leaf) for v, leaf in zip(own, leaves, strict=True)]))
        return jax.tree.map(lambda v, p: next(image) if trees.is_float(p) else v, vector, params)

    return matvec


def _in_chunks(x: Array, size: int) -> Array:
    """``[n, ...]`` as ``[n / size, size, ...]``, sharded within the chunks where that divides."""
    shape = (x.shape[0] // size, size, *x.shape[1:])
    named = sharding.explicit_sharding(x)
    if named is None:
        return x.reshape(shape)
    rows = named.spec[0] if len(named.spec) and size % sharding.row_shards(x) == 0 else None
    x = sharding.replicate(x) if rows is None else x
    return jnp.reshape(x, shape, out_sharding=named.update(spec=jax.P(None, rows, *(None,) * (len(shape) - 2))))
