"""What `--config` names: the paper's four models (arXiv 2605.06546, Table 1), and a small one to try things with.

Shapes and settings are those of the recipes paper-*, whose comments say which the paper names. Built of TorchTitan's
own parts with TorchTitan's initialisation. Every setting may be given another value on the command line:

    --config superpose_270m --dataloader.dataset_path stores/dclm --superposition.bag_size 8 --training.steps 10000
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torchtitan.components.checkpointer import CheckpointManager
from torchtitan.components.loss import ChunkedLossWrapper
from torchtitan.components.optimizer import (
    LRSchedulersContainer,
    OptimizersContainer,
    ParamGroupConfig,
    register_moe_load_balancing_hook,
)
from torchtitan.components.validate import Validator
from torchtitan.config import CompileConfig, TrainingConfig
from torchtitan.distributed.activation_checkpoint import FullAC
from torchtitan.distributed.pipeline_parallel import pipeline_llm
from torchtitan.models.common import ComplexRoPE, CosSinRoPE, Linear, RMSNorm, ScaledDotProductAttention
from torchtitan.models.common.config_utils import (
    get_attention_config,
    make_ffn_config,
    make_gqa_config,
    make_moe_config,
    make_routed_experts_config,
    make_router_config,
)
from torchtitan.models.common.param_init import depth_scaled_std
from torchtitan.models.llama3 import Llama3Model, parallelize_llama
from torchtitan.models.llama3.model import Llama3TransformerBlock
from torchtitan.models.llama3.state_dict_adapter import Llama3StateDictAdapter
from torchtitan.models.qwen3 import Qwen3Model, parallelize_qwen3
from torchtitan.models.qwen3.model import Qwen3TransformerBlock
from torchtitan.models.qwen3.state_dict_adapter import Qwen3StateDictAdapter
from torchtitan.protocols.model_spec import ModelSpec
from torchtitan.protocols.module import Module

from superpose.integrations.torchtitan.embedding import BagEmbedding
from superpose.integrations.torchtitan.loader import HeldOutLoader, StoreLoader
from superpose.integrations.torchtitan.loss import MultiHotLoss
from superpose.integrations.torchtitan.trainer import SuperposeMetrics, SuperposeTrainer, Superposition

_LLAMA_3_VOCABULARY = 128256


def superpose_debug() -> SuperposeTrainer.Config:
    """20 steps of a model of 4 layers, 64 wide; its attention needs no compiler, so it runs anywhere."""
    spec = _llama("debug", 2048, 64, 192, layers=4, heads=4, kv_heads=2, attention=ScaledDotProductAttention.Config())
    config = _config(
        spec,
        Superposition(bag_size=4, ratio=0.3),
        lr=2e-3,
        steps=20,
        warmup_steps=2,
        training={"local_batch_size": 8, "seq_len": 64, "mixed_precision_param": "float32"},
    )
    config.loss.num_chunks = 2
    config.metrics.log_freq = 1
    config.checkpoint = CheckpointManager.Config(interval=10)
    config.validator = Validator.Config(enable=True, freq=10, steps=2, dataloader=HeldOutLoader.Config())
    config.compile.enable = False
    return config


def superpose_270m() -> SuperposeTrainer.Config:
    """SmolLM2-135M's shape with an untied embedding of 128k: s 6, r 0.3, 20,000 steps of 2M latents."""
    spec = _llama("270M", _LLAMA_3_VOCABULARY, 576, 1536, layers=30, heads=9, kv_heads=3, theta=1e5)
    return _config(spec, Superposition(bag_size=6, ratio=0.3), lr=2e-3, training={"local_batch_size": 16})


def superpose_600m() -> SuperposeTrainer.Config:
    """SmolLM2-360M's shape with an untied embedding of 128k: s 6, r 0.3, 20,000 steps of 2M latents."""
    spec = _llama("600M", _LLAMA_3_VOCABULARY, 960, 2560, layers=32, heads=15, kv_heads=5, theta=1e5)
    return _config(spec, Superposition(bag_size=6, ratio=0.3), lr=1e-3, training={"local_batch_size": 8})


