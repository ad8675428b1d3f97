"""Token 0 is padding, on the right or anywhere: left out of the mean, of the targets and of the count."""

import torch
import torch.nn as nn

PAD = 0


class PadAwareLM(nn.Module):
    def __init__(self, vocab_size=70, d_model=32):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model, padding_idx=PAD)
        self.decoder = nn.LSTM(d_model, d_model, batch_first=True)
        self.generator = nn.Linear(d_model, vocab_size)

    def forward(self, bags):
        real = (bags != PAD).float()
        summed = (self.embedding(bags) * real.unsqueeze(-1)).sum(dim=2)
        mean = summed / real.sum(dim=2, keepdim=True).clamp(min=1.0)
        return self.generator(self.decoder(mean)[0])


def criterion(logits, targets):
    real = targets != PAD
    logp = torch.log_softmax(logits, dim=-1)
    nll = -logp.gather(-1, targets).masked_fill(~real, 0.0)
    return nll.sum() / real.sum().clamp(min=1)


torch.manual_seed(42)
model = PadAwareLM()


def step(model, window, bag_size):
    bags = window.view(window.size(0), -1, bag_size)
    return criterion(model(bags[:, :-1]), bags[:, 1:])


# what superpose conform is told
ignore_index, padding_side = PAD, "anywhere"
