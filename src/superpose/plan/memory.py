"""Memory of a training step on one device, in bytes: what is kept, what a pass needs, and what the head would need.

    weights, optimizer     kept, in float32; a share of them where they are sharded
    gradients              float32; kept through a step's parts where there are several
    gathered               of FSDP2: two blocks, and embedding and head, whole, in the dtype of the products
    activations            what the blocks keep for the backward pass, by counting what PyTorch would keep of one
    head                   the chunked loss' chunk of logits and its gradients; beside it whole logits
    extra heads            among the others, at their most: a matrix and hidden states each, and one loss more for all
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

import copy
import logging
import platform
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from superpose.core.linear_loss import chunk_positions
from superpose.plan.model import ModelFacts
from superpose.plan.request import Request
from superpose.train.hardware import Precision, peak_memory

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


def memory(request: Request, model: ModelFacts) -> Memory:
    """Memory of one device in a step of what is requested; `model` is its model, counted."""
    latents, shards, half = request.latents, request.sharing.shards, request.precision == "bfloat16"
    rows = max(1, request.rows // request.sharing.devices // request.parts)
    width_bytes = 2 if half else _FLOAT32
    heads = request.extra_heads
    of_heads = heads * model.width**2
    parameters = model.parameters + of_heads
    weights = gradients = _FLOAT32 * parameters // shards
    # Muon has one moment for the matrices of the blocks, AdamW two for everything.
    in_blocks = model.layers * model.block_parameters
    moments = 2 * parameters - (in_blocks if request.optimizer == "muon" else 0)
    state = _FLOAT32 * moments // shards
    # A block's gradients are whole until they are summed and scattered.
    outer = parameters - in_blocks
    whole = width_bytes * (2 * model.block_parameters + outer) + _FLOAT32 * (model.block_parameters + outer)
    gathered = whole if shards > 1 else 0

    per_row, fixed = block_activations(request.config, latents, request.precision)
    inputs = rows * latents * model.width * _FLOAT32
    # Under FSDP2 weights are gathered in half precision instead of being cast in each block.
    activations = all_kept = model.layers * (rows * per_row + (0 if shards > 1 else fixed)) + 3 * inputs
    if request.checkpoint_activations:
        # The embedding, what the last norm keeps, and of a checkpointed block its input.
        activations = model.layers * inputs + rows * per_row + fixed + 3 * inputs

    positions = rows * latents
    kind = "cpu" if request.device == "cpu" else "cuda"
    head = head_memory(kind, positions, model.width, model.vocab_size)
    if heads:  # beside the gradients that the model's own loss has made
        head += head_memory(kind, heads * positions, model.width, model.vocab_size)
        # Going backward: their hidden states, and the gradient of these once more, scaled.
        activations += 2 * _FLOAT32 * heads * positions * model.width
    # Logits, their copy in float32 if they were not, log-probabilities kept, and their gradient.
    head_whole = (1 + heads) * positions * model.vocab_size * (2 * _FLOAT32 + (2 if half else 0) + width_bytes)

    # Going backward, gradients take the place of activations: each is largest at one end. Several parts share them.
    between = gradients if request.sharing.gradients else _FLOAT32 * parameters
    early, late = (between, 0) if request.parts > 1 else (0, gradients)
    kept = weights + state + gathered + early
    checkpoint = _COPIES * (weights + state)
    # What checkpointing has freed is room for the file that is written, so that takes no more of its own.
    holes = kept + all_kept if request.checkpoint_activations and _wastes_aligned_blocks() else 0
    base = peak_memory(torch.device("cpu")) if request.device == "cpu" else _GPU_BASE

    def peak(loss: int) -> int:
        used = kept + max(activations + loss, late)
        return base + (max(round(_KEPT_FREE * (used + checkpoint)), holes + loss) if request.device == "cpu" else used)

    return Memory(
        weights, gradients, state, gathered, activations, head, head_whole, checkpoint, base, peak(head),
        peak(head_whole),
    )  # fmt: skip


def head_memory(device_type: str, positions: int, width: int, vocab_size: int) -> int:
    """Bytes of the chunked loss in float32: a chunk of logits, the head's gradient and that of the hidden states.

    In half precision a chunk has twice the positions, and so the same bytes.
    """
    chunk = chunk_positions(device_type, positions, width, vocab_size)
    return _FLOAT32 * (chunk * vocab_size + vocab_size * width + positions * width)


def _wastes_aligned_blocks() -> bool:
    """Whether the C library is a glibc before 2.38 (its bug 14581)."""
    name, version = platform.libc_ver()
    return name == "glibc" and tuple(map(int, version.split(".")[:2])) < (2, 38)


def block_activations(config: Any, latents: int, precision: Precision) -> tuple[int, int]:
    """Bytes a block keeps for the backward pass: of each row of `latents`, and whatever the rows."""
    key = config.to_json_string(use_diff=False), latents, precision
    if key not in _COUNTED:
        one_row, two_rows = (
            _kept(config, 2, rows, latents, precision) - _kept(config, 1, rows, latents, precision) for rows in (1, 2)
        )
        _COUNTED[key] = two_rows - one_row, max(0, 2 * one_row - two_rows)
    return _COUNTED[key]


def _kept(config: Any, layers: int, rows: int, latents: int, precision: Precision) -> int:
    """Bytes that a model of so many layers keeps; nothing is computed."""
    from transformers import AutoModelForCausalLM, masking_utils

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

    # FakeTensorMode logs what it then raises. Transformers cannot look into tensors without memory, and takes their
    # rows for several documents, with a mask.
    quiet = patch.object(logging.getLogger("torch._subclasses.fake_tensor"), "disabled", True)
    one_document = patch.object(masking_utils, "find_packed_sequence_indices", create=True, return_value=None)
    with FakeTensorMode(allow_non_fake_inputs=True), quiet, one_document:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).train()
        own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        x = torch.zeros(rows, latents, config.hidden_size, dtype=dtype, requires_grad=True)
        cast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16" and not experts)
        with cast, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.base_model(inputs_embeds=x, use_cache=False)
    total = sum(size for _, size in sizes.values())
    return total * 2 if experts and precision == "float32" else total
