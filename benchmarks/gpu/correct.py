"""Whether the loss and the mean embedding are right on the device: against float64, beside what plain PyTorch loses."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gpu.bench import Bench
from superpose import IGNORE_INDEX, bag_weights, embed_bags, linear_multi_hot_cross_entropy, multi_hot_cross_entropy
from superpose.core import passes

SMALL_ENOUGH = 1e-5
"""Relative error that is float32's. In half precision half as much again as plain PyTorch's is allowed, which rounds as
often but not the same numbers, and to the value alone, an average whose errors meet by chance, a 16th of a rounding."""


def check(bench: Bench) -> dict[str, Any]:
    """Each case's relative error of loss and gradients beside that of whole logits, and whether all are right."""
    vocab_size, width, positions = (203, 16, 40) if bench.small else (50257, 256, 600)
    cases: dict[str, dict[str, Any]] = {
        "plain": {},
        "bias": {"bias": True},
        "softcap 30": {"softcap": 30.0},
        "bias, softcap 5, z-loss 1e-3": {"bias": True, "softcap": 5.0, "z_loss": 1e-3},
        "padding": {"vocab_size": vocab_size - 54},
        "weights": {"weights": True},
        "reduction none": {"reduction": "none"},
        "one target": {"bag_size": 1},
        "chunks of 17": {"chunk_positions": 17},
    }
    found = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for name, options in cases.items():
            found.append({"case": name, "dtype": str(dtype).removeprefix("torch.")})
            found[-1] |= _case(bench, (positions, width, vocab_size), dtype, **options)
    others = {
        "passes beyond 2^31 logits": _far_rows(bench),
        "the same bits twice": _same_bits(bench),
        "torch.compile, whole graph": _compiled(bench),
        "mean of embeddings": _embedding(bench),
    }
    found += [{"case": name, "dtype": "bfloat16", **result} for name, result in others.items()]
    return {"cases": found, "right": all(case["right"] for case in found)}


