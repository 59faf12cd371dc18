"""The inputs."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import regjax as rj
from experiments.bench.cards import case as c

inp, KEY = rj.inputs, c.key()
BATCH, CLASSES = 256, 10
SIZES = (512, 512, 512, 100)
"""The network that manifold mixup runs: its input, hidden layers and classes."""


def images():
    """A batch of images."""
    return c.uniform(BATCH, 32, 32, 3)


def labels():
    """Their labels, as probabilities."""
    return c.probabilities(BATCH, CLASSES)


def partner():
    """The partner of each image."""
    return c.ids(BATCH, below=BATCH)


def augment(call, **options):
    """A transform of images alone, such as those that hide a part, beside a copy of the images."""
    return lambda: c.case(lambda key, x: call(key, x, **options)[0], KEY, images())


def mix(call, **options):
    """A transform of images and labels."""
    return lambda: c.case(lambda key, x, y: call(key, x, y, **options), KEY, images(), labels())


def apply_mix(call, *given):
    """Images, labels and partners, and what else is drawn: ``call(x, y, partner, *given)``."""
    return lambda: c.case(call, images(), labels(), partner(), *(make() for make in given))


lam = lambda: c.uniform(BATCH)
pixel = lambda *shape: lambda: c.ids(BATCH, *shape, below=32)
memory = lambda seed=0: c.uniform(50_000, seed=seed)
rows = lambda: c.ids(BATCH, below=50_000)
cells = lambda seed=0: c.normal(64, 4096, seed=seed)


# The mixing of batches.
MIXING = {
    "mixup": mix(inp.mixup),
    "apply_mixup": apply_mix(lambda x, y, p, lam: inp.apply_mixup(x, y, lam=lam, partner=p), lam),
    "cutmix": mix(inp.cutmix),
    "apply_cutmix": apply_mix(lambda x, y, p, lam, at: inp.apply_cutmix(x, y, lam=lam, centre=at, partner=p), lam, pixel(2)),
    "cutmix_box": lambda: c.case(lambda lam, centre: inp.cutmix_box(lam, centre, (32, 32)), lam(), pixel(2)()),
    "paste_box": apply_mix(
        lambda x, y, p, *box: inp.paste_box(x, y, box=box, partner=p),
        *[lambda low=low: low + c.ids(BATCH, below=16) for low in (0, 16, 0, 16)],
    ),
    "batch_mix": mix(inp.batch_mix, mixup_alpha=0.8, cutmix_alpha=1.0),
    "apply_batch_mix": lambda: c.case(
        lambda x, y, lam, cut, at: inp.apply_batch_mix(x, y, mode="elem", lam=lam, use_cutmix=cut, centres=at),
        *(images(), labels(), lam(), lam() < 0.5, pixel(2)()),
    ),
    "batch_style": augment(inp.batch_style),
    "apply_batch_style": lambda: c.case(lambda x: inp.apply_batch_style(x, reference_index=3, ratio=0.3), images()),
}


# Manifold mixup: a training step of a network beside the plain one.
def dense_params():
    """The kernels of the network."""
    return [layer["kernel"][:, :columns] for layer, columns in zip(c.kernels(3).values(), SIZES[1:], strict=True)]


def stages(params):
    """The network as stages."""
    return [lambda h, w=w: jax.nn.relu(h @ w) for w in params[:-1]] + [lambda h: h @ params[-1]]


def plain_network(params, x, y):
    """Its loss."""
    for stage in stages(params):
        x = stage(x)
    return optax.softmax_cross_entropy(x, y)


def mixed_network(params, x, y, key):
    """Its loss with manifold mixup."""
    return optax.softmax_cross_entropy(*inp.manifold_mixup(key, stages(params), x, y))


def mixed_model(params, x, y, key):
    """The same of a Flax model."""
    split = nnx.split(nnx.Sequential(*(nnx.Linear(*w.shape, use_bias=False, rngs=nnx.Rngs(0)) for w in params)))
    model = nnx.merge(*split)
    for layer, w in zip(model.layers, params, strict=True):
        layer.kernel.set_value(w)
    model.layers = nnx.List([model.layers[0], jax.nn.relu, model.layers[1], jax.nn.relu, model.layers[2]])
    layers = ("input", "layers.0", "layers.2")
    return optax.softmax_cross_entropy(*inp.manifold_mixup_model(key, model, x, y, layers=layers))


def beside_network(call):
    """A loss beside the plain one, each with its gradient."""
    args = (dense_params(), c.normal(BATCH, SIZES[0]), c.probabilities(BATCH, SIZES[-1]))
    return c.beside(c.with_gradient(plain_network, 0), args, "the plain gradient", c.with_gradient(call, 0), *args, KEY)


MANIFOLD = {
    "manifold_mixup": lambda: beside_network(mixed_network),
    "manifold_mixup_model": lambda: beside_network(mixed_model),
    "manifold_mixup_weights": lambda: c.case(lambda key: inp.manifold_mixup_weights(key, BATCH), KEY, like="results"),
}


# Parts of images, found by a map of relevance, from other images.
RELEVANCE = {
    "attention_relevance": lambda: c.case(inp.attention_relevance, c.probabilities(6, 16, 4, 65, 65), c.normal(6, 16, 4, 65, 65)),
    "grad_cam": lambda: c.case(inp.grad_cam, c.normal(64, 65, 256), c.normal(64, 65, 256, seed=1)),
    "cam_mask": lambda: c.case(inp.cam_mask, c.uniform(BATCH, 8, 8)),
    "cam_mask_refill": lambda: c.case(
        lambda key, x, cam: inp.cam_mask_refill(key, x, cam=cam)[0], KEY, images(), c.uniform(BATCH, 8, 8)
    ),
    "random_mask_refill": augment(inp.random_mask_refill, grid=4),
    "apply_mask_refill": lambda: c.case(
        lambda x, hidden, p: inp.apply_mask_refill(x, hidden, partner=p), images(), c.uniform(BATCH, 8, 8) < 0.5, partner()
    ),
}

# What hides a part of each image.
OCCLUSION = {
    "cutout": augment(inp.cutout, length=8),
    "apply_cutout": lambda: c.case(lambda x, at: inp.apply_cutout(x, length=8, centres=at), images(), pixel(1, 2)()),
    "random_erasing": augment(inp.random_erasing),
    "apply_random_erasing": lambda: c.case(
        lambda x, area, aspect, top, left: inp.apply_random_erasing(
            x, area_fraction=area / 3, log_aspect=aspect, top=top, left=left
        ),
        *(images(), lam(), lam(), pixel()(), pixel()()),
    ),
    "noise_mask_image": lambda: c.case(lambda mask: inp.noise_mask_image(mask, image_size=64), c.uniform(64, 4096)),
    "sample_noise_mask": lambda: c.case(
        lambda key, a, b: inp.sample_noise_mask(key, a, b, image_size=64), KEY, cells(), cells(1)
    ),
    "noise_mask_policy_loss": lambda: c.case(
        inp.noise_mask_policy_loss, cells(), cells(1), c.uniform(64, 4096), c.uniform(64), wrt=(0, 1)
    ),
    "smooth_policy": lambda: c.case(inp.smooth_policy, cells(), c.normal(1, 4096)),
}

# Patches, modalities, channels.
TOKENS = {
    "patchify": lambda: c.case(lambda x: inp.patchify(x, 4), images()),
    "unpatchify": lambda: c.case(lambda x: inp.unpatchify(x, 4), c.uniform(BATCH, 64, 48)),
    "random_patch_mask": lambda: c.case(lambda key: inp.random_patch_mask(key, BATCH, 196), KEY, like="results"),
    "apply_patch_mask": lambda: c.case(inp.apply_patch_mask, c.uniform(BATCH, 196)),
    "keep_tokens": lambda: c.case(inp.keep_tokens, c.normal(64, 64, 256), c.ids(64, 16, below=64)),
    "restore_tokens": lambda: c.case(inp.restore_tokens, c.normal(64, 16, 256), jnp.argsort(c.uniform(64, 64)), c.normal(256)),
    "modality_dropout": lambda: c.case(lambda key, x: inp.modality_dropout(key, x, rate=0.25), KEY, c.normal(1024, 512)),
    "apply_modality_dropout": lambda: c.case(inp.apply_modality_dropout, c.normal(1024, 512), c.uniform(1024) < 0.75),
    "modality_dropout_set": lambda: c.case(
        lambda key, x: inp.modality_dropout_set(key, x, rates=dict.fromkeys(x, 0.5)), KEY, modalities()
    ),
    "apply_modality_dropout_set": lambda: c.case(
        lambda x, keep, fallback: inp.apply_modality_dropout_set(x, keep, fallback=fallback),
        *(modalities(), {name: c.uniform(1024, seed=i) < 0.5 for i, name in enumerate(modalities())}, c.ids(1024, below=2)),
    ),
    "noisy_label_channel": lambda: c.case(
        lambda key, y: inp.noisy_label_channel(key, y, num_classes=21), KEY, c.ids(8, 128, 128, below=21)
    ),
    "apply_noisy_label_channel": lambda: c.case(
        lambda y, values, noise: inp.apply_noisy_label_channel(y, class_values=values, noise=noise),
        *(c.ids(8, 128, 128, below=21), c.normal(22), c.normal(8, 128, 128)),
    ),
}


def modalities():
    """The embeddings of two modalities."""
    return {name: c.normal(1024, 512, seed=i) for i, name in enumerate(("text", "video"))}


# Operations on images.
AUGMENTATION = {
    "randaugment": augment(inp.randaugment),
    "randaugment_op": lambda: c.case(lambda x, arg: inp.randaugment_op(x, name="rotate", arg=30 * arg), images(), lam()),
    "augmix": augment(inp.augmix),
    "apply_augmix": lambda: c.case(
        lambda x, chains, weights, m: inp.apply_augmix(x, chains, weights=weights, m=m),
        *(images(), c.uniform(3, BATCH, 32, 32, 3), c.probabilities(BATCH, 3), lam()),
    ),
    "boundary_rearrange": lambda: c.case(lambda x: inp.boundary_rearrange(x, pad=4), images()),
    "boundary_restore": lambda: c.case(lambda x: inp.boundary_restore(x, pad=4), c.uniform(BATCH, 32, 40, 3)),
}

# Which examples to draw.
SELECTION = {
    "importance_probabilities": lambda: c.case(lambda scores: inp.importance_probabilities(scores, mix=0.9), memory()),
    "importance_sampling": lambda: c.case(
        inp.importance_sampling(50_000).apply,
        *(inp.importance_sampling(50_000).init(), c.normal(BATCH, 1000), c.ids(BATCH, below=1000), rows()),
        donate=0,
    ),
    "importance_update": lambda: c.case(inp.importance_update, memory(), rows(), c.uniform(BATCH), donate=0),
    "importance_weights": lambda: c.case(inp.importance_weights, memory() / 25_000, rows()),
    "last_layer_gradient_norm": lambda: c.case(inp.last_layer_gradient_norm, c.normal(1024, 1000), c.ids(1024, below=1000)),
    "path_probabilities": lambda: c.case(lambda norms: inp.path_probabilities(norms, mix=0.9), c.uniform(1024, 32)),
    "sample_indices": lambda: c.case(lambda key, p: inp.sample_indices(key, p, BATCH), KEY, memory()),
    "class_index": lambda: c.case(lambda y: inp.class_index(y, num_classes=100), c.ids(50_000, below=100)),
    "class_prototypes": lambda: c.case(
        lambda x, y: inp.class_prototypes(x, y, num_classes=100), c.normal(4096, 512), c.ids(4096, below=100)
    ),
    "class_balanced_confusion": lambda: c.case(
        lambda guesses, y: inp.class_balanced_confusion(guesses, y, num_classes=100),
        *(c.ids(10_000, below=100), c.ids(10_000, below=100, seed=1)),
    ),
    "sample_class_examples": lambda: c.case(
        inp.sample_class_examples,
        *(KEY, jax.eval_shape(partial(inp.class_index, num_classes=100), c.ids(50_000, below=100)), c.ids(BATCH, below=100)),
    ),
    "sample_class_pairs": lambda: c.case(
        lambda key, pairs: inp.sample_class_pairs(key, pairs, BATCH), KEY, c.probabilities(100, 100) / 100
    ),
    "selmix_coverage_multipliers": lambda: c.case(inp.selmix_coverage_multipliers, c.probabilities(1000)),
    "selmix_distribution": lambda: c.case(inp.selmix_distribution, c.normal(100, 100)),
    "selmix_gain": lambda: c.case(inp.selmix_gain, *head()),
    "selmix_mix": lambda: c.case(inp.selmix_mix, KEY, c.normal(1024, 512), c.normal(1024, 512, seed=1)),
    "apply_selmix": lambda: c.case(
        lambda h1, h2, lam: inp.apply_selmix(h1, h2, lam=lam),
        *(c.normal(1024, 512), c.normal(1024, 512, seed=1), c.uniform(1024)),
    ),
    "selmix_recall_multipliers": lambda: c.case(inp.selmix_recall_multipliers, c.uniform(1000), c.probabilities(1000)),
    "selmix_refresh": lambda: c.case(inp.selmix_refresh(100).apply, inp.selmix_refresh(100).init(), *head()),
}


def head():
    """A confusion matrix, the classes' mean features, and a linear classifier of them."""
    return c.probabilities(100, 100) / 100, c.normal(100, 512), c.normal(512, 100), c.normal(100)


