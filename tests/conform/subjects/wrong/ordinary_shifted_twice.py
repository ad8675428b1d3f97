"""Ordinary training: x and y come shifted from the loader, and the Hugging Face model shifts its labels again."""
# Error 1: each position is asked for the token after the next one.

import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(vocab_size=80, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2)
)


def step(model, window):
    x, y = window[:, :-1], window[:, 1:]
    return model(input_ids=x, labels=y).loss
