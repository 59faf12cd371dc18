"""Classifiers in Flax NNX, each with places for dropout, drop-path, feature hooks and head hooks."""

import dataclasses
import functools
from typing import Any, Literal

import jax
from flax import nnx

import regjax as rj
from experiments import meshes

_NO_HOOKS = rj.Hooks()


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Which model.

    Attributes:
      name: ``mlp``, ``resnet``, ``wrn`` or ``vit``. WRN-28-10 is ``wrn`` of width 160 and depth 4, ViT-S/4 for small images
        ``vit`` of width 384, depth 12, patch 4 and 6 heads.
      width: hidden units (mlp), channels of the first stage (resnet, wrn), embedding size (vit).
      depth: hidden layers (mlp), blocks in each of three stages (resnet, wrn), blocks (vit).
      patch: the side of a patch (vit).
      heads: attention heads (vit).
    """

    name: Literal["mlp", "resnet", "wrn", "vit"] = "mlp"
    width: int = 128
    depth: int = 2
    patch: int = 2
    heads: int = 4

    def __post_init__(self) -> None:
        """Refuses sizes that no model has."""
        for field in ("width", "depth", "patch", "heads"):
            if getattr(self, field) < 1:
                raise ValueError(f"ModelConfig: {field} must be at least 1, got {getattr(self, field)}")
        if self.name == "vit" and self.width % self.heads:
            raise ValueError(f"ModelConfig: width must be a multiple of heads = {self.heads}, got {self.width}")


class Classifier(nnx.Module):
    """A body and a linear head; subclasses define ``body(images, key, hooks, training) -> features [B, D]``.

    The places of manifold mixup (``hooks.mix``): 0 the images, 1 what enters the first block, 2 the second, ...
    """

    head: nnx.Linear

    def body(self, images: jax.Array, key: Any, hooks: rj.Hooks, training: bool) -> jax.Array:
        """The penultimate features."""
        raise NotImplementedError

    def __call__(
        self, images: jax.Array, *, key: Any = None, hooks: rj.Hooks = _NO_HOOKS, training: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """Logits [B, K] (or [M, B, K] with a sampling head hook in training) and features [B, D]."""
        body_key, feature_key, head_key = jax.random.split(key, 3) if training else (None, None, None)
        features = self.body(images, body_key, hooks, training)
        seen = hooks.features(feature_key, features) if training and hooks.features else features
        logits = hooks.head(head_key, self.head, seen) if training and hooks.head else self.head(seen)
        return logits, features


class Mlp(Classifier):
    """Hidden layers with ReLU; those after the first are residual, so that drop-path has a branch to drop."""

    def __init__(self, size: int, num_classes: int, *, width: int, depth: int, dtype: Any = None, rngs: nnx.Rngs):
        self.stem = nnx.Linear(size, width, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(width, width, dtype=dtype, rngs=rngs) for _ in range(depth - 1)])
        self.head = nnx.Linear(width, num_classes, dtype=dtype, rngs=rngs)

    def body(self, images: jax.Array, key: Any, hooks: rj.Hooks, training: bool) -> jax.Array:
        """Dropout and noise after every hidden layer."""
        x = nnx.relu(self.stem(hooks.mix(0, images).reshape(len(images), -1)))
        x = _noise(key, 0, x, hooks, training)
        rates = rj.layers.drop_path_rates(hooks.drop_path, len(self.blocks) + 1)
        for i, block in enumerate(self.blocks, 1):
            x = hooks.mix(i, x)
            x = x + _drop_path(key, i, nnx.relu(block(x)), rates[i], training)
            x = _noise(key, i, x, hooks, training)
        return x


class ResNetBlock(nnx.Module):
    """Two 3x3 convolutions with batch normalisation, and a projection where the shape changes."""

    def __init__(self, before: int, after: int, stride: int, *, dtype: Any, rngs: nnx.Rngs):
        conv = lambda i, o, k, s: nnx.Conv(i, o, (k, k), strides=s, use_bias=False, dtype=dtype, rngs=rngs)
        norm = lambda: nnx.BatchNorm(after, momentum=0.9, dtype=dtype, rngs=rngs)
        self.conv1, self.norm1 = conv(before, after, 3, stride), norm()
        self.conv2, self.norm2 = conv(after, after, 3, 1), norm()
        self.project = nnx.data(conv(before, after, 1, stride) if stride > 1 or before != after else None)

    def __call__(self, x: jax.Array, training: bool) -> tuple[jax.Array, jax.Array]:
        """The shortcut and the branch."""
        frozen = not training
        branch = nnx.relu(self.norm1(self.conv1(x), use_running_average=frozen))
        branch = self.norm2(self.conv2(branch), use_running_average=frozen)
        return x if self.project is None else self.project(x), branch


class ResNet(Classifier):
    """A CIFAR-style ResNet: three stages that double the channels and halve the image."""

    def __init__(self, channels: int, num_classes: int, *, width: int, depth: int, dtype: Any = None, rngs: nnx.Rngs):
        self.stem = nnx.Conv(channels, width, (3, 3), use_bias=False, dtype=dtype, rngs=rngs)
        self.norm = nnx.BatchNorm(width, momentum=0.9, dtype=dtype, rngs=rngs)
        blocks, before = [], width
        for stage in range(3):
            for i in range(depth):
                after = width * 2**stage
                blocks.append(ResNetBlock(before, after, 2 if stage and not i else 1, dtype=dtype, rngs=rngs))
                before = after
        self.blocks = nnx.List(blocks)
        self.head = nnx.Linear(before, num_classes, dtype=dtype, rngs=rngs)

    def body(self, images: jax.Array, key: Any, hooks: rj.Hooks, training: bool) -> jax.Array:
        """Noise after every block; global average pooling, then dropout."""
        x = nnx.relu(self.norm(self.stem(hooks.mix(0, images)), use_running_average=not training))
        rates = rj.layers.drop_path_rates(hooks.drop_path, len(self.blocks))
        for i, block in enumerate(self.blocks):
            shortcut, branch = block(hooks.mix(i + 1, x), training)
            x = nnx.relu(shortcut + _drop_path(key, i, branch, rates[i], training))
            x = _block_noise(key, i, x, hooks, training)
        return _dropout(key, 0, x.mean((1, 2)), hooks, training)


class WideBlock(nnx.Module):
    """Batch normalisation and ReLU before each of two 3x3 convolutions, dropout between them."""

    def __init__(self, before: int, after: int, stride: int, *, dtype: Any, rngs: nnx.Rngs):
        conv = lambda i, o, k, s: nnx.Conv(i, o, (k, k), strides=s, use_bias=False, dtype=dtype, rngs=rngs)
        norm = lambda size: nnx.BatchNorm(size, momentum=0.9, dtype=dtype, rngs=rngs)
        self.norm1, self.conv1 = norm(before), conv(before, after, 3, stride)
        self.norm2, self.conv2 = norm(after), conv(after, after, 3, 1)
        self.project = nnx.data(conv(before, after, 1, stride) if stride > 1 or before != after else None)

    def __call__(self, x: jax.Array, drop: Any, training: bool) -> tuple[jax.Array, jax.Array]:
        """The shortcut and the branch; ``drop`` works on what enters the second convolution."""
        frozen = not training
        seen = nnx.relu(self.norm1(x, use_running_average=frozen))
        branch = nnx.relu(self.norm2(self.conv1(seen), use_running_average=frozen))
        return x if self.project is None else self.project(seen), self.conv2(drop(branch))


class WideResNet(Classifier):
    """A wide residual network for small images: three stages, the first at the images' size, activations before weights."""

    def __init__(self, channels: int, num_classes: int, *, width: int, depth: int, dtype: Any = None, rngs: nnx.Rngs):
        before = 16
        self.stem = nnx.Conv(channels, before, (3, 3), use_bias=False, dtype=dtype, rngs=rngs)
        blocks = []
        for stage in range(3):
            for i in range(depth):
                after = width * 2**stage
                blocks.append(WideBlock(before, after, 2 if stage and not i else 1, dtype=dtype, rngs=rngs))
                before = after
        self.blocks = nnx.List(blocks)
        self.norm = nnx.BatchNorm(before, momentum=0.9, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(before, num_classes, dtype=dtype, rngs=rngs)

    def body(self, images: jax.Array, key: Any, hooks: rj.Hooks, training: bool) -> jax.Array:
        """Dropout inside the blocks, noise after each."""
        x = self.stem(hooks.mix(0, images))
        rates = rj.layers.drop_path_rates(hooks.drop_path, len(self.blocks))
        for i, block in enumerate(self.blocks):
            drop = functools.partial(_dropout, key, i, hooks=hooks, training=training)
            shortcut, branch = block(hooks.mix(i + 1, x), drop, training)
            x = shortcut + _drop_path(key, i, branch, rates[i], training)
            x = _block_noise(key, i, x, hooks, training)
        return nnx.relu(self.norm(x, use_running_average=not training)).mean((1, 2))


class ViTBlock(nnx.Module):
    """Pre-norm attention and a two-layer MLP."""

    def __init__(self, width: int, heads: int, *, dtype: Any, rngs: nnx.Rngs):
        self.norm1, self.norm2 = nnx.LayerNorm(width, dtype=dtype, rngs=rngs), nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, dtype=dtype, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, dtype=dtype, rngs=rngs)

    def mix(self, x: jax.Array) -> jax.Array:
        """The attention branch."""
        return self.attention(self.norm1(x))

    def transform(self, x: jax.Array) -> jax.Array:
        """The MLP branch."""
        return self.down(nnx.gelu(self.up(self.norm2(x))))


