"""The loss through the head against the ways it is usually computed: time, and peak memory.

    python benchmarks/loss.py                   all of docs/loss.md's figures, about an hour
    python benchmarks/loss.py --rounds 1        roughly, in a third of that

Forward and backward pass on one thread. Times of a setting's methods are taken in turns in one process, and stated
as ratios to `F.cross_entropy(F.linear(hidden, head), targets[:, 0])`, the loss of ordinary training. Peak memory is
that of a process that does one forward and backward pass, its 200-odd MB of Python and PyTorch included.
Writes benchmarks/results/loss.json and docs/images/loss.png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from measure import interleaved, machine, peak_memory, print_peak_memory
from superpose.core.linear_loss import linear_multi_hot_cross_entropy
from superpose.core.loss import multi_hot_cross_entropy

ROOT = Path(__file__).parents[1]
WIDTH = 256
ROWS = {16384: 2048, 128256: 256}
"""Rows for each vocabulary size: about as many logits for either."""
BAG_SIZES = (1, 4, 8, 16)
DTYPES = ("float32", "bfloat16")
REFERENCE = "ordinary cross-entropy"

Method = Callable[[Tensor, Tensor, Tensor], Tensor]


def ordinary(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, head), targets[:, 0])


def listing(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    logits = F.linear(hidden, head)
    return torch.stack([F.cross_entropy(logits, target) for target in targets.unbind(1)]).mean()


def one_log_softmax(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    log_probabilities = F.linear(hidden, head).log_softmax(-1)
    return torch.stack([F.nll_loss(log_probabilities, target) for target in targets.unbind(1)]).mean()


def whole_logits(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    return multi_hot_cross_entropy(F.linear(hidden, head), targets)


def torch_chunked(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """PyTorch's own fused loss for the first target; the others' logits differ from its by an inner product."""
    loss = F.linear_cross_entropy(
        hidden, head, targets[:, 0].contiguous(), options=torch.nn.LinearCrossEntropyOptions()
    )
    if targets.shape[1] == 1:
        return loss
    mean_row = F.embedding_bag(targets, head, mode="mean")
    return loss + (hidden * (F.embedding(targets[:, 0], head) - mean_row)).sum(-1).mean()


def products(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """The three matrix products and nothing else: what no loss can be faster than in this dtype."""
    with torch.no_grad():
        logits = F.linear(hidden, head)
        torch.mm(logits, head)
        return torch.mm(logits.t(), hidden)


METHODS: dict[str, Method] = {
    REFERENCE: ordinary,
    "paper's listing: s cross-entropies": listing,
    "one log_softmax, s nll_loss": one_log_softmax,
    "logsumexp and gather, whole logits": whole_logits,
    "F.linear_cross_entropy and embedding_bag": torch_chunked,
    "superpose": linear_multi_hot_cross_entropy,
    "the three matrix products alone": products,
}


def operands(vocab_size: int, dtype: str, bag_size: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    rows = ROWS[vocab_size]
    hidden = torch.randn(rows, WIDTH).to(getattr(torch, dtype)).requires_grad_()
    head = (torch.randn(vocab_size, WIDTH) * WIDTH**-0.5).to(getattr(torch, dtype)).requires_grad_()
    return hidden, head, torch.randint(0, vocab_size, (rows, bag_size))


def step(method: str, hidden: Tensor, head: Tensor, targets: Tensor) -> float:
    hidden.grad = head.grad = None
    loss = METHODS[method](hidden, head, targets)
    if loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()
    return float("nan")


def measure(vocab_size: int, dtype: str, bag_size: int, rounds: int) -> list[dict[str, Any]]:
    hidden, head, targets = operands(vocab_size, dtype, bag_size)
    exact = multi_hot_cross_entropy(F.linear(hidden.detach().double(), head.detach().double()), targets).item()
    setting = {"vocab_size": vocab_size, "rows": len(hidden), "width": WIDTH, "dtype": dtype, "bag_size": bag_size}
    seconds = interleaved({name: lambda name=name: step(name, hidden, head, targets) for name in METHODS}, rounds)  # type: ignore[misc]
    results = []
    for name in METHODS:
        value = step(name, hidden, head, targets)
        results.append(
            {
                **setting,
                "method": name,
                "seconds": round(seconds[name], 4),
                "ratio": round(seconds[name] / seconds[REFERENCE], 3),
                # The reference has another target, the products have none.
                "error": None if METHODS[name] in (ordinary, products) else float(f"{abs(value - exact):.1e}"),
                "peak_mb": round(peak_memory(__file__, "--once", name, str(vocab_size), dtype, str(bag_size))),
            }
        )
    return results


def show(results: list[dict[str, Any]]) -> None:
    first = results[0]
    print(f"\nV {first['vocab_size']}  N {first['rows']}  D {WIDTH}  s {first['bag_size']}  {first['dtype']}")
    print(f"{'':42} {'time':>7} {'peak, MB':>9} {'error':>9}")
    for row in results:
        print(f"{row['method']:42} {row['ratio']:7.3f} {row['peak_mb']:9} {row['error'] or '':>9}", flush=True)


def plot(results: list[dict[str, Any]], file: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullLocator

    vocab_size = min(ROWS)
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.8), layout="constrained")
    panels = [("float32", "ratio"), ("bfloat16", "ratio"), ("float32", "peak_mb")]
    for axis, (dtype, figure_of) in zip(axes, panels, strict=True):
        for name in METHODS:
            rows = [r for r in results if (r["vocab_size"], r["dtype"], r["method"]) == (vocab_size, dtype, name)]
            axis.plot(
                [r["bag_size"] for r in rows],
                [r[figure_of] for r in rows],
                label=name,
                marker="o",
                linewidth=3 if name == "superpose" else 1.2,
                linestyle="--" if METHODS[name] in (ordinary, products) else "-",
            )
        axis.set(xscale="log", yscale="log", xlabel="bag size s", xticks=BAG_SIZES, xticklabels=BAG_SIZES)
        ticks = (0.25, 0.5, 1, 2, 4, 8) if figure_of == "ratio" else (400, 800, 1600)
        axis.set_yticks(ticks, labels=[f"{tick:g}" for tick in ticks])
        axis.yaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_minor_locator(NullLocator())
        axis.grid(alpha=0.3)
        axis.set_title(
            f"{dtype}: time against ordinary cross-entropy" if figure_of == "ratio" else f"{dtype}: peak memory, MB"
        )
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--once", nargs=4, metavar=("METHOD", "V", "DTYPE", "S"), help="one pass, for its peak memory")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.once:
        method, vocab_size, dtype, bag_size = arguments.once
        step(method, *operands(int(vocab_size), dtype, int(bag_size)))
        print_peak_memory()
        return
    results: list[dict[str, Any]] = []
    for vocab_size in ROWS:
        for dtype in DTYPES:
            for bag_size in BAG_SIZES:
                # Without the instructions a bfloat16 product takes seconds, and noise is the smaller for it.
                rounds = arguments.rounds if dtype == "float32" else max(1, arguments.rounds // 2)
                setting = measure(vocab_size, dtype, bag_size, rounds)
                show(setting)
                results += setting
    file = ROOT / "benchmarks" / "results" / "loss.json"
    file.parent.mkdir(exist_ok=True)
    facts = {"command": "make bench-loss", "machine": machine(), "results": results}
    file.write_text(json.dumps(facts, indent=1) + "\n")
    plot(results, ROOT / "docs" / "images" / "loss.png")


if __name__ == "__main__":
    main()
