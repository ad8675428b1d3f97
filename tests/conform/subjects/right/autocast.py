"""torch.autocast around the forward pass, as in most training scripts."""

import torch
from torch import nn

vocab_size, n_embd, device_type, dtype = 120, 32, "cpu", torch.bfloat16
ctx = torch.amp.autocast(device_type=device_type, dtype=dtype)


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.tok_emb = nn.Embedding(vocab_size, n_embd)
        self.pos_emb = nn.Embedding(64, n_embd)
        self.attn = nn.MultiheadAttention(n_embd, 4, batch_first=True)
        self.ln1, self.ln2, self.ln3 = (nn.LayerNorm(n_embd) for _ in range(3))
        self.ff = nn.Sequential(nn.Linear(n_embd, 64), nn.ReLU(), nn.Linear(64, n_embd))
        self.to_logits = nn.Linear(n_embd, vocab_size)

    def forward(self, bags, targets):
        x = self.tok_emb(bags).mean(2) + self.pos_emb.weight[: bags.shape[1]]
        t = x.shape[1]
        mask = torch.triu(torch.ones(t, t, dtype=torch.bool), diagonal=1)
        h = self.ln1(x)
        x = x + self.attn(h, h, h, attn_mask=mask, need_weights=False)[0]
        x = x + self.ff(self.ln2(x))
        logits = self.to_logits(self.ln3(x)).float()
        return (torch.logsumexp(logits, -1) - logits.gather(-1, targets).mean(-1)).mean()


torch.manual_seed(1337)
model = Decoder()


def step(model, window, bag_size):
    bags = window.view(window.shape[0], -1, bag_size)
    with ctx:
        return model(bags[:, :-1], bags[:, 1:])
