"""A GPT-2 whose forward takes input_ids [B, L, S] as well; tied head, labels shifted by a bag inside."""

import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.modeling_outputs import CausalLMOutput


class SuperposedGPT2(GPT2LMHeadModel):
    def forward(self, input_ids=None, labels=None, **kwargs):
        if input_ids is None or input_ids.dim() == 2:
            return super().forward(input_ids=input_ids, labels=labels, **kwargs)
        hidden = self.transformer(inputs_embeds=self.transformer.wte(input_ids).mean(dim=2), **kwargs)[0]
        logits = self.lm_head(hidden)
        loss = None
        if labels is not None:
            shifted = logits[:, :-1].flatten(0, 1)
            wanted = labels[:, 1:].flatten(0, 1)
            soft = torch.zeros_like(shifted).scatter_add_(1, wanted, torch.ones(wanted.shape, dtype=shifted.dtype))
            loss = F.cross_entropy(shifted, soft / wanted.shape[1])
        return CausalLMOutput(loss=loss, logits=logits)


torch.manual_seed(0)
model = SuperposedGPT2(
    GPT2Config(vocab_size=96, n_embd=24, n_layer=2, n_head=2, n_positions=64, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
)


def step(model, window, bag_size):
    ids = window if bag_size == 1 else window.view(len(window), -1, bag_size)
    return model(input_ids=ids, labels=ids).loss