# MetaAug: beside one gradient of the student.
def meta_step(teacher, student, x, x_val, key, transform):
    """The gradient of the transform."""
    logits, _ = c.network()
    step = inp.adam_student_step(lambda theta, x: jnp.mean((logits(theta, x) - logits(teacher, x)) ** 2))
    loss = inp.meta_augment_objective(
        lambda t, x: x + t["scale"] * jnp.tanh(x) + t["shift"],
        lambda moved, theta, state: step.apply(state, theta, moved)[0],
        logits,
        lambda x: (logits(teacher, x), logits(teacher, x)),
    )
    return jax.value_and_grad(loss)(transform, x, x_val, key, student, step.init(student))


def student_step(student, teacher, x, state=None):
    """A gradient of the student, or a step of Adam where it has a state."""
    logits, _ = c.network()
    loss = lambda theta, x: jnp.mean((logits(theta, x) - logits(teacher, x)) ** 2)
    if state is None:
        return jax.value_and_grad(loss)(student, x)
    return inp.adam_student_step(loss).apply(state, student, x)


def metaaug(call):
    """A call beside the gradient of the student."""
    _, params, _, x, _ = c.networks.mlp(*c.MLP)
    teacher = jax.tree.map(lambda p: p + 0.1, params)
    return c.beside(student_step, (params, teacher, x), "the student's gradient", *call(params, teacher, x))


METAAUG = {
    "adam_student_step": lambda: metaaug(
        lambda student, teacher, x: (student_step, student, teacher, x, inp.adam_student_step(lambda theta, x: 0.0).init(student))
    ),
    "meta_augment_objective": lambda: metaaug(
        lambda student, teacher, x: (
            meta_step,
            teacher,
            student,
            x,
            x[::-1],
            KEY,
            {"scale": jnp.zeros(x.shape[1]), "shift": jnp.zeros(x.shape[1])},
        )
    ),
}

CASES = {**MIXING, **MANIFOLD, **RELEVANCE, **OCCLUSION, **TOKENS, **AUGMENTATION, **SELECTION, **METAAUG}
UNCOUNTED = {
    "randaugment_magnitude": "a formula of one number",
}
