"""Memory of a training step on one device, in bytes: what is kept, what a pass needs, and what the head would need.

    weights, optimizer     kept, in float32; a share of them where they are sharded
    gradients              float32; kept through a step's parts where there are several
    gathered               of FSDP2: two blocks, and embedding and head, whole, in the dtype of the products
    activations            what the blocks keep for the backward pass, by counting what PyTorch would keep of one
    head                   the chunked loss' two chunks of logits and its gradients; beside it whole logits
    checkpoint             host memory: the copy of the state that is written beside training, and the writer's own
    base                   the process itself: libraries on a CPU, the driver's context on a GPU

Activations are counted, not modelled: a block's forward pass is run on tensors without memory (FakeTensorMode), once
for one row and once for two, which separates what grows with rows from what does not (weights cast to half precision).
So dropout, attention that keeps its scores, gated MLPs and experts need no formulas. The rest is arithmetic.

On a CPU the trainer keeps large blocks that it frees (`superpose.train.hardware.keep_memory`), so a process grows to a
third more than what is in use at most. Checkpointed activations save less there: PyTorch asks for aligned memory, and
glibc before 2.38 never fills the hole of an aligned block with another of the same size, so what one block recomputes
finds no room where the block before has freed its own. The process grows as if all blocks' activations were kept.
benchmarks/plan.py holds the estimate against processes. On a GPU the figure is what PyTorch calls allocated; what it
reserves is a little more.
"""

from __future__ import annotations

import copy
import logging
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from superpose.core.linear_loss import chunk_positions
from superpose.plan.model import ModelFacts
from superpose.train.hardware import Precision, peak_memory
from superpose.train.optim import Optimizer

_FLOAT32 = 4
# A driver's context and the libraries' workspaces; 0.5 to 1 GiB on current cards.
_GPU_BASE = 2**30
_KEPT_FREE = 1.31
"""Of a process on a CPU: its blocks, free ones included, to what is in use at most; 1.30 and 1.32 for 1 and 3 GiB."""
_COUNTED: dict[tuple[str, int, Precision], tuple[int, int]] = {}
"""Activations of configurations that were counted: a search for the fewest devices asks again and again."""
_COPIES = 2
"""Of the state while a checkpoint is written: the staged copy, and the file that the writer makes in memory."""


@dataclass(frozen=True)
class Sharing:
    """How a model is spread over devices.

    Attributes:
        devices: all of them.
        shards: devices that a copy of weights, gradients and optimizer is spread over; 1 for DDP and a single device.
    """

    devices: int = 1
    shards: int = 1


@dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
        head_whole: what the head would take with whole logits, in place of `head`.
        checkpoint: in the host's memory, which on a GPU is not the device's.
        peak: at most at one time: not all of the others are there at once.
        peak_whole: the same with whole logits.
    """

    weights: int
    gradients: int
    optimizer: int
    gathered: int
    activations: int
    head: int
    head_whole: int
    checkpoint: int
    base: int
    peak: int
    peak_whole: int


def memory(
    config: Any,
    model: ModelFacts,
    rows: int,
    latents: int,
    parts: int = 1,
    precision: Precision = "bfloat16",
    sharing: Sharing = Sharing(),  # frozen
    optimizer: Optimizer = "adamw",
    checkpoint_activations: bool = False,
    device: str = "cuda",
) -> Memory:
    """Memory of one device.

    Args:
        config: of the model, as transformers has it.
        model: the same, counted.
        rows: of L latents that the device computes at a time.
        parts: into which its rows of a step are split.
        precision: of matrix products; weights, gradients and optimizer are float32.
        device: "cpu", or anything else for a GPU.
    """
    half = precision == "bfloat16"
    width_bytes = 2 if half else _FLOAT32
    sharded = sharing.shards > 1
    weights = _FLOAT32 * model.parameters // sharing.shards
    # Muon has one moment for the matrices of the blocks, AdamW two for everything.
    in_blocks = model.layers * model.block_parameters
    moments = 2 * model.parameters - (in_blocks if optimizer == "muon" else 0)
    state = _FLOAT32 * moments // sharing.shards
    outer = model.parameters - in_blocks
    gathered = width_bytes * (2 * model.block_parameters + outer) if sharded else 0
    # A block's gradients are whole until they are summed and scattered.
    gathered += _FLOAT32 * (model.block_parameters + outer) if sharded else 0

    per_row, fixed = block_activations(config, latents, precision)
    inputs = rows * latents * model.width * _FLOAT32
    # Under FSDP2 weights are gathered in half precision instead of being cast in each block.
    all_kept = model.layers * (rows * per_row + (0 if sharded else fixed)) + 3 * inputs
    # The embedding, what the last norm keeps, and of a checkpointed block its input.
    activations = model.layers * inputs + rows * per_row + fixed + 3 * inputs if checkpoint_activations else all_kept

    positions = rows * latents
    head = head_memory("cpu" if device == "cpu" else "cuda", positions, model.width, model.vocab_size)
    # Logits, their copy in float32 if they were not, log-probabilities kept, and their gradient.
    head_whole = positions * model.vocab_size * (2 * _FLOAT32 + (2 if half else 0) + width_bytes)

    gradients = _FLOAT32 * model.parameters // sharing.shards
    kept = weights + state + gathered + (gradients if parts > 1 else 0)
    # Going backward, gradients take the place of activations; each is largest at one end.
    late = 0 if parts > 1 else gradients
    checkpoint = _COPIES * (weights + state)
    in_use = [kept + max(activations + loss, late) for loss in (head, head_whole)]
    if device == "cpu":
        base = peak_memory(torch.device("cpu"))
        # What checkpointing has freed is room for the file that is written, so that takes no more of its own.
        holes = kept + all_kept if checkpoint_activations and _wastes_aligned_blocks() else 0
        peak, peak_whole = (
            base + max(round(_KEPT_FREE * (used + checkpoint)), holes + loss)
            for used, loss in zip(in_use, (head, head_whole), strict=True)
        )
    else:
        base = _GPU_BASE
        peak, peak_whole = (base + used for used in in_use)
    return Memory(
        weights, gradients, state, gathered, activations, head, head_whole, checkpoint, base, peak, peak_whole
    )


def head_memory(device_type: str, positions: int, width: int, vocab_size: int) -> int:
    """Bytes of the chunked loss in float32: two chunks of logits, the head's gradient and that of the hidden states."""
    chunk = min(positions, chunk_positions(device_type, positions, width, vocab_size))
    return _FLOAT32 * (2 * chunk * vocab_size + vocab_size * width + positions * width)


