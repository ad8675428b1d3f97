import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from superpose import SuperposedLM
from superpose.data.store import Split
from superpose.data.tokens import TokenArray
from superpose.train.distributed import Ranks
from superpose.train.step import validate
from tests.conftest import make_model


@pytest.mark.error(n=7)
def test_validation_is_next_token_over_every_token():
    model = make_model("llama").train()
    tokens = np.random.default_rng(0).integers(0, 50, 83).astype(np.uint16)
    split = Split(TokenArray([tokens], ["tokens"], 50), np.array([0, 83]), bytes=200)
    validation = validate(SuperposedLM(model), split, latents=16, rows=2, ranks=Ranks(0, 1, torch.device("cpu")))
    total = 0.0
    ids = torch.from_numpy(tokens.astype(np.int64))
    with torch.no_grad():
        for start in range(0, 82, 16):
            row = ids[start : start + 17]
            logits = model(input_ids=row[None, :-1]).logits[0]
            total += float(F.cross_entropy(logits, row[1:], reduction="sum"))
    assert validation.loss == pytest.approx(total / 82, rel=1e-5)
    assert validation.bits_per_byte == pytest.approx(total / math.log(2) / 200, rel=1e-5)
    assert model.training
