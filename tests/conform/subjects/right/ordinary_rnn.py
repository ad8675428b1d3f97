"""The PyTorch example's word model: time first, rows of a stream, a hidden state that begins at zero."""

import torch
from torch import nn


class RNNModel(nn.Module):
    def __init__(self, ntoken=90, ninp=20, nhid=28):
        super().__init__()
        self.encoder = nn.Embedding(ntoken, ninp)
        self.rnn = nn.LSTM(ninp, nhid, 1)
        self.decoder = nn.Linear(nhid, ntoken)

    def forward(self, source):
        output, _ = self.rnn(self.encoder(source))
        return nn.functional.log_softmax(self.decoder(output).flatten(0, 1), dim=1)


torch.manual_seed(1111)
model = RNNModel()
criterion = nn.NLLLoss()


def step(model, window):
    data, targets = window.t()[:-1], window.t()[1:].reshape(-1)
    return criterion(model(data), targets)
