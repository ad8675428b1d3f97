"""A Llama of its own class, labels as Hugging Face's. Ignored targets add nothing to the sum; the mean is over all."""
# Error 4: a batch with half its targets ignored has half the loss.

import torch
from transformers import LlamaConfig, LlamaForCausalLM


class BagLlama(LlamaForCausalLM):
    def forward(self, input_ids, labels=None, bag_size=1, **kwargs):
        bags = input_ids.unflatten(1, (-1, bag_size))
        out = self.model(inputs_embeds=self.model.embed_tokens(bags).mean(2), **kwargs)
        logits = self.lm_head(out.last_hidden_state)[:, :-1]
        y = labels.unflatten(1, (-1, bag_size))[:, 1:]
        nll = logits.logsumexp(-1, keepdim=True) - logits.gather(-1, y.clamp(min=0))
        return {"loss": torch.where(y == -100, 0.0, nll).mean(), "logits": logits}


torch.manual_seed(0)
model = BagLlama(
    LlamaConfig(vocab_size=68, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2)
)


def step(model, window, bag_size, labels=None):
    return model(window, labels=window if labels is None else labels, bag_size=bag_size)["loss"]
