"""Ranks: the processes `torchrun` starts, what they agree on, and how a model is spread over them.

    torchrun --nproc-per-node 8 -m superpose train recipe.toml --out runs/big

Each rank computes its rows of every step. With DDP it holds the whole model; with FSDP2 a shard of it, and gathers
one block at a time. With replicas (hybrid sharding) the shards are spread over a part of the ranks, a node for example,
and only gradients cross between the parts. Without torchrun there is one rank and no process group.
"""

import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

import torch
import torch.distributed as dist
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from superpose.core.model import SuperposedLM
from superpose.errors import ReportedError, UserError, first_line

_Value = TypeVar("_Value")
_STORE = "superpose/store"


class ParallelArgs(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """How several ranks share the work; without torchrun there is nothing to share."""

    strategy: Literal["fsdp", "ddp"] = "fsdp"
    """FSDP2 shards weights, gradients and optimizer; DDP keeps all of them on every rank."""
    replicas: Annotated[int, Field(ge=1, lt=2**31)] = 1
    """Of FSDP2: parts of the ranks that each hold a whole model (hybrid sharding); the nodes, for example."""
    reshard: bool = True
    """Of FSDP2: give a block's weights back after its forward pass, and gather them again for the backward one."""
    shard_gradients: bool = False
    """Of FSDP2, with train.accumulate: sum the ranks' gradients after each part of a step and keep shards of them, not
    whole ones until the last. Less memory (4 bytes a parameter on each rank otherwise), more messages."""
    timeout: Annotated[float, Field(gt=0, lt=2**31)] = 600
    """Seconds after which a rank that hears nothing of the others gives up."""


class LostRankError(UserError):
    """The other ranks can no longer be reached."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run."""

    rank: int
    world_size: int
    device: torch.device
    saving: dist.ProcessGroup | None = None
    """Of checkpoints that are written beside training, so that their messages are not mixed with its own."""

    @property
    def main(self) -> bool:
        return self.rank == 0

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, on every rank."""
        if self.world_size > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def mean(self, tensor: Tensor) -> Tensor:
        return self.total(tensor) / self.world_size if self.world_size > 1 else tensor

    def highest(self, number: int) -> int:
        """The largest of the ranks' numbers, through the CPU, so that a device does not have to wait."""
        if self.world_size == 1:
            return number
        highest = torch.tensor(number)
        dist.all_reduce(highest, dist.ReduceOp.MAX)
        return int(highest)

    def gather(self, value: _Value, group: dist.ProcessGroup | None = None) -> list[_Value]:
        """Every rank's value, in order, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group)
        return values

    def shared_error(self, message: str) -> UserError:
        """To raise on all ranks for the same reason: the user is told once."""
        return UserError(message) if self.main else ReportedError(message)

    def on_main(self, work: Callable[[], _Value]) -> _Value:
        """What `work` returns on rank 0, which alone does it; if it fails there, all ranks end with its UserError."""
        if self.world_size == 1:
            return work()
        value: Any = None
        error: UserError | None = None
        if self.main:
            try:
                value = work()
            except (UserError, OSError) as problem:
                error = problem if isinstance(problem, UserError) else UserError.from_system(problem)
        outcome = [value, None if error is None else str(error)]
        dist.broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise error or self.shared_error(outcome[1])
        result: _Value = outcome[0]
        return result


@contextmanager
def joined_ranks(args: ParallelArgs, device: str) -> Iterator[Ranks]:
    """The ranks torchrun started, or those of a process group there is already; without either a single one.

    A `LostRankError` takes the place of what PyTorch says when another rank died or was cut off.
    """
    ours = not dist.is_initialized()
    world_size = int(os.environ.get("WORLD_SIZE", "1")) if ours else dist.get_world_size()
    if world_size == 1:
        yield Ranks(0, 1, torch.device(device))
        return
    of_fsdp = {"replicas": args.replicas > 1, "shard_gradients": args.shard_gradients}
    for name in (name for name, given in of_fsdp.items() if given and args.strategy == "ddp"):
        raise UserError(f"parallel.{name} is of FSDP2; with parallel.strategy = 'ddp', leave it out")
    if world_size % args.replicas:
        raise UserError(f"{world_size} ranks cannot be divided into parallel.replicas = {args.replicas} equal parts")
    here = torch.device(device)
    if here.type == "cuda":
        here = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(here)
    try:
        if ours:
            backend = "cpu:gloo,cuda:nccl" if here.type == "cuda" else "gloo"
            timeout = timedelta(seconds=args.timeout)
            rank = int(os.environ.get("RANK", "0"))
            store = _store_of_this_start(rank, timeout)
            mine, size = (-1, -1) if store is None else (rank, world_size)  # without a store the environment says
            dist.init_process_group(backend, timeout=timeout, store=store, rank=mine, world_size=size)
        rank = dist.get_rank()
        yield Ranks(rank, world_size, here, dist.new_group(backend="gloo"))
    except RuntimeError as error:
        text = str(error).lower()
        if not isinstance(error, dist.DistError) and not any(word in text for word in ("gloo", "nccl", "connection")):
            raise
        raise LostRankError(
            f"lost contact with the other ranks ({first_line(error)}); a process ended or was cut "
            f"off, which its own messages explain; start again with --resume"
        ) from None
    finally:
        if ours and dist.is_initialized():
            dist.destroy_process_group()


def _store_of_this_start(rank: int, timeout: timedelta) -> TCPStore | None:
    """Where the ranks that torchrun has just started find each other; None where there is no torchrun.

    torchrun's own store outlives a restart, with the addresses of the ranks before (PyTorch 2.13, issue 135712): new
    ones would look for dead ones, and a restart be lost. So rank 0 opens another, and the others look for it until they
    find one that is alive and is the one announced last.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    host = os.environ["MASTER_ADDR"]
    shared = TCPStore(host, int(os.environ["MASTER_PORT"]), timeout=timeout)
    if rank == 0:
        store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timeout)
        token = uuid.uuid4().hex
        store.set(_STORE, token)
        shared.set(_STORE, f"{store.port} {token}")
        return store
    deadline = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < deadline:
        port, token = shared.get(_STORE).decode().split()
        with suppress(dist.DistError):  # of a start before, whose rank 0 is gone
            store = TCPStore(host, int(port), timeout=timedelta(seconds=1))
            if store.get(_STORE).decode() == token:
                store.set_timeout(timeout)
                return store
    raise dist.DistError(f"rank 0 opened no store within {timeout.total_seconds():.0f} s")


