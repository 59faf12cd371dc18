"""The policy network of learned noise masks: a small convolutional network with two heads."""

import itertools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from regjax.core import checks
from regjax.core.types import Array


class NoiseMaskPolicy(nnx.Module):
    r"""A small convolutional network with two heads that gives, for each image, the parameters of a noise mask's cells.

    Formula:
      Three convolutions of stride 2, each with batch normalisation and ReLU, and the mean over pixels, make D features z;
      two heads of three layers with their own weights, batch normalisation and ReLU between, make

      .. math:: raw_\alpha = head_\alpha(z), \quad raw_\beta = head_\beta(z)

      ``inputs.smooth_policy`` and ``inputs.sample_noise_mask`` take it from there.

    Args:
      in_channels: the channels C of the images.
      grid: the cells of a mask in each direction, default 64.
      features: D, at least 4, default 512.
      hidden: the width of the heads' hidden layers, default 512.
      axis_name: the mapped axis over which the batch is split under ``shard_map`` or ``pmap``: batch statistics are means
        over it. Not needed under ``jit`` with sharded arrays.
      rngs: ``nnx.Rngs`` for the weights, from the stream "params".

    Returns:
      A call ``policy(images, *, use_running_average=None)`` gives two floats ``[B, grid * grid]``. ``train()`` and
      ``eval()`` set the mode of the batch normalisation, or the call's argument.

    Raises:
      ValueError: if an argument is no integer in range, ``rngs`` is no ``nnx.Rngs``, or images do not fit.

    Cost:
      Small beside a classifier, but for the heads' last layers: ``2 * hidden * grid^2`` parameters, 4.2 million with the
      defaults.
      XLA at 2 times [512, 4096]: at most 620 times the FLOPs and 4.2 times the bytes of a copy of its arguments, and 0.32 times
      its memory more.

    Use:
      Part of: `sample_noise_mask`.
      When: The mask shall be learned for each image, with `noise_mask_policy_loss` as its loss: heat the classifier with it,
        drop it, and tune on without masks.
      Not when: Images are small or few: REINFORCE on thousands of cells is noisy, and a Beta mask with fixed parameters needs
        no policy. On the digits comparison, which had fixed ones, masks gained less than `random_erasing`.
      Badly with: Tiny batches or batches split without ``axis_name``, as it has batch normalisation. An optimiser at the
        classifier's rate: the authors take a tenth.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> from flax import nnx
      >>> policy = rj.layers.NoiseMaskPolicy(3, grid=4, features=8, hidden=16, rngs=nnx.Rngs(0))
      >>> raw_alpha, raw_beta = policy(jnp.ones((2, 16, 16, 3)))
      >>> raw_alpha.shape, raw_beta.shape
      ((2, 16), (2, 16))

    References:
      Yavuz and Yang, Policy Gradient-Driven Noise Mask, 2024, arXiv 2406.14568. The authors' network has 512 features and
      two heads of three layers with batch normalisation; its convolutions and the heads' widths are this library's choice.
    """

    _name: ClassVar[str] = "layers.NoiseMaskPolicy"

    def __init__(
        self,
        in_channels: int,
        grid: int = 64,
        *,
        features: int = 512,
        hidden: int = 512,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ):
        name = self._name
        checks.integer(name, "in_channels", in_channels, low=1)
        checks.integer(name, "grid", grid, low=1)
        checks.integer(name, "features", features, low=4)
        checks.integer(name, "hidden", hidden, low=1)
        if axis_name is not None and not isinstance(axis_name, str):
            checks.fail(name, "axis_name", "None or the name of a mapped axis", axis_name)
        if not isinstance(rngs, nnx.Rngs):
            checks.fail(name, "rngs", "nnx.Rngs", rngs)
        self.in_channels = in_channels
        widths = (in_channels, features // 4, features // 2, features)
        norm = lambda width: nnx.BatchNorm(width, axis_name=axis_name, rngs=rngs)
        self.convs = nnx.List(nnx.Conv(a, b, (3, 3), strides=2, use_bias=False, rngs=rngs) for a, b in itertools.pairwise(widths))
        self.norms = nnx.List(norm(width) for width in widths[1:])

        def head() -> nnx.List:
            layers = []
            for a, b in ((features, hidden), (hidden, hidden)):
                layers += [nnx.Linear(a, b, use_bias=False, rngs=rngs), norm(b)]
            return nnx.List([*layers, nnx.Linear(hidden, grid**2, rngs=rngs)])

        self.alpha_head, self.beta_head = head(), head()

    def __call__(self, images: Any, *, use_running_average: bool | None = None) -> tuple[Array, Array]:
        """The raw parameters of each image's mask."""
        x = checks.images(self._name, "images", images)
        if x.shape[-1] != self.in_channels:
            checks.fail(self._name, "images", f"of {self.in_channels} channels", x)
        if use_running_average is not None:
            checks.boolean(self._name, "use_running_average", use_running_average)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = jax.nn.relu(norm(conv(x), use_running_average=use_running_average))
        features = jnp.mean(x, axis=(1, 2))

        def run(head: nnx.List) -> Array:
            y = features
            for linear, norm in zip(head[:-1:2], head[1::2], strict=True):
                y = jax.nn.relu(norm(linear(y), use_running_average=use_running_average))
            return head[-1](y)

        return run(self.alpha_head), run(self.beta_head)
