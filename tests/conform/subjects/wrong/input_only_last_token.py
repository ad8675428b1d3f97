"""Input-only that asks for the next bag's last token, so that "every token is seen once"."""
# Error 1: s - 1 tokens are skipped.

import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

torch.manual_seed(0)
model = GPT2LMHeadModel(
    GPT2Config(vocab_size=80, n_embd=32, n_layer=1, n_head=2, n_positions=64, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
)


def step(model, window, bag_size):
    bags = window.view(len(window), -1, bag_size)
    logits = model(inputs_embeds=model.transformer.wte(bags[:, :-1]).mean(2)).logits
    return F.cross_entropy(logits.flatten(0, 1), bags[:, 1:, -1].flatten())


# what superpose conform is told
mode = "input"
