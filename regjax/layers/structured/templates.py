"""Mixture growth: kernels as combinations of templates, and a wider network from two trained narrow ones."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from regjax.core import checks, trees
from regjax.core.types import Array, Key

_GROWS = ("both", "in", "out")
_COEFFICIENTS = ("orthogonal", "random", "copy", "zero")


def combine(templates: Any, coeffs: Any) -> Array:
    r"""A kernel as a combination of templates.

    Formula:
      .. math:: W = \sum_t c_t W_t

    Args:
      templates: float ``[T, ...]``.
      coeffs: float ``[T]``.

    Returns:
      The kernel ``[...]`` in the dtype of the templates; the sum is in float32 or better.

    Raises:
      ValueError: if an argument is no float array or there is not one coefficient for each template.

    Cost:
      One pass over the templates, as many FLOPs as 2 T for each weight.
      XLA at [4, 512, 512]: at most 2 times the FLOPs and 0.69 times the bytes of a copy of its arguments, and 0 times its
      memory more.

    Use:
      Part of: `TemplateLinear`.
      When: Kernels of any layer shall share templates, with coefficients of their own.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> rj.layers.combine(jnp.array([[[1.0]], [[10.0]]]), jnp.array([2.0, 0.5])).tolist()
      [[7.0]]

    References:
      Pham et al., MixtureGrowth: Growing Neural Networks by Recombining Learned Parameters, 2024, arXiv 2311.04251.
    """
    name = "layers.combine"
    templates = checks.floating(name, "templates", templates, min_ndim=1)
    coeffs = checks.floating(name, "coeffs", coeffs, shape=templates.shape[:1])
    dtype = trees.accumulator(templates, coeffs)
    scale = coeffs.astype(dtype).reshape(-1, *(1,) * (templates.ndim - 1))
    return jnp.sum(scale * templates.astype(dtype), axis=0).astype(templates.dtype)


def grow_templates(
    templates_0: Any, templates_1: Any, coeffs: Any, *, members: tuple[int, int, int, int] = (0, 1, 0, 1)
) -> Array:
    r"""The kernel of a layer of twice the width, from the templates of two narrow layers.

    Formula:
      .. math:: W = \begin{bmatrix} m_0 & m_3 \\ m_2 & m_1 \end{bmatrix}

      with rows for inputs; :math:`m_i` combines the templates of set ``members[i]`` with the coefficients of row i. With zero
      coefficients for :math:`m_2` and :math:`m_3` the two narrow layers stand side by side.

    Args:
      templates_0: those of the first layer, float ``[T, ..., in / 2, out / 2]``.
      templates_1: those of the second, alike.
      coeffs: float ``[4, T]``.
      members: which set each of the four uses, default (0, 1, 0, 1).

    Returns:
      The kernel ``[..., in, out]`` in the dtype of the templates.

    Raises:
      ValueError: if the shapes do not fit or ``members`` are not four of 0 and 1.

    Cost:
      That of four times `combine`.
      XLA at [512, 512]: at most 3.3 times the FLOPs and 3.9 times the bytes of a copy of its results, and 0.83 times its memory
      more.

    Use:
      Part of: `TemplateLinear`.
      When: Outside of Flax NNX, for dense and convolution kernels. Zero coefficients off the diagonal start from the two narrow
        networks side by side.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> coeffs = jnp.array([[1.0], [1.0], [0.0], [0.0]])
      >>> rj.layers.grow_templates(jnp.full((1, 1, 1), 2.0), jnp.full((1, 1, 1), 5.0), coeffs).tolist()
      [[2.0, 0.0], [0.0, 5.0]]

    References:
      Pham et al., MixtureGrowth: Growing Neural Networks by Recombining Learned Parameters, 2024, arXiv 2311.04251: in the
      authors' order (outputs, inputs) the blocks are [[m0, m2], [m3, m1]].
    """
    name = "layers.grow_templates"
    templates_0 = checks.floating(name, "templates_0", templates_0, min_ndim=3)
    templates_1 = checks.floating(name, "templates_1", templates_1, shape=templates_0.shape)
    coeffs = checks.floating(name, "coeffs", coeffs, shape=(4, templates_0.shape[0]))
    m = [combine((templates_0, templates_1)[which], c) for which, c in zip(_members(name, members), coeffs, strict=True)]
    first, second = jnp.concatenate([m[0], m[3]], axis=-1), jnp.concatenate([m[2], m[1]], axis=-1)
    return jnp.concatenate([first, second], axis=-2)


def orthogonal_coefficients(previous: Any, *, scale: float = 1.0) -> Array:
    r"""The coefficients that the ones before cover least: a new combination of the same templates.

    Formula:
      The right singular vector of the smallest singular value of ``previous``, times ``scale``; its sign is arbitrary.

    Args:
      previous: the coefficients in use, float ``[n, T]``.
      scale: the length of the new coefficients, default 1.

    Returns:
      ``[T]``, in float32 or better, constant. From T vectors on that are independent, nothing is orthogonal to all.

    Raises:
      ValueError: if ``previous`` is no float ``[n, T]`` or ``scale`` is not finite.

    Cost:
      The decomposition of a T x T matrix, once; XLA does not count it.
      XLA at [8, 16]: at most 2.2 times the FLOPs and 2.3 times the bytes of a copy of its arguments, and 2 times its memory
      more.

    Use:
      Part of: `TemplateLinear`.
      When: For each new block when a layer grows.
      Not when: As many independent coefficients as templates are in use: nothing new is left, add templates.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> abs(rj.layers.orthogonal_coefficients(jnp.array([[1.0, 0.0]]))).tolist()
      [0.0, 1.0]

    References:
      Pham et al., MixtureGrowth: Growing Neural Networks by Recombining Learned Parameters, 2024, arXiv 2311.04251.
    """
    name = "layers.orthogonal_coefficients"
    previous = checks.floating(name, "previous", previous, ndim=2)
    checks.number(name, "scale", scale)
    wide = jax.lax.stop_gradient(previous.astype(trees.accumulator(previous)))
    right = jnp.linalg.svd(wide, full_matrices=True)[2]
    return jnp.asarray(scale, wide.dtype) * right[-1]


class TemplateLinear(nnx.Module):
    r"""A linear layer that grows: two narrow layers, trained one after the other, and the wide one of their templates.

    Formula:
      ``layer(x, member=0)`` and ``layer(x, member=1)`` are dense layers of half the width, :math:`y = x \sum_t c_t W_t + b`, each
      with templates of its own. ``layer(x)`` is the wide layer of `grow_templates`, with the biases side by side.

    Args:
      in_features: the inputs of the wide layer.
      out_features: its outputs.
      num_templates: T, the templates of each narrow layer, default 2.
      members: which templates each of the four blocks uses, default (0, 1, 0, 1).
      grows: ``"both"`` (default): inputs and outputs are halved in the narrow layers; ``"out"``: the outputs alone, as in a
        first layer, which sees the whole input: the wide kernel is [m0 m1]; ``"in"``: the inputs alone, as in a classifier:
        the kernels stand on each other, and the biases are added.
      use_bias: whether there are biases; default True.
      rngs: ``nnx.Rngs``, for the initial templates (Kaiming normal) and coefficients (rows of an orthogonal matrix).

    Returns:
      A call ``layer(x, member=None)``: the wide layer for None, else the narrow one.

    Raises:
      ValueError: if a size does not halve, ``members`` or an option is wrong, or ``x`` does not fit.

    Cost:
      That of the dense layer in use, and 2 T FLOPs for each of its weights to combine the templates.
      XLA at [1024, 512]: at most 1.2 times the FLOPs and 2.2 times the bytes of a dense layer with its gradient, and 0.22 times
      its memory more.

    Use:
      For: compute budget.
      When: A model shall grow: two narrow networks are trained one after the other, then recombined into one of twice the width
        and tuned at a low rate. In tests it starts ahead of a wide network from scratch after as few steps.
      Not when: The wide network fits the budget from the start, or widths shall grow by another factor than two.
      Badly with: Penalties that read a kernel as a matrix, which get the templates. An optimiser state kept over the growth.
        Batch normalisation statistics of the narrow layers, for the mixed blocks.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> from flax import nnx
      >>> layer = rj.layers.TemplateLinear(8, 6, rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((2, 4)), member=1).shape
      (2, 3)
      >>> layer.grow()
      >>> layer(jnp.ones((2, 8))).shape
      (2, 6)

    References:
      Pham et al., MixtureGrowth: Growing Neural Networks by Recombining Learned Parameters, 2024, arXiv 2311.04251. The
      parameters of a normalisation between grown layers are those of the members side by side. ``nnx.grad`` by the parameters
      of one member alone: those whose path holds its number.
    """

    _name = "layers.TemplateLinear"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        num_templates: int = 2,
        members: tuple[int, int, int, int] = (0, 1, 0, 1),
        grows: str = "both",
        use_bias: bool = True,
        rngs: nnx.Rngs,
    ):
        name = self._name
        sizes = []
        checks.choice(name, "grows", grows, _GROWS)
        for argument, size, halved in (("in_features", in_features, "in"), ("out_features", out_features, "out")):
            checks.integer(name, argument, size, low=1)
            half = grows in ("both", halved)
            if half and size % 2:
                checks.fail(name, argument, "even, as the narrow layers have half of it", size)
            sizes.append(size // 2 if half else size)
        checks.integer(name, "num_templates", num_templates, low=1)
        if not isinstance(rngs, nnx.Rngs):
            checks.fail(name, "rngs", "nnx.Rngs", rngs)
        self.in_features, self.out_features, self.grows = in_features, out_features, grows
        self.members = _members(name, members)
        kaiming = jax.nn.initializers.he_normal(in_axis=-2, out_axis=-1, batch_axis=(0,))
        start = jax.nn.initializers.orthogonal()(rngs.params(), (max(4, num_templates), num_templates))[:4]
        param = lambda value: nnx.Param(value)
        self.templates = nnx.List([param(kaiming(rngs.params(), (num_templates, *sizes))) for _ in range(2)])
        # Of the blocks m0 and m1, which are trained first, and of m2 and m3, which growth adds.
        self.coeffs = nnx.List([param(start[i]) for i in range(4 if grows == "both" else 2)])
        self.bias = nnx.List([param(jnp.zeros(sizes[1])) for _ in range(2)] if checks.boolean(name, "use_bias", use_bias) else [])

    def __call__(self, x: Any, member: int | None = None) -> Array:
        """The wide layer's output, or a member's."""
        name = self._name
        x = checks.floating(name, "x", x, min_ndim=1)
        if member is not None:
            checks.choice(name, "member", member, (0, 1))
        kernel = self.kernel(member)
        if x.shape[-1] != kernel.shape[0]:
            checks.fail(name, "x", f"an array with {kernel.shape[0]} inputs on its last axis", x)
        y = x @ kernel
        if not self.bias:
            return y
        biases = [bias[...] for bias in self.bias]
        if member is not None:
            return y + biases[member]
        return y + (sum(biases) if self.grows == "in" else jnp.concatenate(biases))

    def kernel(self, member: int | None = None) -> Array:
        """The kernel of the wide layer, or of a member."""
        templates = [t[...] for t in self.templates]
        coeffs = [c[...] for c in self.coeffs]
        if member is not None:
            return combine(templates[self.members[member]], coeffs[member])
        if self.grows == "both":
            return grow_templates(templates[0], templates[1], jnp.stack(coeffs), members=self.members)
        return jnp.concatenate([self.kernel(0), self.kernel(1)], axis=-2 if self.grows == "in" else -1)

    def grow(self, coefficients: str = "orthogonal", *, scale: float = 1.0, key: Key | None = None, legacy: bool = False) -> None:
        """Sets the coefficients of the new blocks once both members are trained.

        Args:
          coefficients: ``"orthogonal"`` (default): `orthogonal_coefficients` to those in use on the same templates;
            ``"random"``: uniform in [0, 1), by ``key``; ``"copy"``: those of the member with the same templates; ``"zero"``: the
            narrow layers side by side.
          scale: the length of orthogonal coefficients, default 1.
          key: a random key for ``"random"``.
          legacy: whether m2 keeps its initial coefficients, as in the authors' code with its default sizes.
        """
        name = "layers.TemplateLinear.grow"
        checks.choice(name, "coefficients", coefficients, _COEFFICIENTS)
        checks.boolean(name, "legacy", legacy)
        drawn = checks.key(name, key) if coefficients == "random" else None
        if self.grows != "both":
            return
        used: dict[int, list[Array]] = {0: [], 1: []}
        for i in (0, 1):
            used[self.members[i]].append(self.coeffs[i][...])
        for i in (2, 3):
            which = self.members[i]
            before = used[which] or [self.coeffs[i][...]]
            if coefficients == "orthogonal":
                new = orthogonal_coefficients(jnp.stack(before), scale=scale)
            elif drawn is not None:
                new = jax.random.uniform(jax.random.fold_in(drawn, i), before[0].shape)
            else:
                new = before[0] if coefficients == "copy" else jnp.zeros_like(before[0])
            if not (legacy and i == 2):
                self.coeffs[i][...] = new.astype(self.coeffs[i][...].dtype)
            used[which].append(self.coeffs[i][...])


def _members(name: str, members: Any) -> tuple[int, int, int, int]:
    if not isinstance(members, (tuple, list)) or len(members) != 4 or any(m not in (0, 1) for m in members):
        checks.fail(name, "members", "four of 0 and 1", members)
    a, b, c, d = (int(m) for m in members)
    return a, b, c, d
