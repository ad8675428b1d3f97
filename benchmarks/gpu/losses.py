"""The passes beside the memory they move, and the loss through the head beside the ways it is usually computed."""

import importlib.util
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gpu.bench import Bench
from superpose import linear_multi_hot_cross_entropy
from superpose.core import passes

LIMIT = "the three matrix products alone"
PLAIN = "F.cross_entropy on whole logits"
OURS = "superpose"

Method = Callable[[Tensor, Tensor, Tensor], Tensor | None]


def measure_passes(bench: Bench) -> dict[str, Any]:
    """Milliseconds of both passes of bfloat16 logits, fused and plain, and how near they are to a copy's rate."""
    shapes = [(8, 4099)] if bench.small else [(4096, 128256), (8192, 50257), (8192, 32000)]
    found = [_passes(bench, *shape, softcap) for shape in shapes for softcap in (0.0, 30.0)]
    return {"passes": found, "blocks": _blocks(bench)}


def _passes(bench: Bench, positions: int, vocab_size: int, softcap: float) -> dict[str, Any]:
    line = -(-vocab_size // 64) * 64  # as the operator has them
    logits = torch.randn(positions, line, device=bench.device, dtype=torch.bfloat16)[:, :vocab_size]
    places = torch.randint(0, vocab_size, (positions, 8), device=bench.device)
    arms: dict[str, Callable[[], object]] = {}
    for name, form in {"fused": passes.passes_for(logits), "plain": passes.PLAIN}.items():
        read = partial(form.read_logits, logits, None, softcap, places, torch.float32, True)
        picked, point, normalizer = read()
        write = partial(
            form.write_gradient, logits, None, softcap, picked, point, 1 / normalizer, places, torch.zeros_like(picked)
        )
        arms |= {f"{name}_read": read, f"{name}_write": write}
    least = bench.seconds(arms)
    return {
        **{"positions": positions, "vocab_size": vocab_size, "softcap": softcap},
        **{f"{name}_ms": round(1e3 * seconds, 4) for name, seconds in least.items()},
        "fused_read_tb_per_s": round(2 * positions * vocab_size / least["fused_read"] / 1e12, 3),
        "fused_write_tb_per_s": round(4 * positions * vocab_size / least["fused_write"] / 1e12, 3),
    }


def _blocks(bench: Bench) -> list[dict[str, Any]]:
    """Milliseconds of both kernels with other blocks and numbers of warps: why they are what they are."""
    if bench.device.type != "cuda":
        return []
    from superpose.core import triton_passes

    positions, vocab_size = 8192, 50304
    logits = torch.randn(positions, vocab_size, device=bench.device, dtype=torch.bfloat16)
    places = torch.randint(0, vocab_size, (positions, 8), device=bench.device)
    chosen, found = (triton_passes.BLOCK, triton_passes.NUM_WARPS), []
    try:
        for triton_passes.BLOCK, triton_passes.NUM_WARPS in product((1024, 2048, 4096, 8192), (4, 8, 16)):
            read = partial(triton_passes.read_logits, logits, None, 0.0, places, torch.float32, True)
            picked, point, normalizer = read()
            rest = picked, point, 1 / normalizer, places, torch.zeros_like(picked)
            write = partial(triton_passes.write_gradient, logits, None, 0.0, *rest)
            least = bench.seconds({"read": read, "write": write}, rounds=3)
            found.append(
                {
                    **{"block": triton_passes.BLOCK, "warps": triton_passes.NUM_WARPS},
                    **{f"{name}_ms": round(1e3 * seconds, 4) for name, seconds in least.items()},
                }
            )
    finally:
        triton_passes.BLOCK, triton_passes.NUM_WARPS = chosen
    return found


def ordinary(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, head), targets[:, 0])


def upcast(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, head).float(), targets[:, 0])


