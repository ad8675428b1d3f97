import json

import pytest
import torch

from superpose.errors import UserError
from superpose.train import run as runs
from superpose.train.run import claim
from tests.train.test_loop import changed

CPU = torch.device("cpu")


def test_choices_made_at_the_start_are_kept(recipe, store, tmp_path, monkeypatch):
    automatic = changed(recipe, "train", precision="auto")
    chosen = changed(recipe, "train", precision="bfloat16")
    monkeypatch.setattr(runs, "chosen_precision", lambda recipe, device: chosen)
    assert claim(tmp_path / "run", automatic, store, False, CPU).train.precision == "bfloat16"
    monkeypatch.setattr(runs, "chosen_precision", lambda recipe, device: pytest.fail("asked again"))
    assert claim(tmp_path / "run", automatic, store, True, CPU).train.precision == "bfloat16"
    with pytest.raises(UserError, match=r"another train\.precision"):
        claim(tmp_path / "run", recipe, store, True, CPU)


def test_a_run_may_go_on_elsewhere(recipe, store, tmp_path):
    """How it is computed and watched may change; what it computes may not."""
    claim(tmp_path / "run", recipe, store, False, CPU)
    elsewhere = changed(recipe, "train", threads=3, accumulate=2, log_every=7, keep_checkpoints=5, compile=True)
    elsewhere = changed(elsewhere, "parallel", strategy="ddp", timeout=9)
    assert claim(tmp_path / "run", elsewhere, store, True, CPU) == elsewhere
    for section, values in (("train", {"steps": 30}), ("superposition", {"ratio": 0.2}), ("model", {"config": {}})):
        with pytest.raises(UserError, match=f"another {section}"):
            claim(tmp_path / "run", changed(recipe, section, **values), store, True, CPU)


@pytest.mark.parametrize("left", ["store.json", ".config.json.123.tmp"])
def test_a_run_killed_at_its_very_start_can_be_started(recipe, store, tmp_path, left):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / left).write_text("{}")
    claim(tmp_path / "run", recipe, store, False, CPU)
    assert json.loads((tmp_path / "run" / "store.json").read_text())["fingerprint"] == store.fingerprint
