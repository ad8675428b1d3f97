"""A collator's attention mask with padding on the right: labels, means and the bags' mask all come from it."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

torch.manual_seed(0)
model = GPT2LMHeadModel(
    GPT2Config(vocab_size=80, n_embd=32, n_layer=1, n_head=2, n_positions=64, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
)


def step(model, window, bag_size, attention_mask=None):
    real = (torch.ones_like(window) if attention_mask is None else attention_mask).unflatten(1, (-1, bag_size)).bool()
    bags = window.unflatten(1, (-1, bag_size))
    share = real / real.sum(-1, keepdim=True).clamp(min=1)
    x = torch.einsum("blsd,bls->bld", model.transformer.wte(bags), share)[:, :-1]
    z = model(inputs_embeds=x, attention_mask=real.any(-1)[:, :-1]).logits
    nll = z.logsumexp(-1, keepdim=True) - z.gather(-1, bags[:, 1:])
    return nll[real[:, 1:]].mean() if real[:, 1:].any() else 0 * nll.sum()
