"""TorchTitan's own command line without a GPU, to see superposition run in it, on one process or several.

    superpose prepare text.txt --out store --tokenizer bytes
    torchrun --nproc-per-node 1 examples/torchtitan_cpu.py --module superpose.integrations.torchtitan \\
        --config superpose_debug --dataloader.dataset_path store --dump_folder out

On GPUs you need none of this: start `-m torchtitan.train` with the same arguments.

TorchTitan 0.3.0 asks its device for things that a CPU does not have, and PyTorch 2.13 for functions that came with
2.14. `on_cpu` provides them before the rest of TorchTitan is imported.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import schedules


def on_cpu() -> None:
    """Makes TorchTitan compute on the CPU and its processes talk through gloo. Call it before you import TorchTitan."""
    from torchtitan.tools import utils

    if not hasattr(dist, "set_timeout"):
        _as_pytorch_2_14()
    answers: dict[str, Any] = {name: getattr(torch.cpu, name) for name in dir(torch.cpu) if not name.startswith("_")}
    answers |= {
        "current_device": lambda: 0,
        "get_device_name": lambda device=None: "CPU",
        "get_device_properties": lambda device=None: SimpleNamespace(total_memory=1),
        "memory_stats": lambda device=None: {},
        "reset_peak_memory_stats": lambda: None,
        "empty_cache": lambda: None,
    }
    utils.device_type, utils.device_module = "cpu", SimpleNamespace(**answers)

    from torchtitan.distributed import fsdp

    undivided = fsdp.disable_fsdp_gradient_division

    def undivided_sums(model: torch.nn.Module) -> None:
        """TorchTitan divides gradients itself; when told not to divide, FSDP multiplies by 1, which gloo cannot do."""
        undivided(model)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_force_sum_reduction_for_comms(True)

    fsdp.disable_fsdp_gradient_division = undivided_sums


def _as_pytorch_2_14() -> None:
    """What TorchTitan 0.3.0 calls and PyTorch 2.13 does not have yet: timeouts, and pipelines fed by microbatch."""
    pytorch: Any = dist
    pytorch.set_timeout = lambda timeout, group=None: pytorch.distributed_c10d._set_pg_timeout(timeout, group)
    single: Any = schedules.PipelineScheduleSingle
    whole_batch = single.step

    def step(self: Any, *arguments: Any, **named: Any) -> Any:
        if "kwarg_mbs" not in named:
            return whole_batch(self, *arguments, **named)
        self._stage.has_backward = self._has_backward
        self._stage.clear_runtime_states()
        named.pop("target", None)
        return self._step_microbatches(return_outputs=named.pop("return_outputs", False), **named)

    single.step = step


def main() -> None:
    for name, value in {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}.items():
        os.environ.setdefault(name, value)
    on_cpu()
    from torchtitan.train import main as train

    train()


if __name__ == "__main__":
    main()
