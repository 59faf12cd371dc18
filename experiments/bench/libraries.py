"""The same work done by other libraries, where they are installed: ``pip install .[bench]``."""

import importlib
import itertools
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from experiments.bench.timing import Subject


def available(*modules: str) -> bool:
    """Whether all modules can be imported; says on stderr what is skipped where one cannot."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    for module in modules:
        try:
            importlib.import_module(module)
        except (ImportError, RuntimeError, AttributeError) as error:
            reason = str(error).splitlines()[0]
            print(f"skipped: {modules[-1]} ({reason}); install the peers with: pip install .[bench]", file=sys.stderr)
            return False
    return True


def timm_mixup(images: np.ndarray, labels: np.ndarray, num_classes: int, threads: int) -> dict[str, Subject]:
    """The ``Mixup`` of timm, which overwrites its input, in its three modes; PyTorch's layout of the same batch."""
    if not available("torch", "timm.data"):
        return {}
    from timm.data import Mixup

    batch, ids = _torch_batch(images, labels, threads)
    subjects = {}
    for mode in ("batch", "pair", "elem"):
        for kind, alphas in MIXES.items():
            mixup = Mixup(**alphas, prob=1.0, mode=mode, label_smoothing=0.1, num_classes=num_classes)
            subjects[f"timm Mixup {mode} {kind}"] = Subject(lambda m=mixup: m(batch, ids))
    return subjects


def torchvision_mixing(images: np.ndarray, labels: np.ndarray, num_classes: int, threads: int) -> dict[str, Subject]:
    """``MixUp`` and ``CutMix`` of torchvision's transforms, version 2, which make a new batch."""
    if not available("torch", "torchvision.transforms.v2"):
        return {}
    from torchvision.transforms import v2

    batch, ids = _torch_batch(images, labels, threads)
    transforms = {"mixup": v2.MixUp(num_classes=num_classes), "cutmix": v2.CutMix(num_classes=num_classes)}
    return {f"torchvision {kind}": Subject(partial(transform, batch, ids)) for kind, transform in transforms.items()}


def timm_mixing(images: np.ndarray, labels: np.ndarray, num_classes: int, threads: int) -> dict[str, Subject]:
    """The ``Mixup`` of timm on a copy of the batch, so that its input stays whole."""
    if not available("torch", "timm.data"):
        return {}
    from timm.data import Mixup

    batch, ids = _torch_batch(images, labels, threads)
    subjects = {}
    for kind, alphas in MIXES.items():
        mixup = Mixup(**alphas, prob=1.0, mode="batch", label_smoothing=0.0, num_classes=num_classes)
        subjects[f"timm {kind}"] = Subject(lambda m=mixup: m(batch.clone(), ids))
    return subjects


def _torch_batch(images: np.ndarray, labels: np.ndarray, threads: int) -> tuple[Any, Any]:
    """A batch in PyTorch's layout, and its class ids."""
    import torch

    set_torch_threads(threads)
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))), torch.from_numpy(labels.argmax(-1))


def set_torch_threads(threads: int) -> None:
    """As many threads for PyTorch as the other libraries may use; 0 for all cores."""
    import torch

    torch.set_num_threads(threads or os.cpu_count() or 1)


def torch_dropout(shape: tuple[int, ...], rate: float, threads: int) -> dict[str, Subject]:
    """PyTorch's dropout of an array."""
    if not available("torch"):
        return {}
    import torch

    set_torch_threads(threads)
    x = torch.ones(shape)
    return {"PyTorch dropout": Subject(lambda: torch.nn.functional.dropout(x, rate))}


MIXES: Mapping[str, Mapping[str, float]] = {
    "mixup": {"mixup_alpha": 1.0, "cutmix_alpha": 0.0},
    "cutmix": {"mixup_alpha": 0.0, "cutmix_alpha": 1.0},
}
"""What is mixed how, under names that timm and `regjax.inputs.batch_mix` share."""


def keras_mixing(images: Any, labels: Any) -> dict[str, Subject]:
    """Keras' ``MixUp`` and ``CutMix`` on the JAX backend: as they run by themselves, and compiled with their seed as state."""
    if not available("keras"):
        return {}
    import jax
    import keras

    if keras.backend.backend() != "jax":
        print("skipped: keras (its backend is not jax; set KERAS_BACKEND=jax)", file=sys.stderr)
        return {}
    batch = {"images": images, "labels": labels}
    subjects = {}
    for name, layer in (("MixUp", keras.layers.MixUp(alpha=1.0, seed=0)), ("CutMix", keras.layers.CutMix(factor=1.0, seed=0))):
        subjects[f"keras {name}"] = Subject(lambda layer=layer: jax.block_until_ready(layer(batch, training=True)))
        subjects[f"keras {name} compiled"] = Subject(_compiled(layer, batch))
    return subjects


