"""A Hugging Face model; the attention mask of the bags is every s-th entry of the tokens'."""
# Error 5: a bag whose first token is padding is shut out, though it holds others.

import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(vocab_size=80, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2)
)


def step(model, window, bag_size, attention_mask=None):
    if attention_mask is None:
        attention_mask = torch.ones_like(window)
    bags = window.unflatten(1, (-1, bag_size))
    real = attention_mask.unflatten(1, (-1, bag_size)).unsqueeze(-1).float()
    x = (model.model.embed_tokens(bags) * real).sum(2) / real.sum(2).clamp(min=1)
    logits = model(inputs_embeds=x[:, :-1], attention_mask=attention_mask[:, ::bag_size][:, :-1]).logits
    targets, counted = bags[:, 1:], real[:, 1:].squeeze(-1)
    nll = logits.logsumexp(-1, keepdim=True) - logits.gather(-1, targets)
    return (nll * counted).sum() / counted.sum()


# what superpose conform is told
padding_side = "left"
