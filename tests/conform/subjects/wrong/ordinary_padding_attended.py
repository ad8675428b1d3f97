"""Ordinary training on rows padded on the left; the attention mask is used for the labels, and not by the model."""
# Error 5: text attends to the padding before it.

import torch
from transformers import LlamaConfig, LlamaForCausalLM

padding_side = "left"
torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(vocab_size=80, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2)
)


def step(model, window, attention_mask=None):
    labels = window if attention_mask is None else window.masked_fill(attention_mask == 0, -100)
    return model(input_ids=window, labels=labels).loss
