"""The input side against the loop of the paper's listing: forward and backward pass of a bag's mean embedding.

    python benchmarks/embed.py

2,048 bags of 16 tokens, D 256, one thread; times in turns, ratios to the loop. `error` is that of the table's
gradient against float64. Tokens are drawn with the skew of text: small ids are frequent.
Writes benchmarks/results/embed.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from measure import interleaved, machine, refuse_arguments
from superpose.core.embed import embed_bags

BAGS, BAG_SIZE, WIDTH = 2048, 16, 256


def listing(input_ids: Tensor, table: Tensor) -> Tensor:
    total = F.embedding(input_ids[:, 0], table).float()
    for place in range(1, BAG_SIZE):
        total = total + F.embedding(input_ids[:, place], table).float()
    return (total / BAG_SIZE).to(table.dtype)


def native(input_ids: Tensor, table: Tensor) -> Tensor:
    return F.embedding_bag(input_ids, table, mode="mean")


METHODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "loop over the bag": listing,
    "F.embedding_bag": native,
    "superpose": embed_bags,
}


def main() -> None:
    refuse_arguments(__doc__)
    torch.set_num_threads(1)
    results = []
    print(f"{'V':>7} {'dtype':>9} {'':18} {'time':>7} {'error':>9}")
    for vocab_size in (1024, 16384, 128256):
        for dtype in (torch.float32, torch.bfloat16):
            torch.manual_seed(0)
            table = torch.randn(vocab_size, WIDTH).to(dtype).requires_grad_()
            input_ids = (torch.rand(BAGS, BAG_SIZE) ** 3 * vocab_size).long()
            upstream = torch.randn(BAGS, WIDTH).to(dtype)
            exact = torch.zeros(vocab_size, WIDTH, dtype=torch.float64)
            exact.index_add_(0, input_ids.flatten(), upstream.double().repeat_interleave(BAG_SIZE, 0) / BAG_SIZE)

            def gradient(name: str, ids: Tensor = input_ids, rows: Tensor = table, up: Tensor = upstream) -> Tensor:
                return torch.autograd.grad(METHODS[name](ids, rows), rows, up)[0]

            seconds = interleaved({name: lambda name=name: gradient(name) for name in METHODS}, rounds=10)  # type: ignore[misc]
            for name in METHODS:
                ratio = seconds[name] / seconds["loop over the bag"]
                error = ((gradient(name).double() - exact).norm() / exact.norm()).item()
                short = str(dtype).removeprefix("torch.")
                print(f"{vocab_size:7} {short:>9} {name:18} {ratio:7.3f} {error:9.1e}", flush=True)
                setting = {"vocab_size": vocab_size, "dtype": short, "method": name, "seconds": round(seconds[name], 5)}
                results.append({**setting, "ratio": round(ratio, 3), "error": float(f"{error:.1e}")})
    file = Path(__file__).parent / "results" / "embed.json"
    file.parent.mkdir(exist_ok=True)
    facts = {"command": "make bench-loss", "machine": machine(), "results": results}
    file.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
