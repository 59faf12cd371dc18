"""Formulas of published methods in PyTorch, the way authors write them: whole arrays, one operation after the other, eagerly.

Each works on the same arrays as regjax's and returns its value and gradients, or the new weights, as a list of tensors.
"""

import math
from collections.abc import Sequence
from typing import Any


def _gradients(loss: Any, of: Sequence[Any]) -> list[Any]:
    import torch

    return [loss.detach(), *torch.autograd.grad(loss, list(of))]


def _leaves(*arrays: Any) -> list[Any]:
    return [array.detach().requires_grad_() for array in arrays]


def cross_entropy(z: Any, y: Any, **options: Any) -> list[Any]:
    """PyTorch's own, whose options include label smoothing."""
    from torch.nn import functional

    (z,) = _leaves(z)
    return _gradients(functional.cross_entropy(z, y, **options), [z])


def focal(z: Any, y: Any, gamma: float = 2.0) -> list[Any]:
    """``-(1 - p_y)^gamma log p_y``."""
    (z,) = _leaves(z)
    log_p = z.log_softmax(-1).gather(1, y[:, None])[:, 0]
    return _gradients((-((1 - log_p.exp()) ** gamma) * log_p).mean(), [z])


def poly1(z: Any, y: Any, epsilon: float = 1.0) -> list[Any]:
    """``CE + epsilon (1 - p_y)``."""
    from torch.nn import functional

    (z,) = _leaves(z)
    p = z.softmax(-1).gather(1, y[:, None])[:, 0]
    return _gradients((functional.cross_entropy(z, y, reduction="none") + epsilon * (1 - p)).mean(), [z])


def maxsup(z: Any, y: Any, weight: float = 0.1) -> list[Any]:
    """``CE + weight (max z - mean z)``."""
    from torch.nn import functional

    (z,) = _leaves(z)
    return _gradients(functional.cross_entropy(z, y) + weight * (z.max(-1).values - z.mean(-1)).mean(), [z])


def nkd(z: Any, t: Any, y: Any, gamma: float = 1.5, temperature: float = 1.0) -> list[Any]:
    """``-T_y log S_y + gamma tau^2 N``, N the cross-entropy of the other classes, normalised among themselves."""
    import torch

    (z,) = _leaves(z)
    own = y[:, None]
    target = -(t.softmax(-1).gather(1, own) * z.log_softmax(-1).gather(1, own))[:, 0]
    others = torch.ones_like(z, dtype=torch.bool).scatter_(1, own, False)
    rest = lambda x: x[others].view(len(x), -1) / temperature
    n = -(rest(t).softmax(-1) * rest(z).log_softmax(-1)).sum(-1)
    return _gradients((target + gamma * temperature**2 * n).mean(), [z])


def elr(z: Any, y: Any, memory: Any, beta: float = 0.7, weight: float = 3.0) -> list[Any]:
    """``CE + weight log(1 - <t, p>)`` with the running mean t of the clipped predictions; the new rows of t come last."""
    from torch.nn import functional

    (z,) = _leaves(z)
    p = z.softmax(-1).clamp(1e-4, 1 - 1e-4)
    fixed = p.detach()
    t = beta * memory + (1 - beta) * fixed / fixed.sum(-1, keepdim=True)
    loss = functional.cross_entropy(z, y) + weight * (1 - (t * p).sum(-1)).log().mean()
    return [*_gradients(loss, [z]), t]


def generalized_cross_entropy(z: Any, y: Any, q: float = 0.7) -> list[Any]:
    """``(1 - p_y^q) / q``."""
    (z,) = _leaves(z)
    p = z.softmax(-1).gather(1, y[:, None])[:, 0].clamp(1e-7, 1.0)
    return _gradients(((1 - p**q) / q).mean(), [z])


def symmetric_cross_entropy(z: Any, y: Any, alpha: float = 0.1, beta: float = 1.0) -> list[Any]:
    """``alpha CE + beta RCE`` with the one-hot labels clamped at 1e-4."""
    from torch.nn import functional

    (z,) = _leaves(z)
    labels = functional.one_hot(y, z.shape[-1]).to(z.dtype).clamp(1e-4, 1.0)
    reverse = -(z.softmax(-1) * labels.log()).sum(-1).mean()
    return _gradients(alpha * functional.cross_entropy(z, y) + beta * reverse, [z])


def stablemax(z: Any, y: Any) -> list[Any]:
    """``-log(s(z_y) / sum s)``, s = z + 1 or 1 / (1 - z), in float64 as the authors compute it."""
    import torch

    (z,) = _leaves(z)
    x = z.double()
    s = torch.where(x < 0, 1 / (1 - x + 1e-30), x + 1)
    return _gradients(-(s / s.sum(-1, keepdim=True)).log().gather(1, y[:, None]).mean(), [z])


def saf(z: Any, past: Any, temperature: float = 5.0) -> list[Any]:
    """``T^2 KL(past || z)``, the divergence from the logits of some epochs ago."""
    from torch.nn import functional

    (z,) = _leaves(z)
    log_p, log_q = (z / temperature).log_softmax(-1), (past / temperature).log_softmax(-1)
    return _gradients(temperature**2 * functional.kl_div(log_p, log_q, reduction="batchmean", log_target=True), [z])