def _case(
    bench: Bench,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    bias: bool = False,
    bag_size: int = 5,
    vocab_size: int | None = None,
    softcap: float | None = None,
    weights: bool = False,
    reduction: str = "mean",
    chunk_positions: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    positions, width, entries = shape
    targets = torch.randint(0, vocab_size or entries, (positions, bag_size), device=bench.device)
    if bag_size > 1:
        targets[:, 1] = targets[:, 0]  # a token twice
        targets[::3, 2:] = IGNORE_INDEX
    targets[::7] = IGNORE_INDEX
    leaves = [
        torch.randn(positions, width, device=bench.device, dtype=torch.float64),
        torch.randn(entries, width, device=bench.device, dtype=torch.float64) * 2 * width**-0.5,
        *([torch.randn(entries, device=bench.device, dtype=torch.float64)] if bias else []),
    ]
    leaves = [leaf.to(dtype) for leaf in leaves]
    options |= {"weights": bag_weights(bag_size, "power").to(bench.device) if weights else None}
    upstream = torch.rand(positions, device=bench.device)

    def of(leaves: list[Tensor], fused: bool) -> list[Tensor]:
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        hidden, head = leaves[:2]
        if fused:
            loss = linear_multi_hot_cross_entropy(
                *(hidden, head, targets),
                bias=leaves[2] if bias else None,
                softcap=softcap,
                vocab_size=vocab_size,
                reduction=reduction,  # type: ignore[arg-type]
                chunk_positions=chunk_positions,
                **options,
            )
        else:
            logits = F.linear(hidden, head, leaves[2] if bias else None)[:, :vocab_size]
            logits = softcap * torch.tanh(logits / softcap) if softcap else logits
            loss = multi_hot_cross_entropy(logits, targets, reduction=reduction, **options)  # type: ignore[arg-type]
        gradients = torch.autograd.grad((loss * upstream).sum() if reduction == "none" else loss, leaves)
        return [loss.detach(), *gradients]

    exact = of([leaf.double() for leaf in leaves], fused=False)
    ours, plain = (_errors(of(leaves, fused), exact) for fused in (True, False))
    least = max(SMALL_ENOUGH, torch.finfo(dtype).eps / 16)
    right = all(own <= max(least, 1.5 * other) for own, other in zip(ours, plain, strict=True))
    return {"error": ours, "plain_error": plain, "right": right}


def _errors(tensors: list[Tensor], exact: list[Tensor]) -> list[float]:
    """|| a - b || / || b || of each; NaN is never right."""
    return [
        float(f"{((a.double() - b.double()).norm() / b.double().norm()).item():.2e}")
        for a, b in zip(tensors, exact, strict=True)
    ]


def _far_rows(bench: Bench) -> dict[str, Any]:
    """The last row of logits that 32 bits do not count."""
    positions, vocab_size = (5, 4099) if bench.small else (16500, 131072)
    logits = torch.randn(positions, vocab_size, device=bench.device, dtype=torch.bfloat16)
    places = torch.randint(0, vocab_size, (positions, 3), device=bench.device)
    last, form = logits[-1:].double(), passes.passes_for(logits)
    picked, top, normalizer = form.read_logits(logits, None, 0.0, places, torch.float32, True)
    lse, expected = top + normalizer.log(), last.logsumexp(-1, keepdim=True)
    rest = picked, top, 1 / normalizer, places, torch.zeros_like(picked)
    multiplier = form.write_gradient(logits, None, 0.0, *rest)
    assert multiplier is None or (multiplier == rest[2]).all()
    errors = [*_errors([lse[-1:], logits[-1:]], [expected, (last - expected).exp()])]
    errors += _errors([picked[-1]], [last[0, places[-1]]])
    return {"error": errors, "right": errors[0] < 1e-6 and errors[1] < 4e-3 and errors[2] == 0}


def _operands(bench: Bench, bag_size: int) -> tuple[Tensor, Tensor, Tensor]:
    positions, width, vocab_size = (64, 16, 203) if bench.small else (2048, 256, 50257)
    hidden = torch.randn(positions, width, device=bench.device, dtype=torch.bfloat16, requires_grad=True)
    head = torch.randn(vocab_size, width, device=bench.device, dtype=torch.bfloat16, requires_grad=True)
    return hidden, head, torch.randint(0, vocab_size, (positions, bag_size), device=bench.device)


def _same_bits(bench: Bench) -> dict[str, Any]:
    hidden, head, targets = _operands(bench, 4)
    targets[:, 1] = targets[:, 0]
    runs = []
    for _ in range(3):
        loss = linear_multi_hot_cross_entropy(hidden, head, targets)
        runs.append([loss.detach(), *torch.autograd.grad(loss, [hidden, head])])
    return {"right": all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))}


def _compiled(bench: Bench) -> dict[str, Any]:
    hidden, head, targets = _operands(bench, 4)
    losses = []
    for function in (torch.compile(_doubled, fullgraph=True, backend="eager" if bench.small else "inductor"), _doubled):
        loss = function(hidden, head, targets)
        losses.append([loss.detach(), *torch.autograd.grad(loss, [hidden, head])])
    errors = _errors(*losses)
    return {"error": errors, "right": max(errors) < 1e-3}


def _doubled(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    return linear_multi_hot_cross_entropy(2 * hidden, head, targets)


def _embedding(bench: Bench) -> dict[str, Any]:
    """Means and the table's gradient against float64 on the CPU, frequent tokens among them."""
    bags, vocab_size, width = (32, 100, 8) if bench.small else (4096, 50257, 256)
    ids = torch.randint(0, vocab_size, (bags, 8)).mul_(torch.rand(bags, 8) < 0.7)
    ids[::5, 3:] = IGNORE_INDEX
    table, upstream = torch.randn(vocab_size, width).bfloat16(), torch.randn(bags, width).bfloat16()
    results = []
    for device, dtype in ((bench.device, torch.bfloat16), (torch.device("cpu"), torch.float64)):
        leaf = table.to(device, dtype).requires_grad_()
        means = embed_bags(ids.to(device), leaf)
        (gradient,) = torch.autograd.grad(means, leaf, upstream.to(device, dtype))
        results.append([means.detach().cpu(), gradient.cpu()])
    errors = _errors(*results)
    return {"error": errors, "right": max(errors) < 5e-3}
