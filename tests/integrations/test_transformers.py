import json
import os
import subprocess
import sys
from functools import wraps
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("accelerate")

from transformers import AutoModelForCausalLM, TrainerCallback, TrainingArguments

from superpose import Schedule
from superpose.data.windows import WindowPlan
from superpose.integrations.transformers import SuperposeTrainer, next_token_collator
from superpose.models.build import build_config, build_model
from superpose.train.loop import train
from superpose.train.optim import build_optimizers, learning_rate
from superpose.train.records import read_metrics
from tests.conftest import make_model

ROOT = Path(__file__).parents[2]
STEPS, LATENTS = 10, 8


def rows(number=200, length=LATENTS, vocab_size=50):
    generator = np.random.default_rng(0)
    return [{"input_ids": generator.integers(vocab_size, size=length).tolist()} for _ in range(number)]


def arguments(out, **settings):
    settings = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **settings,
    }
    return TrainingArguments(output_dir=str(out), **settings)


def trainer_of(out, model=None, schedule=None, dataset=None, callbacks=None, eval_dataset=None, **settings):
    return SuperposeTrainer(
        make_model("llama") if model is None else model,
        arguments(out, **settings),
        train_dataset=rows() if dataset is None else dataset,
        eval_dataset=eval_dataset,
        schedule=Schedule(STEPS, 4, 0.4) if schedule is None else schedule,
        callbacks=callbacks,
    )


def losses(trainer):
    return [r.get("bag_loss", r.get("loss")) for r in trainer.state.log_history if "bag_loss" in r or "loss" in r]


def test_losses_are_those_of_superposes_own_trainer(recipe, store, tmp_path):
    train(recipe, store, tmp_path / "run")
    records = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "training"]
    args = recipe.train
    torch.manual_seed(args.seed)
    model = build_model(build_config(recipe.model, store.vocab_size, args.latents, store.end_of_text))
    (optimizer,) = build_optimizers(args, model)
    ours = learning_rate
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: ours(args, min(step, args.steps - 1), args.steps) / args.lr
    )
    tokens = store.train.tokens.read(0, len(store.train.tokens))
    cut = [{"input_ids": part} for part in np.split(tokens, range(100, len(tokens), 100))]
    trainer = SuperposeTrainer(
        model,
        arguments(
            tmp_path / "hf",
            max_steps=args.steps,
            per_device_train_batch_size=args.batch_size,
            max_grad_norm=args.grad_clip,
            seed=args.seed,
        ),
        train_dataset=cut,
        latents=args.latents,
        schedule=recipe.schedule,
        optimizers=(optimizer, scheduler),
    )
    trainer.train()
    assert losses(trainer) == pytest.approx([r.get("bag_loss", r.get("loss")) for r in records], rel=1e-5)
    logged = [r for r in trainer.state.log_history if "raw_tokens" in r]
    for name in ("raw_tokens", "latents"):
        assert [r[name] for r in logged] == [r[name] for r in records]
    assert trainer.state.total_flos == pytest.approx(records[-1]["latents"] * trainer._flops_per_latent)


@pytest.mark.error(n=4)
@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_gradient_accumulation_changes_nothing(tmp_path, family):
    whole = trainer_of(tmp_path / "a", make_model(family))
    whole.train()
    parts = trainer_of(tmp_path / "b", make_model(family), per_device_train_batch_size=1, gradient_accumulation_steps=4)
    parts.train()
    tolerance = 1e-4 if family == "llama" else 1e-2  # the experts' load is evened within each part
    assert losses(parts) == pytest.approx(losses(whole), rel=tolerance)


