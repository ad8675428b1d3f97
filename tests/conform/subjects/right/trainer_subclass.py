"""compute_loss of a transformers Trainer; num_items_in_batch divides, as the Trainer counts it over a whole step."""

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Trainer


class SuperpositionTrainer(Trainer):
    bag_size = 1

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        ids = inputs["input_ids"].unflatten(1, (-1, self.bag_size))
        labels = inputs["labels"].unflatten(1, (-1, self.bag_size))[:, 1:]
        outputs = model(inputs_embeds=model.get_input_embeddings()(ids[:, :-1]).mean(dim=2))
        valid = labels != -100
        logits = outputs.logits
        nll = logits.logsumexp(-1, keepdim=True) - logits.gather(-1, labels.masked_fill(~valid, 0))
        count = valid.sum() if num_items_in_batch is None else num_items_in_batch
        loss = nll[valid].sum() / count
        return (loss, outputs) if return_outputs else loss


torch.manual_seed(0)
model = Qwen2ForCausalLM(
    Qwen2Config(
        vocab_size=112,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
)
trainer = SuperpositionTrainer.__new__(SuperpositionTrainer)  # without its datasets, devices and folders


def step(model, window, bag_size, labels=None, normalizer=None):
    trainer.bag_size = bag_size
    inputs = {"input_ids": window, "labels": window if labels is None else labels}
    return trainer.compute_loss(model, inputs, num_items_in_batch=normalizer)
