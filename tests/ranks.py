"""Runs a function of a test on several processes, as a process group or as torchrun starts them."""

import os
import socket
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_ranks(world_size, function, *arguments):
    """Calls function(rank, group, *arguments) on each rank; an exception on any of them is raised here."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_one_rank, (world_size, str(Path(folder) / "store"), function, arguments), nprocs=world_size)


def torchrun_environment(world_size):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(world_size)}


def _one_rank(rank, world_size, store, function, arguments):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size, timeout=timedelta(seconds=60)
    )
    try:
        function(rank, dist.group.WORLD, *arguments)
    finally:
        dist.destroy_process_group()
    end_rank()


def end_rank():
    """Ends a process that did its work; threads of gloo may abort one whose interpreter ends: superpose.__main__."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
