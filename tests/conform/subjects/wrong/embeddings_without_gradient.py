"""Bags are made in the collator, under no_grad, and handed to a Hugging Face model as inputs_embeds."""
# Error 11: the embedding is not trained in superposition.

import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(vocab_size=76, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2)
)


class Collator:
    def __init__(self, embedding, s):
        self.embedding, self.s = embedding, s

    @torch.no_grad()
    def __call__(self, ids):
        bags = ids.unflatten(1, (-1, self.s))
        return {"inputs_embeds": self.embedding(bags[:, :-1]).mean(2)}, bags[:, 1:]


def step(model, window, bag_size):
    if bag_size == 1:
        return model(input_ids=window, labels=window).loss
    batch, targets = Collator(model.get_input_embeddings(), bag_size)(window)
    logits = model(**batch).logits
    return (logits.logsumexp(-1) - logits.gather(-1, targets).mean(-1)).mean()
