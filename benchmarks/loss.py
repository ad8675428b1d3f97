"""The loss through the head against the ways it is usually computed: time, and peak memory.

    python benchmarks/loss.py                                everything, about an hour and a half
    python benchmarks/loss.py --ways                         six ways at one shape: the first tables of docs/loss.md
    python benchmarks/loss.py --shapes --threads 1 --dtypes bfloat16 --widths 256 768
                                                             superpose, the plain loss and the products at many shapes

Forward and backward pass. Arms of a setting are taken in turns in one process; the least of all rounds counts, on one
thread in seconds of that thread, on several by the clock. The plain loss is `F.cross_entropy(F.linear(hidden, head),
targets[:, 0])`, that of ordinary training; the limit is the three matrix products alone, in the same dtype. Peak memory
is that of a process that does one forward and backward pass, 300 MB of Python and PyTorch included.

Settings that benchmarks/results/loss.json has for this CPU are not measured again, so a run can be cut and goes on;
`--again` measures them. Writes that file, the table of shapes in docs/loss.md and, with the six ways,
docs/images/loss.png. `--page` writes the table alone.
"""

import argparse
import json
import os
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from measure import interleaved, machine, peak_memory, print_peak_memory
from superpose.core.linear_loss import linear_multi_hot_cross_entropy
from superpose.core.loss import multi_hot_cross_entropy

ROOT = Path(__file__).parents[1]
FILE = ROOT / "benchmarks" / "results" / "loss.json"
PAGE = ROOT / "docs" / "loss.md"
PLACE = re.compile(r"(<!-- shapes -->\n).*?(<!-- end -->)", re.DOTALL)
TO_LIMIT = {"float32": 1.15, "bfloat16": 1.30}
"""Goals at widths of 256 and more; to the plain loss 1.00 everywhere."""
BAG_SIZES = (1, 4, 8, 16)
DTYPES = ("float32", "bfloat16")
WAYS_SHAPE = (2048, 256, 16384)
"""Positions, width and vocabulary of the comparison of six ways."""
WIDTHS = (64, 256, 768, 2048, 4096)
VOCABULARIES = (1024, 16384, 50304, 128256)
OPERATIONS = 3e11
"""Of the products of a shape, which decide its positions: seconds in float32 on one thread."""
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


def positions_of(width: int, vocab_size: int) -> int:
    """N of a shape: the power of 2 that its operations allow, 64 to 2048."""
    allowed = OPERATIONS / (6 * width * vocab_size)
    return max([64, *(1 << power for power in range(6, 12) if 1 << power <= allowed)])


