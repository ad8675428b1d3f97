"""A tiny configuration of every causal language model in transformers: two layers, or one of each kind in a hybrid.

Whoever surveys families, tests one or reports a fault of one needs a model of it that runs in milliseconds.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCAB_SIZE = 300
LONGEST = 64
END_OF_TEXT = 1
WIDTH, HEADS, HEAD_WIDTH, LAYERS = 32, 4, 8, 2

_SIZES: tuple[tuple[int, tuple[str, ...]], ...] = (
    (VOCAB_SIZE, ("vocab_size", "vocab_size_per_layer_input", "shape_vocab_size", "pronunciation_vocab_size")),
    (
        LONGEST,
        (
            *("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length"),
            *("max_target_positions", "max_source_positions", "model_max_length"),
        ),
    ),
    (
        WIDTH,
        (
            *(
                "hidden_size",
                "d_model",
                "n_embd",
                "emb_dim",
                "embedding_size",
                "embedding_dim",
                "attention_hidden_size",
            ),
            *("lru_width", "router_hidden_size", "pronunciation_embed_dim", "shape_embed_dim"),
        ),
    ),
    (
        LAYERS,
        (
            *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks", "num_decoder_layers"),
            *("decoder_layers", "encoder_layers"),
        ),
    ),
    (
        HEADS,
        (
            *("num_attention_heads", "n_head", "n_heads", "num_heads", "num_decoder_attention_heads"),
            *("decoder_attention_heads", "encoder_attention_heads", "index_n_heads", "linear_num_heads"),
            *("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_query_groups"),
            *("linear_num_key_heads", "linear_num_value_heads", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim"),
            *("mamba_n_heads", "zero_expert_num", "num_attention_groups"),
        ),
    ),
    (
        2,
        (
            *("num_key_value_heads", "num_kv_heads", "num_experts_per_tok", "num_experts_per_token", "moe_topk"),
            *("moe_k", "top_k_experts"),
        ),
    ),
    (
        HEAD_WIDTH,
        (
            *("head_dim", "dim_head", "d_kv", "attention_head_dim", "rotary_dim", "kv_channels", "v_head_dim"),
            *("hidden_size_per_layer_input", "index_head_dim", "index_topk", "linear_head_dim", "linear_key_head_dim"),
            *("linear_value_head_dim", "global_head_dim", "mamba_d_state", "laurel_rank", "mamba_dt_rank"),
        ),
    ),
    (1, ("n_group", "topk_group", "first_k_dense_replace", "moe_layer_start_index", "num_dense_layers")),
    (
        48,
        (
            *("intermediate_size", "ffn_dim", "n_inner", "dff", "dim_ff", "d_inner", "d_ff", "ffn_hidden_size"),
            *("decoder_ffn_dim", "encoder_ffn_dim", "shared_expert_intermediate_size", "feed_forward_size"),
            *("shared_intermediate_size", "intermediate_size_mlp"),
        ),
    ),
    (
        16,
        (
            *("moe_intermediate_size", "expert_ffn_hidden_size", "moe_latent_size", "q_lora_rank", "adapter_rank"),
            *("sliding_window", "attention_window_size", "mamba_headdim", "mamba_d_head", "gated_norm_rank"),
        ),
    ),
)
_SMALL = {name: size for size, names in _SIZES for name in names}
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")

_MLA = {"num_key_value_heads": HEADS}
_MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 16}
_OWN: dict[str, dict[str, Any]] = {
    "axk1": _MLA,
    "axk2": _MLA,
    "bailing_hybrid": {**_MLA, "linear_head_dim": 8, "num_expert_group": 1},
    "bamba": {**_MAMBA2, "attn_layer_indices": [1]},
    **{
        name: {"is_decoder": True}
        for name in (
            *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert"),
            *("rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl"),
        )
    },
    "blt": {
        "encoder_hash_byte_group_vocab": 50,
        **{
            f"{part}_config": {
                **{"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": HEADS},
                **{"num_key_value_heads": HEADS, "vocab_size": VOCAB_SIZE, "head_dim": HEAD_WIDTH},
                **({} if part in ("patcher", "global") else {"hidden_size_global": WIDTH}),
            }
            for part in ("patcher", "encoder", "decoder", "global")
        },
    },
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}},
        "layer_types": ["full_attention", "full_attention"],
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": WIDTH, "ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {**_MLA, "num_experts_per_tok": 2, "n_shared_experts": 1, "topk_method": "greedy"},
    "deepseek_v3": _MLA,
    "deepseek_v32": _MLA,
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "num_key_value_heads": HEADS},
    "dots3_note_text": {**_MLA, "head_dim": 8, "per_layer_config": {}, "shared_experts_intermediate_size": 16},
    "exaone_moe": {},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "intermediate_size": [48] * 4,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
    },
    "gemma4_text": {"per_layer_config": {}, "num_global_key_value_heads": 2},
    "git": {"vision_config": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
                              "num_attention_heads": 4, "image_size": 32, "patch_size": 16}},
    "glm_moe_dsa": _MLA,
    "granitemoehybrid": {**_MAMBA2, "layer_types": ["linear_attention", "full_attention"], "num_local_experts": 4},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "kimi_linear": _MLA,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": {**_MLA, "head_dim": 4},
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "lm_head_multiplier": 0.0195},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 2, "state_size": 8},
    "ministral": {"head_dim": 8},
    "mllama_text_model": {"cross_attention_layers": []},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h": {},
    "phi4_multimodal": {
        "pad_token_id": 1,
        "vision_config": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                          "image_size": 28, "crop_size": 28},
        "audio_config": {"hidden_size": 32, "intermediate_size": 48, "num_blocks": 2, "num_attention_heads": 4,
                         "ext_pw_out_channel": 32, "depthwise_separable_out_channel": 32, "nemo_conv_channels": 32},
    },
    "qwen4_exp_text": {
        "hc_lowrank": 8, "indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8,
        "indexer_compress_ratio": 2, "layer_types": ["linear_attention", "indexed_attention"],
    },
    "flint": {"mlp_only_layers": [0], "num_hidden_layers": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"], "full_attn_idxs": [1]},
    "recurrent_gemma": {"num_hidden_layers": 3, "num_key_value_heads": 2},
    "reformer": {"is_decoder": True, "attn_layers": ["local", "lsh"], "axial_pos_shape": [8, 8],
                 "axial_pos_embds_dim": [16, 16], "attention_head_size": 8, "hidden_size": 32,
                 "local_attn_chunk_length": 8, "lsh_attn_chunk_length": 8, "num_buckets": 4},
    "youtu": _MLA,
    "xlstm": {"num_heads": 4, "mode": "train", "ffn_round_up_to_multiple_of": 8, "chunk_size": 8,
              "autocast_kernel_dtype": "float32"},
    "xmod": {"default_language": "en_XX", "is_decoder": True},
    "zamba": {"n_mamba_heads": 2, "num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2,
              "attention_hidden_size": 64, "attention_head_dim": 16, "num_key_value_heads": 4},
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2,
               "attention_hidden_size": 64, "attention_head_dim": 16, "num_key_value_heads": 4, "n_mamba_heads": 4,
               "mamba_headdim": 16, "mamba_ngroups": 1, "kv_channels": 8},
    "zaya": {"num_experts_per_tok": 1, "layer_types": ["hybrid", "hybrid"]},
}  # fmt: skip
"""What a family needs besides, by its model type."""


def tiny_config(model_type: str) -> Any:
    """The family's configuration in small; of a multimodal family its text model's, which has a type of its own."""
    kind: Any = CONFIG_MAPPING[model_type]
    try:
        known = kind()
    except Exception:  # the defaults of some do not fit together
        known = None
    else:
        text = known.get_text_config(decoder=True)
        kind, known = (kind, known) if type(text) is type(known) else (type(text), text)
    return _small(kind, dict(known.to_dict()) if known is not None else {}, _OWN.get(kind.model_type, {}))


def tiny_model(model_type: str, **settings: Any) -> Any:
    """A model of it from random weights, the same each time, with settings of the configuration over the small ones."""
    config = tiny_config(model_type)
    for name, value in settings.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


def _small(kind: Any, known: dict[str, Any], own: dict[str, Any]) -> Any:
    settings: dict[str, Any] = {
        name: size
        for name, size in _SMALL.items()
        if type(known.get(name)) is int and not (name == "head_dim" and "qk_rope_head_dim" in known)
    }
    layers = next((known[name] for name in _LAYERS if type(known.get(name)) is int), 0)
    per_layer = {
        name: list({repr(item): item for item in value}.values())
        for name, value in known.items()
        if isinstance(value, list) and len(value) == layers and name not in own
    }
    count = max([LAYERS, *map(len, per_layer.values())])
    for name, items in per_layer.items():
        settings[name] = [*items, *items[-1:] * count][:count]
    settings |= {name: count for name in _LAYERS if name in settings}
    special = ("bos_token_id", "eos_token_id", "decoder_start_token_id")
    settings |= {name: END_OF_TEXT for name in special if name in known}
    if "pad_token_id" in known:
        settings["pad_token_id"] = 0
    return kind(**{**settings, **own})