@pytest.mark.error(n=2)
def test_the_first_loss_is_that_of_a_guess(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(np.log(50), rel=0.1)


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step
        return control


@pytest.mark.error(n=9)
@pytest.mark.parametrize("step", [2, 4, 7])  # in superposition, at the switch, in recovery
def test_resuming_goes_on_to_the_bit(tmp_path, step):
    through = trainer_of(tmp_path / "through")
    through.train()
    stopped = trainer_of(tmp_path / "stopped", callbacks=[StopAt(step)], save_strategy="steps", save_steps=step)
    stopped.train()
    resumed = trainer_of(tmp_path / "stopped", save_strategy="no")
    resumed.train(resume_from_checkpoint=str(tmp_path / "stopped" / f"checkpoint-{step}"))
    assert losses(resumed) == losses(through)
    for name, tensor in through.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


@pytest.mark.error(n=9)
def test_a_step_reads_what_the_plan_says(tmp_path):
    trainer = trainer_of(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    batches = list(trainer.get_train_dataloader())
    assert len(batches) == 2 * STEPS
    plan = WindowPlan(trainer.schedule, 4, LATENTS, 200 * LATENTS, trainer.args.seed)
    for step in range(STEPS):
        both = torch.cat([batch["input_ids"] for batch in batches[2 * step : 2 * step + 2]])
        assert torch.equal(both, plan.read(trainer.tokens, step))
    assert torch.equal(
        torch.cat([batch["input_ids"].flatten() for batch in trainer_of(
            tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2, dataloader_num_workers=1
        ).get_train_dataloader()]),
        torch.cat([batch["input_ids"].flatten() for batch in batches]),
    )  # fmt: skip


@pytest.mark.error(n=7)
def test_evaluation_is_next_token_in_both_phases(tmp_path):
    held_out = rows(8)[4:]
    trainer = trainer_of(tmp_path, eval_dataset=held_out, eval_strategy="steps", eval_steps=2)
    seen = []

    class Compare(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics, model, **kwargs):
            batch = next_token_collator(held_out)
            with torch.no_grad():
                logits = model(input_ids=batch["input_ids"]).logits
            expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
            seen.append((state.global_step, metrics["eval_loss"], float(expected)))

    trainer.add_callback(Compare())
    trainer.train()
    assert [step for step, *_ in seen] == [2, 4, 6, 8, 10]
    for _, theirs, expected in seen:
        assert theirs == pytest.approx(expected, rel=1e-4)


@pytest.mark.error(n=7)
def test_no_logged_loss_mixes_the_phases(tmp_path):
    trainer = trainer_of(tmp_path, logging_steps=3)
    trainer.train()
    logged = [r for r in trainer.state.log_history if "bag_size" in r]
    assert [(r["step"], r["bag_size"], "bag_loss" in r, "loss" in r) for r in logged] == [
        (3, 4, True, False),
        (4, 4, True, False),  # the switch
        (6, 1, False, True),
        (9, 1, False, True),
    ]


def test_an_ordinary_model_is_left(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.train()
    trainer.save_model()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(trainer.model, type(loaded))
    assert "superpose" not in (tmp_path / "config.json").read_text()
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(loaded(ids).logits, trainer.model.eval()(ids).logits)
    loaded.generate(ids, max_new_tokens=2, do_sample=False, pad_token_id=0)


def test_mixed_precision(tmp_path):
    whole, half = trainer_of(tmp_path / "a"), trainer_of(tmp_path / "b", bf16=True)
    whole.train()
    half.train()
    assert losses(half) == pytest.approx(losses(whole), rel=0.05)
    assert losses(half) != losses(whole)
    assert half.model(torch.tensor([[1, 2]])).logits.shape == (1, 2, 50)


def test_a_forward_pass_that_others_replaced_is_kept(tmp_path):
    """As Liger does with the models it speeds up."""
    model = make_model("llama")
    theirs, calls = model.forward, []

    @wraps(theirs)
    def forward(*args, **kwargs):
        calls.append(kwargs)
        return theirs(*args, **kwargs)

    model.forward = forward
    trainer = trainer_of(tmp_path, model, eval_dataset=rows(4))
    plain = trainer_of(tmp_path)
    trainer.train()
    plain.train()
    assert losses(trainer) == losses(plain)
    assert model.forward is forward
    calls.clear()
    trainer.evaluate()
    assert calls


def test_reports_and_callbacks_are_the_users_own(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen = []

    class Watch(TrainerCallback):
        def on_log(self, args, state, control, logs, **kwargs):
            seen.append(dict(logs))

    os.environ["TENSORBOARD_LOGGING_DIR"] = str(tmp_path / "tb")
    try:
        trainer = trainer_of(tmp_path, callbacks=[Watch()], report_to="tensorboard")
        trainer.train()
    finally:
        del os.environ["TENSORBOARD_LOGGING_DIR"]
    assert "bag_loss" in seen[0]
    events = EventAccumulator(str(next(tmp_path.rglob("events.*")).parent)).Reload()
    assert {"train/bag_loss", "train/loss", "train/raw_tokens"} <= set(events.Tags()["scalars"])


def test_gradient_checkpointing_changes_nothing(tmp_path):
    plain = trainer_of(tmp_path)
    plain.train()
    saving = trainer_of(tmp_path, activation_checkpointing=True)
    saving.train()
    assert losses(saving) == pytest.approx(losses(plain), rel=1e-5)


def test_a_model_that_the_trainer_builds_itself(tmp_path):
    plain = trainer_of(tmp_path)
    plain.train()
    trainer = SuperposeTrainer(
        args=arguments(tmp_path),
        model_init=lambda: make_model("llama"),
        train_dataset=rows(),
        schedule=Schedule(STEPS, 4, 0.4),
    )
    for _ in range(2):  # each time afresh
        trainer.train()
        assert losses(trainer) == losses(plain)


def test_a_dataset_of_the_datasets_library(tmp_path):
    datasets = pytest.importorskip("datasets")
    plain = [{"input_ids": list(range(number, number + 3))} for number in range(9)]
    table = datasets.Dataset.from_list(plain)
    for dataset, expected in ((table, plain), (table.select([4, 2]), [plain[4], plain[2]])):
        tokens = RowTokens(dataset)
        assert tokens.read(0, len(tokens)).tolist() == [token for row in expected for token in row["input_ids"]]
        assert tokens.row_length == 3


@pytest.mark.error(n=5)
def test_rows_of_any_length_are_one_stream_without_padding():
    tokens = RowTokens(
        [
            {"input_ids": [1, 2, 3, 0], "attention_mask": [1, 1, 1, 0]},
            {"input_ids": [0, 0, 0, 0], "attention_mask": [0, 0, 0, 0]},
            {"input_ids": [0, 0, 4, 5], "attention_mask": [0, 0, 1, 1]},
        ]
    )
    assert len(tokens) == 5
    assert tokens.row_length is None
    assert tokens.read(1, 8).tolist() == [2, 3, 4, 5, 1, 2, 3, 4]


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="max_steps is 10, the schedule's total_steps 20"):
        trainer_of(tmp_path, schedule=Schedule(20, 4, 0.4))
    with pytest.raises(ValueError, match="auto_find_batch_size"):
        trainer_of(tmp_path, auto_find_batch_size=True)
    with pytest.raises(ValueError, match="has no length"):
        trainer_of(tmp_path, dataset=iter([])).train()
    with pytest.raises(ValueError, match="holds no tokens"):
        trainer_of(tmp_path, dataset=[{"input_ids": []}]).train()
    with pytest.raises(ValueError, match="give latents"):
        trainer_of(tmp_path, dataset=[{"input_ids": [1]}, {"input_ids": [1, 2]}, {"input_ids": [3]}]).train()


@pytest.mark.error(n=4)
@pytest.mark.error(n=11)
def test_two_processes_train_the_model_of_one(tmp_path, corpus):
    example = str(ROOT / "examples" / "huggingface_trainer.py")
    settings = [str(corpus), "--steps", "12", "--bag-size", "4", "--ratio", "0.5"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--main_process_port", "0"]
    histories = []
    for name, command in (("one", [sys.executable]), ("two", launch)):
        done = subprocess.run(
            [*command, example, *settings, "--out", str(tmp_path / name)], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
        state = json.loads((tmp_path / name / "trainer_state.json").read_text())
        histories.append([r.get("bag_loss", r.get("loss", r.get("eval_loss"))) for r in state["log_history"]][:-1])
    assert len(histories[0]) > 12
    assert histories[1] == pytest.approx(histories[0], rel=1e-3)
