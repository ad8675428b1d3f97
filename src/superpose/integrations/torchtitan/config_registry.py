"""What `--config` names: the paper's four models (arXiv 2605.06546, Table 1), and a small one to try things with.

Shapes and settings are read from the recipes paper-*, whose comments say which the paper names. Built of TorchTitan's
own builders with TorchTitan's initialisation. Every setting may be given another value on the command line:

    --config superpose_270m --dataloader.dataset_path stores/dclm --superposition.bag_size 8 --training.steps 10000
"""

from dataclasses import replace
from functools import partial
from typing import Any

from torchtitan.components.checkpointer import CheckpointManager
from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.components.optimizer import LRSchedulersContainer, OptimizersContainer, ParamGroupConfig
from torchtitan.components.validate import Validator
from torchtitan.config import CompileConfig, TrainingConfig
from torchtitan.distributed.activation_checkpoint import FullAC
from torchtitan.models import llama3, qwen3
from torchtitan.models.common import ComplexRoPE, CosSinRoPE, RMSNorm, ScaledDotProductAttention
from torchtitan.protocols.model_spec import ModelSpec
from torchtitan.protocols.module import Module
from torchtitan.trainer import Trainer

from superpose.integrations.torchtitan.embedding import BagEmbedding
from superpose.integrations.torchtitan.trainer import SuperposeTrainer, Superposition, superposed
from superpose.models.build import ModelArgs, build_config
from superpose.train.config import Recipe, SuperpositionArgs, TrainArgs
from superpose.train.optim import OptimArgs
from superpose.train.recipe_file import load_recipe

_LLAMA_3_VOCABULARY = 128256

_SMALL = {**ModelArgs().config, "num_hidden_layers": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5}
_DEBUG = Recipe(
    model=ModelArgs(config=_SMALL),
    superposition=SuperpositionArgs(bag_size=4, ratio=0.3),
    train=TrainArgs(steps=20, latents=64, warmup_steps=2, log_every=1, eval_every=10, checkpoint_every=10),
)


def superpose_debug() -> SuperposeTrainer.Config:
    """20 steps of a model of 4 layers, 64 wide; its attention needs no compiler, so it runs anywhere."""
    config = _config("debug", _DEBUG, 2048, local_batch_size=8, attention=ScaledDotProductAttention.Config())
    config.training.global_batch_size = -1
    config.training.mixed_precision_param = "float32"
    config.loss.num_chunks = 2
    config.checkpoint.enable = False
    config.validator.enable, config.validator.steps = True, 2
    return config


def _paper(name: str, local_batch_size: int) -> SuperposeTrainer.Config:
    return _config(name.upper(), load_recipe(f"paper-{name}"), _LLAMA_3_VOCABULARY, local_batch_size)


superpose_270m = partial(_paper, "270m", local_batch_size=16)
"""SmolLM2-135M's shape with an untied embedding of 128k: s 6, r 0.3, 20,000 steps of 2M latents."""
superpose_600m = partial(_paper, "600m", local_batch_size=8)
"""SmolLM2-360M's shape with an untied embedding of 128k: s 6, r 0.3, 20,000 steps of 2M latents."""
superpose_3b = partial(_paper, "3b", local_batch_size=4)
"""SmolLM3-3B's shape with an untied embedding of 128k: s 6, r 0.3, 20,000 steps of 2M latents."""
superpose_10b_a1b = partial(_paper, "10b-a1b", local_batch_size=4)
"""A mixture of 128 experts in Qwen3's style, 8 of them active: s 16, r 0.25, 49,983 steps of 8M latents.

TorchTitan evens the experts' load by a bias on the router, not by a loss as the recipe of `superpose train` does.
"""


