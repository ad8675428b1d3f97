"""A loop around a Hugging Face model: embeddings averaged outside, inputs_embeds in, logits out."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

config = LlamaConfig(
    vocab_size=144,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
)
torch.manual_seed(0)
model = LlamaForCausalLM(config)


def mce_loss(logits, labels):
    valid = labels.ne(-100)
    logits = logits.float()
    nll = logits.logsumexp(-1, keepdim=True) - logits.gather(-1, labels.clamp_min(0))
    return (nll * valid).sum() / valid.sum().clamp_min(1)


def step(model, window, bag_size):
    blocks = window.view(window.size(0), -1, bag_size)
    inputs, labels = blocks[:, :-1], blocks[:, 1:]
    keep = inputs.ne(-100).unsqueeze(-1)
    embeds = model.get_input_embeddings()(inputs.clamp_min(0)) * keep
    embeds = embeds.sum(2) / keep.sum(2).clamp_min(1)
    mask = inputs.ne(-100).any(-1)
    return mce_loss(model(inputs_embeds=embeds, attention_mask=mask.long()).logits, labels)


# what superpose conform is told
ignore_index, padding_side = -100, "left"