def superpose_3b() -> SuperposeTrainer.Config:
    """SmolLM3-3B's shape with an untied embedding of 128k: s 6, r 0.3, 20,000 steps of 2M latents."""
    spec = _llama("3B", _LLAMA_3_VOCABULARY, 2048, 11008, layers=36, heads=16, kv_heads=4, theta=5e6, eps=1e-6)
    config = _config(spec, Superposition(bag_size=6, ratio=0.3), lr=2e-4, training={"local_batch_size": 4})
    config.activation_checkpoint = FullAC.Config()
    return config


def superpose_10b_a1b() -> SuperposeTrainer.Config:
    """A mixture of 128 experts in Qwen3's style, 8 of them active: s 16, r 0.25, 49,983 steps of 8M latents.

    TorchTitan evens the experts' load by a bias on the router, not by a loss as the recipe of `superpose train` does.
    """
    spec = _qwen3_moe("10B-A1B", _LLAMA_3_VOCABULARY, 1536, 512, layers=32, heads=16, kv_heads=4, experts=128, active=8)
    superposition = Superposition(bag_size=16, ratio=0.25, weighting="power")
    training = {"local_batch_size": 4, "global_batch_size": 4096}
    config = _config(spec, superposition, lr=3e-4, steps=49983, training=training)
    config.activation_checkpoint = FullAC.Config()
    config.compile.enable = False
    return config


def _config(
    spec: ModelSpec,
    superposition: Superposition,
    lr: float,
    training: dict[str, Any],
    steps: int = 20000,
    warmup_steps: int = 2000,
) -> SuperposeTrainer.Config:
    """The paper's recipe: warmup, a constant rate, a linear decay over the last tenth."""
    return SuperposeTrainer.Config(
        model_spec=spec,
        superposition=superposition,
        hf_assets_path="",  # the store's tokenizer
        loss=ChunkedLossWrapper.Config(loss_fn=MultiHotLoss.Config(global_vocab_size=spec.model.vocab_size)),
        dataloader=StoreLoader.Config(),
        optimizer=_adamw(lr),
        lr_scheduler=LRSchedulersContainer.Config(warmup_steps=warmup_steps, decay_ratio=0.1, decay_type="linear"),
        training=TrainingConfig(
            **{"seq_len": 2048, "global_batch_size": 1024 if steps >= 1000 else -1, **training},
            steps=steps,
            disable_cuda_graphs=True,  # not tried with superposition
        ),
        metrics=SuperposeMetrics.Config(log_freq=10),
        checkpoint=CheckpointManager.Config(enable=steps >= 1000, interval=500),
        activation_checkpoint=None,
        compile=CompileConfig(enable=True),
        validator=Validator.Config(freq=1000, steps=50, dataloader=HeldOutLoader.Config()),
    )