def _config(
    name: str, recipe: Recipe, vocab_size: int, local_batch_size: int, attention: Module.Config | None = None
) -> SuperposeTrainer.Config:
    """A recipe's run by TorchTitan, which has its rows on each device in place of `train.accumulate`."""
    train, shape = recipe.train, build_config(recipe.model, vocab_size, recipe.train.latents, 0)
    config = Trainer.Config(
        model_spec=(_llama if shape.model_type == "llama" else _qwen3_moe)(name, shape, attention),
        loss=ChunkedLossWrapper.Config(loss_fn=CrossEntropyLoss.Config(global_vocab_size=vocab_size)),
        optimizer=_adamw(train),
        lr_scheduler=LRSchedulersContainer.Config(
            warmup_steps=train.warmup_steps, decay_ratio=train.decay_ratio, decay_type="linear"
        ),
        training=TrainingConfig(
            seq_len=train.latents,
            local_batch_size=local_batch_size,
            global_batch_size=train.batch_size,
            steps=train.steps,
            disable_cuda_graphs=True,  # not tried with superposition
        ),
        metrics=MetricsProcessor.Config(log_freq=train.log_every),
        checkpoint=CheckpointManager.Config(enable=True, interval=train.checkpoint_every),
        activation_checkpoint=FullAC.Config() if train.checkpoint_activations else None,
        compile=CompileConfig(enable=train.compile),
        validator=Validator.Config(freq=train.eval_every, steps=50),
    )
    settings = {name: getattr(recipe.superposition, name) for name in Superposition.__dataclass_fields__}
    return superposed(config, Superposition(**settings))


def _adamw(args: OptimArgs) -> OptimizersContainer.Config:
    """AdamW; matrices and tables decay, norms do not, as in `superpose train`."""

    def group(pattern: str, weight_decay: float) -> ParamGroupConfig:
        settings = {"lr": args.lr, "betas": args.betas, "eps": args.eps, "weight_decay": weight_decay}
        return ParamGroupConfig(pattern=pattern, optimizer_name="AdamW", optimizer_kwargs=settings)

    return OptimizersContainer.Config(param_groups=[group(r"norm\.weight$", 0.0), group(".*", args.weight_decay)])


def _llama(flavor: str, shape: Any, attention: Module.Config | None = None) -> ModelSpec:
    """TorchTitan's Llama in the shape of transformers' configuration."""
    spec = llama3.model_registry("debugmodel")
    spec.model.lm_head.param_init = llama3._output_linear_init(shape.hidden_size)
    rope = ComplexRoPE.Config(dim=shape.head_dim, max_seq_len=131072, theta=shape.rope_parameters["rope_theta"])
    layers = llama3._build_llama3_layers(**_block(shape), rope=rope, hidden_dim=shape.intermediate_size)
    return _reshaped(spec, flavor, shape, layers, attention)


def _qwen3_moe(flavor: str, shape: Any, attention: Module.Config | None = None) -> ModelSpec:
    """TorchTitan's Qwen3 with experts in the shape of transformers' configuration."""
    layers = qwen3._build_qwen3_moe_layers(
        **_block(shape),
        rope=CosSinRoPE.Config(dim=shape.head_dim, max_seq_len=131072, theta=shape.rope_parameters["rope_theta"]),
        head_dim=shape.head_dim,
        moe_hidden_dim=shape.moe_intermediate_size,
        num_experts=shape.num_experts,
        top_k=shape.num_experts_per_tok,
        moe_comm_backend="standard",
    )
    return _reshaped(qwen3.model_registry("debugmodel_moe"), flavor, shape, layers, attention)


def _block(shape: Any) -> dict[str, Any]:
    return {
        "n_layers": shape.num_hidden_layers,
        "dim": shape.hidden_size,
        "n_heads": shape.num_attention_heads,
        "n_kv_heads": shape.num_key_value_heads,
        "attn_backend": "flex",
    }


def _reshaped(
    spec: ModelSpec, flavor: str, shape: Any, layers: list[Any], attention: Module.Config | None
) -> ModelSpec:
    """One of TorchTitan's small models with these layers, and what is outside of them in their shape."""
    dim, vocab_size, small = shape.hidden_size, shape.vocab_size, spec.model
    initial = small.tok_embeddings.param_init
    model = replace(
        small,
        dim=dim,
        vocab_size=vocab_size,
        tok_embeddings=BagEmbedding.Config(num_embeddings=vocab_size, embedding_dim=dim, param_init=initial),
        layers=layers,
        norm=replace(small.norm, normalized_shape=dim),
        lm_head=replace(small.lm_head, in_features=dim, out_features=vocab_size),
    )
    for _, norm, *_ in model.traverse(RMSNorm.Config):
        norm.eps = shape.rms_norm_eps
    for layer in layers:
        layer.attention.inner_attention = attention or layer.attention.inner_attention
    return replace(spec, flavor=flavor, model=model)
