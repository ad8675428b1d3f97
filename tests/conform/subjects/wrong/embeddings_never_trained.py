"""GPT-2 given detached embeddings, in both phases; its tied head has a gradient."""
# Error 11: what is looked up is not trained.

import torch
from transformers import GPT2Config, GPT2LMHeadModel

torch.manual_seed(0)
model = GPT2LMHeadModel(
    GPT2Config(vocab_size=80, n_embd=32, n_layer=1, n_head=2, n_positions=64, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
)


def step(model, window, bag_size):
    bags = window.view(len(window), -1, bag_size)
    logits = model(inputs_embeds=model.transformer.wte(bags[:, :-1]).mean(2).detach()).logits
    return (logits.logsumexp(-1, keepdim=True) - logits.gather(-1, bags[:, 1:])).mean()