def operands(positions: int, width: int, vocab_size: int, dtype: str, bag_size: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(positions, width).to(getattr(torch, dtype)).requires_grad_()
    head = (torch.randn(vocab_size, width) * width**-0.5).to(getattr(torch, dtype)).requires_grad_()
    return hidden, head, torch.randint(0, vocab_size, (positions, bag_size))


def step(method: str, hidden: Tensor, head: Tensor, targets: Tensor) -> float:
    hidden.grad = head.grad = None
    loss = METHODS[method](hidden, head, targets)
    if loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()
    return float("nan")


def peak(method: str, shape: tuple[int, ...], dtype: str, bag_size: int) -> int:
    megabytes: int = round(peak_memory(__file__, "--once", method, *map(str, shape), dtype, str(bag_size)))
    return megabytes


def clock() -> Callable[[], float]:
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def ways(dtype: str, bag_size: int, rounds: int) -> list[dict[str, Any]]:
    """The six ways at one shape: a row for each."""
    hidden, head, targets = operands(*WAYS_SHAPE, dtype, bag_size)
    exact = multi_hot_cross_entropy(F.linear(hidden.detach().double(), head.detach().double()), targets).item()
    arms = {name: partial(step, name, hidden, head, targets) for name in METHODS}
    seconds = interleaved(arms, rounds, clock())
    rows = []
    for name in METHODS:
        value = step(name, hidden, head, targets)
        rows.append(
            {
                "method": name,
                "seconds": round(seconds[name], 4),
                "ratio": round(seconds[name] / seconds[REFERENCE], 3),
                # The reference has another target, the products have none.
                "error": None if METHODS[name] in (ordinary, products) else float(f"{abs(value - exact):.1e}"),
                "peak_mb": peak(name, WAYS_SHAPE, dtype, bag_size),
            }
        )
        print(f"{name:42} {rows[-1]['ratio']:7.3f} {rows[-1]['peak_mb']:6} {rows[-1]['error'] or '':>9}", flush=True)
    return rows


def shape_row(width: int, vocab_size: int, dtype: str, rounds: int, memory: bool) -> dict[str, Any]:
    """Superpose at each bag size, the plain loss and the limit: seconds, and peak memory at the largest bag."""
    shape = positions_of(width, vocab_size), width, vocab_size
    hidden, head, targets = operands(*shape, dtype, max(BAG_SIZES))
    # As many as take a fiftieth of a second, so that small shapes are not measured by single calls.
    repeats = max(1, int(5e9 / (6 * shape[0] * width * vocab_size)))

    def arm(method: str, bag_size: int) -> Callable[[], object]:
        bags = targets[:, :bag_size].contiguous()
        return lambda: [step(method, hidden, head, bags) for _ in range(repeats)]

    limit, ours = "the three matrix products alone", "superpose"
    arms = {"limit": arm(limit, 1), "plain": arm(REFERENCE, 1), **{f"s{s}": arm(ours, s) for s in BAG_SIZES}}
    seconds = interleaved(arms, rounds, clock())
    row: dict[str, Any] = {"positions": shape[0], "seconds": {n: round(v / repeats, 5) for n, v in seconds.items()}}
    row["to_limit"] = {s: round(seconds[f"s{s}"] / seconds["limit"], 3) for s in BAG_SIZES}
    row["to_plain"] = {s: round(seconds[f"s{s}"] / seconds["plain"], 3) for s in BAG_SIZES}
    if memory:
        mb = [peak(method, shape, dtype, max(BAG_SIZES)) for method in (ours, REFERENCE)]
        row |= {"peak_mb": mb[0], "plain_peak_mb": mb[1]}
    print(
        f"N {shape[0]:5} D {width:5} V {vocab_size:7} {dtype:9} {torch.get_num_threads()} threads "
        f"to limit {list(row['to_limit'].values())} to plain {list(row['to_plain'].values())} {row.get('peak_mb', '')} "
        f"{row.get('plain_peak_mb', '')}",
        flush=True,
    )
    return row


def table(results: dict[str, Any]) -> str:
    """All shapes of a file of results, by CPU and threads; in bold what misses a goal."""
    found: dict[tuple[str, int], list[tuple[str, int, int, dict[str, Any]]]] = {}
    for name, row in results.items():
        if shape := re.fullmatch(r"(.+) \| (\w+) D (\d+) V (\d+) threads (\d+)", name):
            place = found.setdefault((shape[1], int(shape[5])), [])
            place.append((shape[2], int(shape[3]), int(shape[4]), row))
    parts = []
    for (cpu, threads), rows in sorted(found.items()):
        sizes = " | ".join(map(str, BAG_SIZES[1:]))
        lines = [
            f"| | N | D | V | to limit: s 1 | {sizes} | to plain: s 1 | {sizes} | peak MB | plain |",
            "| --- " + "| ---: " * (5 + 2 * len(BAG_SIZES)) + "|",
        ]
        for dtype, width, vocab_size, row in sorted(rows, key=lambda row: (DTYPES.index(row[0]), *row[1:3])):
            limit = TO_LIMIT[dtype] if width >= 256 else float("inf")
            cells = [_cell(row["to_limit"][str(s)], limit) for s in BAG_SIZES]
            cells += [_cell(row["to_plain"][str(s)], 1.0) for s in BAG_SIZES]
            peaks = [str(row.get(name, "-")) for name in ("peak_mb", "plain_peak_mb")]
            shape_cells = (dtype, f"{row['positions']:,}", f"{width:,}", f"{vocab_size:,}")
            lines.append(f"| {' | '.join((*shape_cells, *cells, *peaks))} |")
        title = f"{cpu}, {threads} {'thread' if threads == 1 else 'threads'}:"
        parts.append("\n".join([title, "", *lines]))
    return "\n\n".join(parts) + "\n"


def _cell(ratio: float, goal: float) -> str:
    return f"**{ratio:.2f}**" if round(ratio, 2) > goal else f"{ratio:.2f}"


def plot_rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The six ways' rows of the CPU that this is, with their dtype and bag size."""
    return [
        {**row, "dtype": dtype, "bag_size": s}
        for dtype in DTYPES
        for s in BAG_SIZES
        for row in results.get(f"{kind()} | ways {dtype} s {s}", [])
    ]


def kind() -> str:
    """The CPU, whether it multiplies in bfloat16, and the instructions that its library of products was limited to."""
    facts, limited = machine(), os.environ.get("ONEDNN_MAX_CPU_ISA")
    halves = "with" if facts["avx512_bf16"] else "without"
    return f"{facts['cpu']} {halves} bfloat16" + (f", limited to {limited}" if limited else "")


def plot(results: list[dict[str, Any]], file: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullLocator

    figure, axes = plt.subplots(1, 3, figsize=(13, 4.8), layout="constrained")
    panels = [("float32", "ratio"), ("bfloat16", "ratio"), ("float32", "peak_mb")]
    for axis, (dtype, figure_of) in zip(axes, panels, strict=True):
        for name in METHODS:
            rows = [r for r in results if (r["dtype"], r["method"]) == (dtype, name)]
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


def write_page(results: dict[str, Any]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(PLACE.sub(lambda found: found[1] + table(results) + found[2], text), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ways", action="store_true", help="six ways at one shape; without this and --shapes, both")
    parser.add_argument("--shapes", action="store_true", help="superpose, the plain loss and the limit at many shapes")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=VOCABULARIES)
    parser.add_argument("--again", action="store_true", help="measure what is known as well")
    parser.add_argument("--page", action="store_true", help="measure nothing: write the table of docs/loss.md")
    parser.add_argument(
        "--once", nargs=6, metavar=("METHOD", "N", "D", "V", "DTYPE", "S"), help="one pass, for its peak"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.page:
        write_page(json.loads(FILE.read_text())["results"])
        return
    if arguments.once:
        method, positions, width, vocab_size, dtype, bag_size = arguments.once
        hidden, head, targets = operands(int(positions), int(width), int(vocab_size), dtype, int(bag_size))
        # Loads what every process that trains has: PyTorch's compiler, 75 MB, which an operator of one's own loads too.
        torch.optim.SGD([head])
        step(method, hidden, head, targets)
        print_peak_memory()
        return
    facts = json.loads(FILE.read_text()) if FILE.exists() else {}
    results: dict[str, Any] = facts.get("results", {})

    def measure(name: str, run: Callable[[], Any]) -> None:
        name = f"{kind()} | {name}"
        if name not in results or arguments.again:
            results[name] = run()
            facts.update(command="make bench-loss", torch=torch.__version__, results=results)
            FILE.write_text(json.dumps(facts, indent=1) + "\n")

    both = arguments.ways == arguments.shapes
    if arguments.ways or both:
        for dtype in arguments.dtypes:
            for s in BAG_SIZES:
                measure(f"ways {dtype} s {s}", partial(ways, dtype, s, arguments.rounds))
        plot(plot_rows(results), ROOT / "docs" / "images" / "loss.png")
    if arguments.shapes or both:
        shapes = [(d, v, dtype) for dtype in arguments.dtypes for d in arguments.widths for v in arguments.vocabularies]
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            for width, vocab_size, dtype in shapes:
                run = partial(shape_row, width, vocab_size, dtype, arguments.rounds, memory=threads == 1)
                measure(f"{dtype} D {width} V {vocab_size} threads {threads}", run)
        write_page(json.loads(FILE.read_text())["results"])


if __name__ == "__main__":
    main()