def _adamw(lr: float) -> OptimizersContainer.Config:
    """AdamW 0.9/0.95; matrices and tables decay, norms do not, as in `superpose train`."""

    def group(pattern: str, weight_decay: float) -> ParamGroupConfig:
        settings = {"lr": lr, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": weight_decay}
        return ParamGroupConfig(pattern=pattern, optimizer_name="AdamW", optimizer_kwargs=settings)

    return OptimizersContainer.Config(param_groups=[group(r"norm\.weight$", 0.0), group(".*", 0.1)])


def _llama(
    flavor: str,
    vocab_size: int,
    dim: int,
    hidden_dim: int,
    *,
    layers: int,
    heads: int,
    kv_heads: int,
    theta: float = 1e4,
    eps: float = 1e-5,
    attention: Module.Config | None = None,
) -> ModelSpec:
    rope = ComplexRoPE.Config(dim=dim // heads, max_seq_len=131072, theta=theta)

    def layer(number: int) -> Llama3TransformerBlock.Config:
        output = _weights(partial(nn.init.trunc_normal_, std=depth_scaled_std(0.02, number)))
        inner = _weights(partial(nn.init.trunc_normal_, std=0.02))
        return Llama3TransformerBlock.Config(
            attention_norm=_norm(dim, eps),
            ffn_norm=_norm(dim, eps),
            attention=make_gqa_config(
                dim=dim,
                n_heads=heads,
                n_kv_heads=kv_heads,
                wqkv_param_init=inner,
                wo_param_init=output,
                inner_attention=attention or get_attention_config("flex"),
                fuse_qkv=True,
                rope=rope,
            ),
            feed_forward=make_ffn_config(dim=dim, hidden_dim=hidden_dim, w1_param_init=inner, w2w3_param_init=output),
        )

    std = dim**-0.5
    model = Llama3Model.Config(
        dim=dim,
        vocab_size=vocab_size,
        tok_embeddings=_embedding(vocab_size, dim, std=1.0),
        norm=_norm(dim, eps),
        lm_head=_head(vocab_size, dim, partial(nn.init.trunc_normal_, std=std, a=-3 * std, b=3 * std)),
        layers=[layer(number) for number in range(layers)],
    )
    return ModelSpec(
        name="llama3",
        flavor=flavor,
        model=model,
        parallelize_fn=parallelize_llama,
        pipelining_fn=pipeline_llm,
        post_optimizer_build_fn=None,
        state_dict_adapter=Llama3StateDictAdapter,
    )


def _qwen3_moe(
    flavor: str,
    vocab_size: int,
    dim: int,
    expert_dim: int,
    *,
    layers: int,
    heads: int,
    kv_heads: int,
    experts: int,
    active: int,
    head_dim: int = 128,
    theta: float = 1e4,
    eps: float = 1e-6,
) -> ModelSpec:
    rope = CosSinRoPE.Config(dim=head_dim, max_seq_len=131072, theta=theta)
    normal = partial(nn.init.normal_, std=0.02)
    residual = partial(nn.init.normal_, std=0.02 / (2 * layers) ** 0.5)

    def layer() -> Qwen3TransformerBlock.Config:
        return Qwen3TransformerBlock.Config(
            attention_norm=_norm(dim, eps),
            ffn_norm=_norm(dim, eps),
            attention=make_gqa_config(
                dim=dim,
                n_heads=heads,
                n_kv_heads=kv_heads,
                head_dim=head_dim,
                wqkv_param_init=_weights(normal),
                wo_param_init=_weights(residual),
                inner_attention=get_attention_config("flex"),
                fuse_qkv=True,
                rope=rope,
                qk_norm=_norm(head_dim, eps),
            ),
            moe=make_moe_config(
                num_experts=experts,
                router=make_router_config(
                    dim=dim,
                    num_experts=experts,
                    gate_param_init=_weights(normal),
                    top_k=active,
                    score_func="softmax",
                    route_norm=True,
                ),
                routed_experts=make_routed_experts_config(
                    dim=dim,
                    hidden_dim=expert_dim,
                    num_experts=experts,
                    top_k=active,
                    param_init={"w1_EFD": normal, "w2_EDF": residual, "w3_EFD": normal},
                    comm_backend="standard",
                ),
            ),
        )

    model = Qwen3Model.Config(
        dim=dim,
        vocab_size=vocab_size,
        tok_embeddings=_embedding(vocab_size, dim, std=0.02),
        norm=_norm(dim, eps),
        lm_head=_head(vocab_size, dim, normal),
        layers=[layer() for _ in range(layers)],
    )
    return ModelSpec(
        name="qwen3",
        flavor=flavor,
        model=model,
        parallelize_fn=parallelize_qwen3,
        pipelining_fn=pipeline_llm,
        post_optimizer_build_fn=register_moe_load_balancing_hook,
        state_dict_adapter=Qwen3StateDictAdapter,
    )


def _embedding(vocab_size: int, dim: int, std: float) -> BagEmbedding.Config:
    initial = {"weight": partial(nn.init.normal_, std=std)}
    return BagEmbedding.Config(num_embeddings=vocab_size, embedding_dim=dim, param_init=initial)


def _head(vocab_size: int, dim: int, initial: Callable[..., Any]) -> Linear.Config:
    return Linear.Config(in_features=dim, out_features=vocab_size, param_init=_weights(initial))


def _norm(dim: int, eps: float) -> RMSNorm.Config:
    return RMSNorm.Config(normalized_shape=dim, eps=eps, param_init={"weight": nn.init.ones_})


def _weights(initial: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    return {"weight": initial, "bias": nn.init.zeros_}
