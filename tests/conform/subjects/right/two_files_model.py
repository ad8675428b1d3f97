"""The model of two_files.py."""

from torch import nn


class Net(nn.Module):
    def __init__(self, vocab=92, d=20):
        super().__init__()
        self.embed = nn.Embedding(vocab, d)
        self.rnn = nn.GRU(d, d, batch_first=True)
        self.unembed = nn.Linear(d, vocab, bias=False)

    def forward(self, ids):
        return self.unembed(self.rnn(self.embed(ids).mean(-2))[0])