class ViT(Classifier):
    """A vision transformer without a class token: the features are the mean over patches."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        num_classes: int,
        *,
        width: int,
        depth: int,
        patch: int,
        heads: int,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        height, breadth, channels = shape
        if height % patch or breadth % patch:
            raise ValueError(f"ViT: patch must divide the image {height}x{breadth}, got {patch}")
        count = (height // patch) * (breadth // patch)
        self.stem = nnx.Conv(channels, width, (patch, patch), strides=patch, padding="VALID", dtype=dtype, rngs=rngs)
        self.position = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, count, width)))
        self.blocks = nnx.List([ViTBlock(width, heads, dtype=dtype, rngs=rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(width, num_classes, dtype=dtype, rngs=rngs)

    def body(self, images: jax.Array, key: Any, hooks: rj.Hooks, training: bool) -> jax.Array:
        """Dropout after the position embedding and on the features; noise after every block."""
        x = self.stem(hooks.mix(0, images))
        x = x.reshape(len(images), -1, x.shape[-1])
        x = _dropout(key, 0, x + self.position[...].astype(x.dtype), hooks, training)
        rates = rj.layers.drop_path_rates(hooks.drop_path, len(self.blocks))
        for i, block in enumerate(self.blocks):
            x = hooks.mix(i + 1, x)
            x = x + _drop_path(key, 2 * i, block.mix(x), rates[i], training)
            x = x + _drop_path(key, 2 * i + 1, block.transform(x), rates[i], training)
            x = _block_noise(key, i, x, hooks, training)
        return _dropout(key, 1, self.norm(x).mean(1), hooks, training)


def make_model(
    config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int, *, rngs: nnx.Rngs, dtype: Any = None
) -> Classifier:
    """The model of a configuration for images [H, W, C]; parameters in float32, computation in ``dtype``."""
    height, width, channels = image_shape
    sizes = {"width": config.width, "depth": config.depth, "dtype": dtype, "rngs": rngs}
    if config.name == "mlp":
        return Mlp(height * width * channels, num_classes, **sizes)
    if config.name in ("resnet", "wrn"):
        return (ResNet if config.name == "resnet" else WideResNet)(channels, num_classes, **sizes)
    return ViT(image_shape, num_classes, patch=config.patch, heads=config.heads, **sizes)


def split(model: Classifier) -> tuple[rj.ApplyFn, nnx.State, nnx.State]:
    """A model as a pure function with its parameters and its mutable state, the form that `regjax.make_train_step` takes."""
    graph, params, state = nnx.split(model, nnx.Param, ...)

    def apply_fn(params: Any, state: Any, images: jax.Array, *, key: Any, hooks: rj.Hooks, training: bool) -> rj.Outputs:
        # The state may come from outside a trace of `grad`: rebuilt, its variables belong to this one and can be written.
        module = nnx.merge(graph, meshes.gathered(params), jax.tree.map(lambda x: x, state))
        logits, features = module(images, key=key, hooks=hooks, training=training)
        return rj.Outputs(logits, features, nnx.state(module, nnx.Not(nnx.Param)))

    return apply_fn, params, state


def _dropout(key: Any, index: int, x: jax.Array, hooks: rj.Hooks, training: bool) -> jax.Array:
    """Dropout of the hooks' rate; the static rate 0 costs nothing."""
    if not training or (isinstance(hooks.dropout, (int, float)) and hooks.dropout == 0):
        return x
    return rj.layers.dropout(jax.random.fold_in(key, 2 * index), x, rate=hooks.dropout)


def _block_noise(key: Any, index: int, x: jax.Array, hooks: rj.Hooks, training: bool) -> jax.Array:
    """The noise hook."""
    return hooks.noise(jax.random.fold_in(jax.random.fold_in(key, index), 1), x) if training and hooks.noise else x


def _noise(key: Any, index: int, x: jax.Array, hooks: rj.Hooks, training: bool) -> jax.Array:
    """Dropout and the noise hook at one place."""
    return _block_noise(key, index, _dropout(key, index, x, hooks, training), hooks, training)


def _drop_path(key: Any, index: int, x: jax.Array, rate: Any, training: bool) -> jax.Array:
    """Drop-path of one branch."""
    if not training:
        return x
    return rj.layers.drop_path(jax.random.fold_in(key, 2 * index + 1), x, rate=rate)