def info_nce(q: Any, k: Any, temperature: float = 0.07) -> list[Any]:
    """The contrastive loss of pairs, both ways, as the mean of two cross-entropies of one matrix of cosines."""
    import torch
    from torch.nn import functional

    q, k = _leaves(q, k)
    cosines = functional.normalize(q, dim=-1) @ functional.normalize(k, dim=-1).T / temperature
    own = torch.arange(len(q))
    loss = (functional.cross_entropy(cosines, own) + functional.cross_entropy(cosines.T, own)) / 2
    return _gradients(loss, [q, k])


def orthogonal_gradient(weights: Sequence[Any], grads: Sequence[Any]) -> list[Any]:
    """``g - (<w, g> / <w, w>) w``, rescaled to the length of g, tensor by tensor."""
    out = []
    for w, g in zip(weights, grads, strict=True):
        flat, along = g.flatten(), w.flatten()
        left = flat - (along @ flat) / (along @ along + 1e-30) * along
        out.append((left * (flat.norm() / (left.norm() + 1e-30))).view_as(g))
    return out


def hypersparse(weights: Sequence[Any], prune_rate: float = 0.9) -> list[Any]:
    """The gradient that draws the smallest weights to 0: ``sum |w| sum tanh(s |w|)`` over its own fixed value."""
    import torch

    leaves = _leaves(*weights)
    a = torch.cat([w.flatten() for w in leaves]).abs()
    threshold = a.detach().sort().values[math.floor(prune_rate * a.numel())]
    total, squashed = a.sum(), torch.tanh(0.6585 / threshold * a).sum()
    return _gradients(total * squashed / squashed.detach() - total, leaves)


def spectral(kernels: Sequence[Any], biases: Sequence[Any], directions: Sequence[Any], k: int = 2) -> list[Any]:
    """``sum (sigma_1^k - 1)^2 + sum ||b||^(2k)``, sigma_1 by one step of power iteration for each kernel."""
    import torch
    from torch.nn import functional

    kernels, biases = _leaves(*kernels), _leaves(*biases)
    total = sum((b.square().sum() ** k for b in biases), torch.zeros(()))
    for w, u in zip(kernels, directions, strict=True):
        with torch.no_grad():
            v = functional.normalize(w @ u, dim=0)
            u = functional.normalize(w.T @ v, dim=0)
        total = total + ((v @ (w @ u)) ** k - 1) ** 2
    return _gradients(total, [*kernels, *biases])


def lawn(weights: Sequence[Any], grads: Sequence[Any], rate: float, momentum: float, traces: Sequence[Any]) -> list[Any]:
    """One constrained step over SGD with momentum: project, step, project, return to the norm."""
    moved, kept = [], []
    for w, g, trace in zip(weights, grads, traces, strict=True):
        square = (w * w).sum()
        g = g - (w * g).sum() / square * w
        trace = momentum * trace + g
        u = -rate * trace
        u = u - (w * u).sum() / square * w
        moved.append(square.sqrt() * (w + u) / (w + u).norm())
        kept.append(trace)
    return [*moved, *kept]


def imbsam(weights: Sequence[Any], x: Any, y: Any, rare: Any, rho: float = 0.05) -> list[Any]:
    """Frequent classes at the weights, rare ones at the worst point near them; value and gradients of a dense network."""
    import torch
    from torch.nn import functional

    leaves = _leaves(*weights)

    def parts() -> tuple[Any, Any]:
        h = x
        for kernel, bias in zip(leaves[:-2:2], leaves[1:-2:2], strict=True):
            h = torch.relu(h @ kernel + bias)
        each = functional.cross_entropy(h @ leaves[-2] + leaves[-1], y, reduction="none")
        return (each * ~rare).mean(), (each * rare).mean()

    head, tail = parts()
    up = torch.autograd.grad(tail, leaves, retain_graph=True)
    down = torch.autograd.grad(head, leaves)
    norm = torch.stack([g.square().sum() for g in up]).sum().sqrt()
    shifts = [rho / (norm + 1e-16) * g for g in up]
    with torch.no_grad():
        for leaf, shift in zip(leaves, shifts, strict=True):
            leaf += shift
    value, *rest = _gradients(parts()[1], leaves)
    with torch.no_grad():
        for leaf, shift in zip(leaves, shifts, strict=True):
            leaf -= shift
    return [value + head.detach(), *(a + b for a, b in zip(down, rest, strict=True))]


def soft_threshold(w: Any, step: float) -> list[Any]:
    """``sign(w) max(|w| - t, 0)``."""
    return [w.sign() * (w.abs() - step).clamp(min=0)]


def block_soft_threshold(w: Any, step: float) -> list[Any]:
    """``w max(0, 1 - t / ||w_g||)`` for each column of a kernel."""
    return [w * (1 - step / w.norm(dim=0, keepdim=True).clamp(min=1e-12)).clamp(min=0)]


def moving_average(average: Any, w: Any, decay: float) -> list[Any]:
    """``decay a + (1 - decay) w``."""
    return [average * decay + w * (1 - decay)]


def kth_value(values: Any, k: int) -> list[Any]:
    """The mask of the weights above the k-th smallest magnitude."""
    import torch

    magnitudes = values.abs()
    return [magnitudes > torch.kthvalue(magnitudes, k).values]
