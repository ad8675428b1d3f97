"""FSDP2 on one device: the loss and gradients of a sharded model are those of the model, and what a step costs."""

import copy
import tempfile
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from gpu import shapes
from gpu.bench import Bench
from superpose import SuperposedLM, window_length


def measure(bench: Bench) -> dict[str, Any]:
    """Per bag size the losses and the largest relative error of a gradient in float32, and milliseconds in bfloat16."""
    if bench.device.type == "cuda":
        torch.cuda.set_device(0)
        bench = Bench(torch.device("cuda", 0), bench.small, bench.ends)
    backend = "nccl" if bench.device.type == "cuda" else "gloo"
    with tempfile.NamedTemporaryFile() as meeting:
        dist.init_process_group(backend, init_method=f"file://{meeting.name}", rank=0, world_size=1)
        try:
            rows = [_compare(bench, size) for size in (1, 4)]
            rows += [{"dtype": "bfloat16", **_time(bench)}]
        finally:
            dist.destroy_process_group()
    return {"rows": rows, "backend": backend, "right": all(row.get("right", True) for row in rows)}


def _sharded(bench: Bench, model: Any, policy: MixedPrecisionPolicy) -> SuperposedLM:
    mesh = init_device_mesh(bench.device.type, (1,))
    for block in shapes.blocks(model):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    lm = SuperposedLM(model)
    fully_shard(lm, mesh=mesh, mp_policy=policy)
    return lm


def _compare(bench: Bench, bag_size: int) -> dict[str, Any]:
    vocab_size, latents = (203, 16) if bench.small else (50304, 256)
    model = shapes.build(bench, "gpt2-124m", vocab_size, latents)
    window = torch.randint(0, vocab_size, (2, window_length(latents, bag_size)), device=bench.device)
    other = copy.deepcopy(model)
    whole, parts = SuperposedLM(model), _sharded(bench, other, MixedPrecisionPolicy())
    losses = []
    for lm in (whole, parts):
        loss = lm(window, bag_size).loss
        loss.backward()
        losses.append(loss.item())
    # Of weights that have no gradient to speak of (a key's bias) the error is that of zero.
    scale = max(weight.grad.norm().item() for weight in model.parameters())
    error = max(
        ((a.grad.full_tensor() - b.grad).norm() / (b.grad.norm() + 1e-3 * scale)).item()
        for a, b in zip(other.parameters(), model.parameters(), strict=True)
    )
    right = abs(losses[0] - losses[1]) < 1e-5 * abs(losses[0]) and error < 1e-4
    return {"dtype": "float32", "bag_size": bag_size, "losses": losses, "gradient_error": error, "right": right}


def _time(bench: Bench) -> dict[str, float]:
    """Milliseconds of forward and backward pass, sharded and not, s 4."""
    vocab_size, rows, latents = (203, 2, 16) if bench.small else (50304, 8, 1024)
    window = torch.randint(0, vocab_size, (rows, window_length(latents, 4)), device=bench.device)
    whole = SuperposedLM(shapes.build(bench, "gpt2-124m", vocab_size, latents))
    model = shapes.build(bench, "gpt2-124m", vocab_size, latents)
    parts = _sharded(bench, model, MixedPrecisionPolicy(torch.bfloat16, torch.float32))

    def step(lm: SuperposedLM, cast: bool) -> None:
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=cast):
            loss = lm(window, 4).loss
        loss.backward()
        lm.zero_grad(set_to_none=True)

    least = bench.seconds({"whole": partial(step, whole, True), "sharded": partial(step, parts, False)}, rounds=3)
    return {f"{name}_ms": round(1e3 * seconds, 2) for name, seconds in least.items()}