def listing(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    logits = F.linear(hidden, head)
    return torch.stack([F.cross_entropy(logits, target) for target in targets.unbind(1)]).mean()


def products(hidden: Tensor, head: Tensor, targets: Tensor) -> None:
    with torch.no_grad():
        logits = F.linear(hidden, head)
        torch.mm(logits, head)
        torch.mm(logits.t(), hidden)


def methods(bag_size: int) -> dict[str, Method]:
    """Those that are there, for this bag size; the others take one target."""
    found: dict[str, Method] = {LIMIT: products, PLAIN: ordinary, OURS: linear_multi_hot_cross_entropy}
    if bag_size > 1:
        return found | {"paper's listing: s cross-entropies": listing}
    found["transformers: F.cross_entropy on float32 logits"] = upcast
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):
        options = torch.nn.LinearCrossEntropyOptions()
        found["F.linear_cross_entropy"] = lambda hidden, head, targets: F.linear_cross_entropy(
            hidden, head, targets[:, 0].contiguous(), options=options
        )
    if importlib.util.find_spec("liger_kernel") is not None:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss()
        found["Liger"] = lambda hidden, head, targets: liger(head, hidden, targets[:, 0].contiguous())
    return found


def measure_losses(bench: Bench, seconds: float) -> dict[str, Any]:
    """Forward and backward pass in bfloat16: milliseconds, ratios to plain and limit, megabytes at the peak.

    GPT-2's own vocabulary and its padded one first; what is not begun in `seconds` is left out, and said to be.
    """
    stop, positions = bench.left - seconds, 8192
    widths, vocabularies = (768, 2048, 4096), (50304, 128256, 32000)
    settings = [(768, 50257, 1), (768, 50257, 8)]
    settings += [(width, vocab_size, size) for size in (1, 8, 4, 16) for vocab_size in vocabularies for width in widths]
    if bench.small:
        positions, settings = 64, [(16, 203, 1), (16, 203, 4)]
    found, left_out = [], []
    for width, vocab_size, size in settings:
        setting = {"positions": positions, "width": width, "vocab_size": vocab_size, "bag_size": size}
        if bench.left < stop:
            left_out.append(setting)
        else:
            found += _loss(bench, setting)
    missing = []
    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        missing.append(f"F.linear_cross_entropy: torch {torch.__version__} has none")
    if importlib.util.find_spec("liger_kernel") is None:
        missing.append("Liger: liger_kernel is not installed")
    return {"rows": found, "left_out": left_out, "missing": missing}


def _loss(bench: Bench, setting: dict[str, int]) -> list[dict[str, Any]]:
    positions, width, vocab_size, bag_size = setting.values()
    torch.manual_seed(0)
    hidden = torch.randn(positions, width, device=bench.device).bfloat16().requires_grad_()
    head = (torch.randn(vocab_size, width, device=bench.device) * width**-0.5).bfloat16().requires_grad_()
    targets = torch.randint(0, vocab_size, (positions, bag_size), device=bench.device)

    def step(method: Method) -> None:
        hidden.grad = head.grad = None
        loss = method(hidden, head, targets)
        if loss is not None:
            loss.backward()  # type: ignore[no-untyped-call]

    arms, peaks, failed = {}, {}, {}
    for name, method in methods(bag_size).items():
        try:
            hidden.grad = head.grad = None
            peaks[name] = bench.peak_megabytes(partial(step, method))
            arms[name] = partial(step, method)
        except (RuntimeError, TypeError, ValueError) as error:  # out of memory, or another version's call
            failed[name] = str(error).splitlines()[0]
    least = bench.seconds(arms, rounds=3, calls=2)
    rows: list[dict[str, Any]] = [
        {
            **setting,
            "method": name,
            "ms": round(1e3 * least[name], 3),
            "to_plain": round(least[name] / least[PLAIN], 3) if PLAIN in least else None,
            "to_limit": round(least[name] / least[LIMIT], 3),
            "peak_mb": peaks[name],
        }
        for name in arms
    ]
    return rows + [{**setting, "method": name, "failed": why} for name, why in failed.items()]
