"""Modules that FSDP2 has sharded, told without importing FSDP, which takes longer to import than all of the core."""

from torch import nn


def is_sharded(module: nn.Module) -> bool:
    """Whether `fully_shard` was called on this module itself."""
    return any(kind.__name__ == "FSDPModule" for kind in type(module).__mro__)


def reshard(module: nn.Module) -> None:
    """Gives back weights that are still gathered, after a forward pass that no backward pass followed."""
    for part in module.modules():
        if is_sharded(part):
            part.reshard()  # type: ignore[operator]  # of FSDPModule