def shard(lm: SuperposedLM, args: ParallelArgs, ranks: Ranks, precision: str) -> Callable[[nn.Module], Any]:
    """FSDP2 in place: each block of the model is a unit, the embedding, head and last norm are another.

    Weights are gathered, and gradients computed, in bfloat16 if that is the precision; gradients are summed and
    weights updated in float32.

    Returns how to shard a module that joins later, as a unit of its own.
    """
    shape = {"shard": ranks.world_size // args.replicas}
    if args.replicas > 1:
        shape = {"replicate": args.replicas, **shape}
    mesh = init_device_mesh(ranks.device.type, tuple(shape.values()), mesh_dim_names=tuple(shape))
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if precision == "bfloat16" else MixedPrecisionPolicy()
    for block in blocks(lm.model):
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=args.reshard)
    fully_shard(lm, mesh=mesh, mp_policy=policy)
    return partial(fully_shard, mesh=mesh, mp_policy=policy, reshard_after_forward=args.reshard)


def share_gradients(module: nn.Module, args: ParallelArgs, last: bool) -> None:
    """Says before a part of a step is computed what its backward pass does with gradients: sums them over ranks or not.

    By default with the step's last part alone. Until then a rank holds the whole gradient of its parts, in float32
    (4 bytes a parameter). With `args.shard_gradients` FSDP2 sums each part's over the ranks that share a model and
    keeps a rank's shard of it; replicas exchange theirs with the last part all the same.
    """
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last or args.shard_gradients)
        module.set_requires_all_reduce(last)
    elif isinstance(module, DistributedDataParallel):
        module.require_backward_grad_sync = last  # all that its no_sync() sets


def blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated layers of a transformers model, which it names as what no device may split."""
    names = getattr(model, "_no_split_modules", None) or ()
    return [module for module in model.modules() if type(module).__name__ in names]
