"""Trainer with FSDP2 on two ranks: losses, weights and checkpoints of one process, element by element.

accelerate shards over accelerators alone. So that it shards here, it is told that the two CPU ranks are two; what it
does then (which layers are units, the order of the optimizer, how a checkpoint is gathered) is its own.
"""

import json
import os
from pathlib import Path
from unittest import mock

import pytest
import torch

pytest.importorskip("accelerate")

from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from superpose import Schedule
from tests.conftest import make_model
from tests.integrations.test_transformers import STEPS, losses, masked_rows, rows, same_weights, trainer_of
from tests.ranks import on_ranks

SETTINGS = {
    "optim": "sgd",
    "learning_rate": 0.5,
    "save_strategy": "steps",
    "save_steps": 6,
    "eval_strategy": "steps",
    "eval_steps": 5,
}
"""SGD: a step is as large as its gradient, so what differs by rounding stays so."""
ADAM = {"optim": "adamw_torch", "learning_rate": 1e-2}  # SGD without a state cannot be resumed: PyTorch
CASES = {
    "llama": {},
    "adam": ADAM,
    "gpt2": {},  # ties its embeddings
    "qwen3_moe": {},
    "accumulated": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2},
    "masked": {"dataset": masked_rows(0.5)},
    "smoothed": {"label_smoothing_factor": 0.3},
    # Trainer itself cannot evaluate what accelerate compiles and shards: it loses the names of the model's inputs.
    "compiled": {"torch_compile": True, "torch_compile_backend": "eager", "eval_strategy": "no"},
    "checkpointed": {"fsdp_config": {"activation_checkpointing": True}},
}

NOT_OF_ONE = {
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "torch_compile",
    "torch_compile_backend",
    "fsdp_config",
}


def family(name):
    return name if name in ("gpt2", "qwen3_moe") else "llama"


def sharded(rank, group, out):
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    with (
        mock.patch.object(PartialState, "_prepare_backend", return_value=("gloo", DistributedType.MULTI_GPU)),
        mock.patch.object(PartialState, "set_device", lambda self: setattr(self, "device", torch.device("cpu"))),
    ):
        for name, settings in CASES.items():
            given = {**SETTINGS, "per_device_train_batch_size": 2, **settings}
            trainer = trainer_of(out / name, make_model(family(name)), eval_dataset=rows(8), fsdp=True, **given)
            trainer.train()
            assert isinstance(trainer.model_wrapped, FSDPModule) or name == "compiled"
            assert all(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())
            trainer.save_model(str(out / name / "model"))
            if rank == 0:
                evaluated = [r["eval_loss"] for r in trainer.state.log_history if "eval_loss" in r]
                (out / f"{name}.json").write_text(json.dumps([losses(trainer), evaluated]))
        given = {**SETTINGS, **ADAM, "per_device_train_batch_size": 2, "eval_dataset": rows(8), "fsdp": True}
        checkpoint = str(out / "adam" / "checkpoint-6")
        resumed = trainer_of(out / "adam", **given)
        resumed.train(resume_from_checkpoint=checkpoint)
        resumed.save_model(str(out / "resumed"))
        with pytest.raises(ValueError, match="the run began by"):
            trainer_of(out / "adam", schedule=Schedule(STEPS, 2, 0.4), **given).train(resume_from_checkpoint=checkpoint)
    with pytest.raises(ValueError, match="fsdp would be ignored"):
        trainer_of(out / "ignored", fsdp=True)


@pytest.mark.error(n=4)
@pytest.mark.error(n=11)
def test_sharded_training_is_that_of_one_process(tmp_path):
    on_ranks(2, sharded, Path(tmp_path))
    for name, settings in CASES.items():
        kept = {key: value for key, value in settings.items() if key not in NOT_OF_ONE}
        given = {**SETTINGS, **kept}
        whole = trainer_of(tmp_path / "whole" / name, make_model(family(name)), eval_dataset=rows(8), **given)
        whole.train()
        trained, evaluated = json.loads((tmp_path / f"{name}.json").read_text())
        # The load of experts is evened within each forward pass, of which one process has one and two have two.
        tolerance = {"qwen3_moe": 1e-3, "adam": 1e-4}.get(name, 1e-5)
        assert trained == pytest.approx(losses(whole), rel=tolerance), name
        whole_evaluated = [r["eval_loss"] for r in whole.state.log_history if "eval_loss" in r]
        if name not in ("compiled", "qwen3_moe"):
            assert evaluated == pytest.approx(whole_evaluated, rel=tolerance), name
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / name / "model")
        assert type(loaded) is type(make_model(family(name)))
        same_weights(whole.model, loaded, tolerance)
    through = AutoModelForCausalLM.from_pretrained(tmp_path / "adam" / "model")
    same_weights(through, AutoModelForCausalLM.from_pretrained(tmp_path / "resumed"), 1e-6)