def _wastes_aligned_blocks() -> bool:
    """Whether the C library is a glibc before 2.38 (its bug 14581)."""
    name, version = platform.libc_ver()
    return name == "glibc" and tuple(map(int, version.split(".")[:2])) < (2, 38)


def block_activations(config: Any, latents: int, precision: Precision) -> tuple[int, int]:
    """Bytes a block keeps for the backward pass: of each row of `latents`, and whatever the rows."""
    key = config.to_json_string(use_diff=False), latents, precision
    if key not in _COUNTED:
        _COUNTED[key] = _counted(config, latents, precision)
    return _COUNTED[key]


def _counted(config: Any, latents: int, precision: Precision) -> tuple[int, int]:
    kept = {(layers, rows): _kept(config, layers, rows, latents, precision) for layers in (1, 2) for rows in (1, 2)}
    one_row, two_rows = (kept[2, rows] - kept[1, rows] for rows in (1, 2))
    return two_rows - one_row, max(0, 2 * one_row - two_rows)


def _kept(config: Any, layers: int, rows: int, latents: int, precision: Precision) -> int:
    """Bytes that a model of so many layers keeps; nothing is computed."""
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(config)
    config.num_hidden_layers = layers
    if isinstance(getattr(config, "layer_types", None), list):
        config.layer_types = config.layer_types[:layers]
    config.vocab_size = 8
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, None)
    experts = bool(getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None))
    # Grouped products of experts are known in bfloat16 alone; in float32 each number is twice as long.
    dtype = torch.bfloat16 if experts else torch.float32
    sizes: dict[int, tuple[Tensor, int]] = {}  # tensors are kept alive, so that no two have the same address

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            sizes[storage._cdata] = tensor, storage.nbytes()
        return tensor

    with FakeTensorMode(allow_non_fake_inputs=True), _without_log(), _rows_of_one_document():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).train()
        own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        x = torch.zeros(rows, latents, config.hidden_size, dtype=dtype, requires_grad=True)
        cast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16" and not experts)
        with cast, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.base_model(inputs_embeds=x, use_cache=False)
    total = sum(size for _, size in sizes.values())
    return total * 2 if experts and precision == "float32" else total


@contextmanager
def _rows_of_one_document() -> Iterator[None]:
    """Transformers cannot look into tensors without memory, and takes them for several documents, with a mask."""
    from transformers import masking_utils

    before = getattr(masking_utils, "find_packed_sequence_indices", None)
    if before is None:
        yield
        return
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = before


@contextmanager
def _without_log() -> Iterator[None]:
    """FakeTensorMode logs what it then raises."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before
