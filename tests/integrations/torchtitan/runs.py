"""Runs of TorchTitan on the CPU, in this process or on two ranks, and what they log."""

import gc
import os
import pickle
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.ranks import end_rank, torchrun_environment

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "examples"))
from torchtitan_cpu import on_cpu  # noqa: E402

on_cpu()

from torch.nn import functional as F  # noqa: E402
from torch.nn.attention.flex_attention import create_mask  # noqa: E402
from torchtitan.models.common.attention import FlexAttention, ScaledDotProductAttention  # noqa: E402

from superpose.integrations.torchtitan.config_registry import _qwen3_moe, superpose_debug  # noqa: E402
from superpose.integrations.torchtitan.trainer import SuperposeMetrics  # noqa: E402
from superpose.models.build import ModelArgs, build_config  # noqa: E402

TWO_RANKS = {
    "replicas": {"parallelism.data_parallel_replicate_degree": 2, "training.local_batch_size": 2},
    "fsdp": {"parallelism.data_parallel_shard_degree": 2, "training.local_batch_size": 2},
    "tensor": {"parallelism.tensor_parallel_degree": 2},
    "pipeline": {"parallelism.pipeline_parallel_degree": 2, "parallelism.pipeline_parallel_microbatch_size": 2},
    "context": {"parallelism.context_parallel_degree": 2, "flex": True},
    "experts": {
        "parallelism.data_parallel_shard_degree": 2,
        "parallelism.expert_parallel_degree": 2,
        "training.local_batch_size": 2,
        "experts": True,
    },
}
"""The ways two ranks share a run; each has four rows a step, as one rank alone."""


class Recorder(SuperposeMetrics):
    """Keeps what is logged, and what is counted for throughput."""

    @dataclass(kw_only=True, slots=True)
    class Config(SuperposeMetrics.Config):
        pass

    def log(self, step, loss, max_loss, grad_norm, extra_metrics=None):
        self.records = getattr(self, "records", [])
        counted = self.ntokens_since_last_log
        super().log(step, loss, max_loss, grad_norm, extra_metrics)
        plan = self.plan
        self.records.append(
            {
                "step": step,
                "loss": loss,
                "max_loss": max_loss,
                "counted": counted,
                "seen": extra_metrics["n_tokens_seen"],
                "bag_size": plan.schedule.bag_size_at(step - 1),
                "raw_tokens": plan.raw_tokens(step),
                "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
            }
        )

    def log_validation(self, loss, step, extra_metrics=None):
        super().log_validation(loss, step, extra_metrics)
        self.validations = {**getattr(self, "validations", {}), step: loss}


class DenseAttention(FlexAttention):
    """FlexAttention's masks with ordinary attention: on a CPU the kernel itself has no backward pass."""

    @dataclass(kw_only=True, slots=True)
    class Config(FlexAttention.Config):
        pass

    def forward(self, q_BLNH, k_BLNH, v_BLNH, *, attention_masks, scale=None, enable_gqa=False, **_):  # noqa: N803
        q, k, v = (x.transpose(1, 2) for x in (q_BLNH, k_BLNH, v_BLNH))
        mask = create_mask(attention_masks.mask_mod, q.shape[0], 1, q.shape[2], k.shape[2], device="cpu")
        return F.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=enable_gqa).transpose(1, 2)


def config_of(store, out, flex=False, experts=False, **settings):
    """The debug config; settings by their place, such as training.steps."""
    config = superpose_debug()
    config.dataloader.dataset_path, config.dump_folder = str(store.path), str(out)
    config.metrics = Recorder.Config(log_freq=1)
    config.validator.enable = False
    config.debug.enable_structured_logging = False
    config.comm.trace_buf_size = 0
    config.debug.seed = 0
    if experts:
        shape = {
            **{"hidden_size": 64, "moe_intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
            **{"num_key_value_heads": 2, "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2},
            **{"norm_topk_prob": True, "tie_word_embeddings": False},
        }
        args = ModelArgs(architecture="qwen3_moe", config=shape)
        config.model_spec = _qwen3_moe("tiny", build_config(args, 2048, 64, 0))
        for layer in config.model_spec.model.layers:
            layer.attention.inner_attention = ScaledDotProductAttention.Config()
    if flex:
        for layer in config.model_spec.model.layers:
            layer.attention.inner_attention = DenseAttention.Config()
    for place, value in settings.items():
        *sections, name = place.split(".")
        section = config
        for part in sections:
            section = getattr(section, part)
        assert hasattr(section, name), place
        setattr(section, name, value)
    return config


@contextmanager
def trainer_of(config, environment=None):
    """A trainer of TorchTitan, in a process group of its own."""
    environment = environment or {**torchrun_environment(1), "RANK": "0", "LOCAL_RANK": "0"}
    # It would wait two seconds for other ranks at the end of each run.
    clock = SimpleNamespace(sleep=lambda seconds: None, perf_counter=time.perf_counter)
    with mock.patch.dict(os.environ, environment), mock.patch("torchtitan.trainer.time", clock):
        trainer = config.build()
        try:
            yield trainer
        finally:
            trainer.close()
            dist.destroy_process_group()
            torch.autograd.set_multithreading_enabled(True)
            gc.enable()


def run(config, environment=None):
    """Trains; the metrics, with their records and validations."""
    with trainer_of(config, environment) as trainer:
        trainer.train()
        return trainer.metrics_processor


def on_two_ranks(work, *arguments):
    """work(rank, environments, *arguments) on two ranks; what it returns on the last, where a pipeline has its loss.

    Each process group takes the next of the environments: a port is not free again at once.
    """
    out = arguments[0] / "result.pickle"
    environments = [torchrun_environment(2) for _ in range(3 * len(TWO_RANKS))]
    mp.spawn(_rank, (environments, work, arguments, out), nprocs=2)
    return pickle.loads(out.read_bytes())  # noqa: S301  # written by ourselves


def _rank(rank, environments, work, arguments, out):
    torch.set_num_threads(1)
    torch.compiler.set_stance("force_eager")  # TorchTitan compiles its masks
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    result = work(rank, iter([environment | own for environment in environments]), *arguments)
    if rank == 1:
        out.write_bytes(pickle.dumps(result))
    end_rank()