def keras_randaugment(images: Any) -> dict[str, Subject]:
    """Keras' ``RandAugment`` on the JAX backend; seconds a call, so it takes two turns."""
    if not available("keras"):
        return {}
    import jax
    import keras

    layer = keras.layers.RandAugment(value_range=(0, 1), num_ops=2, factor=0.9, seed=0)
    return {"keras RandAugment": Subject(lambda: jax.block_until_ready(layer(images, training=True)), turns=2)}


def timm_randaugment(pixels: np.ndarray) -> dict[str, Subject]:
    """RandAugment of timm on Pillow images, by interpolation: alone, and from uint8 arrays to the float32 batch of a network."""
    if not available("torch", "PIL", "timm.data"):
        return {}
    from PIL import Image
    from timm.data.auto_augment import rand_augment_transform

    pictures = [Image.fromarray(image) for image in pixels]

    def alone(augment: Any) -> None:
        for picture in pictures:
            augment(picture)

    def whole(augment: Any) -> np.ndarray:
        arrays = [np.asarray(augment(Image.fromarray(image))) for image in pixels]
        return np.stack(arrays).astype(np.float32) / 255

    subjects = {}
    for kind in ("nearest", "bilinear"):
        settings = {"img_mean": (128, 128, 128), "interpolation": Image.Resampling[kind.upper()]}
        augment = rand_augment_transform("rand-m9-n2-p1-inc1", settings)
        subjects[f"timm RandAugment {kind}"] = Subject(partial(alone, augment))
        subjects[f"timm RandAugment {kind}, arrays to batch"] = Subject(partial(whole, augment))
    return subjects


def torch_sam(
    shape: tuple[int, ...], x: np.ndarray, y: np.ndarray, *, rho: float, rate: float, momentum: float, threads: int
) -> dict[str, Subject]:
    """A plain step of PyTorch, and one of SAM as its users write it: two backward passes, the weights moved and put back.

    The networks are those of `experiments.bench.objectives`, run eagerly, as PyTorch users do.
    """
    if not available("torch"):
        return {}
    import torch

    set_torch_threads(threads)
    torch.manual_seed(0)
    network: Callable[[], Any] = partial(_torch_resnet, shape[2]) if len(shape) == 3 else partial(_torch_mlp, shape[1:])
    images = torch.from_numpy(np.array(x if x.ndim == 2 else x.transpose(0, 3, 1, 2)))
    labels = torch.from_numpy(np.array(y)).long()

    def prepared() -> tuple[Any, Any, Any]:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum)
        backward = lambda: torch.nn.functional.cross_entropy(model(images), labels).backward()
        return list(model.parameters()), optimizer, backward

    _, optimizer, backward = prepared()

    def plain() -> None:
        optimizer.zero_grad()
        backward()
        optimizer.step()

    weights, base, ascent = prepared()

    @torch.no_grad()
    def climb() -> list[Any]:
        norm = torch.norm(torch.stack([weight.grad.norm() for weight in weights]))
        kept = [weight.clone() for weight in weights]
        for weight in weights:
            weight.add_(weight.grad * (rho / (norm + 1e-12)))
        return kept

    @torch.no_grad()
    def put_back(kept: list[Any]) -> None:
        for weight, old in zip(weights, kept, strict=True):
            weight.copy_(old)

    def sam() -> None:
        base.zero_grad()
        ascent()
        kept = climb()
        base.zero_grad()
        ascent()
        put_back(kept)
        base.step()

    return {"PyTorch plain step": Subject(plain), "PyTorch SAM": Subject(sam)}


def _torch_mlp(sizes: tuple[int, ...]) -> Any:
    from torch import nn

    layers: list[Any] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _torch_resnet(width: int) -> Any:
    """`experiments.models.ResNet` with one block a stage."""
    from torch import nn

    class Block(nn.Module):
        def __init__(self, before: int, after: int, stride: int) -> None:
            super().__init__()
            conv = lambda i, o, k, s: nn.Conv2d(i, o, k, s, padding=k // 2, bias=False)
            self.branch = nn.Sequential(
                conv(before, after, 3, stride), nn.BatchNorm2d(after), nn.ReLU(), conv(after, after, 3, 1), nn.BatchNorm2d(after)
            )
            self.project = conv(before, after, 1, stride) if before != after else nn.Identity()

        def forward(self, x: Any) -> Any:
            return nn.functional.relu(self.project(x) + self.branch(x))

    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        Block(width, width, 1),
        Block(width, 2 * width, 2),
        Block(2 * width, 4 * width, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, 10),
    )


def _compiled(layer: Any, batch: Any) -> Callable[[], Any]:
    """A Keras layer under ``jax.jit``, its random state passed in and out."""
    import jax
    import jax.numpy as jnp
    import keras

    seed = layer.generator.state

    def call(state: Any, batch: Any) -> Any:
        with keras.StatelessScope([(seed, state)]) as scope:
            return layer(batch, training=True), scope.get_current_value(seed)

    compiled, state = jax.jit(call), jnp.asarray(seed.value)
    return lambda: jax.block_until_ready(compiled(state, batch))
