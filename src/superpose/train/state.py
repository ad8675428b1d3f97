"""What training changes: the model, its loss, optimizers and average.

recipe -> model (on the device, or sharded from the meta device) -> SuperposedLM -> optimizers
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.nn.parallel import DistributedDataParallel

from superpose.core.model import SuperposedLM
from superpose.data.store import TokenStore
from superpose.errors import UserError
from superpose.models.build import build_config, build_model
from superpose.models.load import load_weights
from superpose.train.checkpoint import Parts, State, training_state
from superpose.train.config import Recipe
from superpose.train.distributed import Ranks, blocks, reshard, shard
from superpose.train.optim import Average, build_optimizers


@dataclass(frozen=True)
class TrainState:
    """A model and all that changes with it; every rank holds its part."""

    model: nn.Module
    lm: SuperposedLM
    module: nn.Module
    """What to call for a loss that is trained on: `lm`, or DDP around it."""
    optimizers: list[torch.optim.Optimizer]
    average: Average | None
    ranks: Ranks

    @property
    def tensors(self) -> State:
        """What a checkpoint holds, see `training_state`."""
        return training_state(self.model, self.optimizers, self.average.tensors if self.average else None)

    @property
    def parts(self) -> Parts:
        """What a checkpoint is loaded into."""
        return self.model, self.optimizer_of, self.average.tensors if self.average else None

    def optimizer_of(self, parameter: nn.Parameter) -> torch.optim.Optimizer:
        """The optimizer that updates a parameter."""
        for optimizer in self.optimizers:
            if any(parameter is known for group in optimizer.param_groups for known in group["params"]):
                return optimizer
        raise KeyError("no optimizer updates this parameter")

    def reset_optimizers(self) -> None:
        """Forgets all moments and counts of steps."""
        for optimizer in self.optimizers:
            optimizer.state.clear()

    @torch.no_grad()
    def reinit_embeddings(self, seed: int) -> None:
        """Draws the embedding and the head afresh, the same on all ranks, and forgets their moments."""
        torch.manual_seed(seed)
        config: Any = self.model.config
        modules: Any = self.model.get_input_embeddings(), self.model.get_output_embeddings()  # type: ignore[operator]
        for weight in dict.fromkeys(module.weight for module in modules):
            weight.normal_(0, config.initializer_range)
            self.optimizer_of(weight).state.pop(weight, None)

    def whole_weights(self) -> dict[str, Tensor]:
        """All weights, gathered into the memory of rank 0, tied ones once; empty on the others."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights: Any = get_model_state_dict(self.model, options=options)
        once = {name for name, _ in (*self.model.named_parameters(), *self.model.named_buffers())}
        return {name: tensor for name, tensor in weights.items() if name in once}


def build_state(recipe: Recipe, store: TokenStore, ranks: Ranks) -> TrainState:
    """Model, loss and optimizers of a run; the weights depend on its seed or on `model.init_from` alone.

    Raises:
        UserError: the model cannot be built, or cannot be trained by its bags.
    """
    train = recipe.train
    config = build_config(recipe.model, store.vocab_size, train.latents, store.end_of_text)
    sharded = ranks.world_size > 1 and recipe.parallel.strategy == "fsdp"
    whole: nn.Module | None = None
    if ranks.main or not sharded:
        torch.manual_seed(train.seed)
        whole = load_weights(recipe.model.init_from, config) if recipe.model.init_from else build_model(config)
    if sharded:
        model = build_model(config, "meta")
    else:
        assert whole is not None
        model = whole.to(ranks.device)
    if train.checkpoint_activations:
        transformer: Any = model
        # Its name in newer versions of transformers, and the one before.
        enable = getattr(model, "activation_checkpointing_enable", None) or transformer.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    if train.compile:
        for block in blocks(model):
            block.compile()
    end_of_text = store.end_of_text if train.attention == "document" else None
    group = dist.group.WORLD if ranks.world_size > 1 else None
    superposition = recipe.superposition
    lm = SuperposedLM(model.train(), superposition.weighting, superposition.variant, end_of_text, group)
    module: nn.Module = lm
    if sharded:
        shard(lm, recipe.parallel, ranks, train.precision)
        _fill(model, whole, ranks)
    elif ranks.world_size > 1:
        on_device = [ranks.device] if ranks.device.type == "cuda" else None
        module = DistributedDataParallel(lm, device_ids=on_device)
    try:
        lm.check()
    except ValueError as error:
        raise UserError(f"model.architecture: {error}") from None
    reshard(lm)
    average = Average(model, train.average) if train.average else None
    return TrainState(model, lm, module, build_optimizers(train, model), average, ranks)


def _fill(model: nn.Module, whole: nn.Module | None, ranks: Ranks) -> None:
    """Gives a sharded model on the meta device its memory, and what rank 0's whole model holds."""
    # Swapped in place, so that tied weights stay tied.
    torch.__future__.set_swap_module_params_on_conversion(True)
    model.to_empty(device=ranks.device)
    torch.__future__.set_swap_module_params_on_conversion(False)
    set_model_state_dict(
        model,
        whole.state_dict() if whole is not None else {},
        # Buffers that are not saved are missing on purpose, they follow.
        options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False),
    )
    buffers = dict(whole.named_buffers()) if whole is not None else {}
    for name, buffer in model.named_buffers():
        if name in buffers:
            buffer.copy_(buffers[name])
        dist.broadcast(buffer, 0)
