import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from superpose import SuperposedLM
from superpose.data.store import Split
from superpose.data.tokens import TokenArray
from superpose.errors import UserError
from superpose.train.distributed import Ranks
from superpose.train.metrics import evaluate, metrics_log, read_metrics
from tests.conftest import make_model


@pytest.mark.error(n=7)
def test_validation_is_next_token_over_every_token():
    model = make_model("llama").train()
    tokens = np.random.default_rng(0).integers(0, 50, 83).astype(np.uint16)
    split = Split(TokenArray([tokens], ["tokens"], 50), np.array([0, 83]), bytes=200)
    validation = evaluate(SuperposedLM(model), split, latents=16, rows=2, ranks=Ranks(0, 1, torch.device("cpu")))
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


def test_a_resumed_log_drops_what_came_after_its_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with metrics_log(path, 0) as write:
        for step in range(5):
            write({"kind": "training", "step": step})
    with path.open("a") as file:
        file.write('{"kind": "tra')  # cut short by a crash
    with metrics_log(path, 2) as write:
        write({"kind": "training", "step": 3, "again": True})
    assert [record["step"] for record in read_metrics(path)] == [0, 1, 2, 3]
    assert read_metrics(path)[-1]["again"]


@pytest.mark.parametrize("line", ["3", "null", "[]", "{}", '{"step": "3"}', '{"step": true}'])
def test_a_line_that_is_no_record_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + line + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2"):
        read_metrics(path)


@pytest.mark.parametrize("tail", [b'{"step": 2', b"\xff\xfe", b"[" * 5000])
def test_what_a_crash_left_is_no_record(tmp_path, tail):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + tail)
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1}]
