import dataclasses
import inspect
import json
import os
import re
import subprocess
import sys
from functools import wraps
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

pytest.importorskip("accelerate")

from torch.utils.data import IterableDataset
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import LabelSmoother

from superpose import Schedule, StageArgs, SuperposedLM, fold, split_window
from superpose.data.stream import PlannedWindows, WindowStream
from superpose.data.windows import WindowPlan
from superpose.errors import UserError
from superpose.integrations import transformers as integration
from superpose.integrations.transformers import SuperposeTrainer, next_token_collator
from superpose.models.build import build_config, build_model
from superpose.train.loop import train
from superpose.train.optim import build_optimizers, learning_rate
from superpose.train.recipe_file import with_settings
from superpose.train.records import read_metrics
from tests.conftest import make_model

ROOT = Path(__file__).parents[2]
STEPS, LATENTS = 10, 8
CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in {field.name for field in dataclasses.fields(TrainingArguments)}
)
"""What this version of transformers calls it."""


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


def trainer_of(
    out,
    model=None,
    schedule=None,
    dataset=None,
    callbacks=None,
    eval_dataset=None,
    latents=None,
    variant="mce",
    **settings,
):
    return SuperposeTrainer(
        make_model("llama") if model is None else model,
        arguments(out, **settings),
        train_dataset=rows() if dataset is None else dataset,
        eval_dataset=eval_dataset,
        schedule=Schedule(STEPS, 4, 0.4) if schedule is None else schedule,
        callbacks=callbacks,
        latents=latents,
        variant=variant,
    )


def losses(trainer):
    return [r.get("bag_loss", r.get("loss")) for r in trainer.state.log_history if "bag_loss" in r or "loss" in r]


@pytest.mark.parametrize("lr_factor", [1.0, 0.25])
def test_losses_are_those_of_superposes_own_trainer(lr_factor, recipe, store, tmp_path):
    if lr_factor != 1:
        stage = {"ratio": 0.4, "bag_size": 4, "lr_factor": lr_factor, "lr_blend_steps": 3}
        recipe = with_settings(recipe, "superposition", bag_size=4, ratio=0.3, stages=[stage])
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
    assert [r["learning_rate"] for r in logged] == pytest.approx([r["lr"] for r in records])
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


class Streamed(IterableDataset):
    """Rows of any length with a state, as datasets streams them."""

    def __init__(self):
        self.rows = [{"input_ids": row} for row in np.split(np.concatenate([r["input_ids"] for r in rows(400)]), CUTS)]
        self.start = 0

    def __iter__(self):
        start, self.start = self.start, 0
        for number, row in enumerate(self.rows[start:], start):
            self.read = number + 1
            yield row

    def state_dict(self):
        return {"at": self.read}

    def load_state_dict(self, state):
        self.start = state["at"]


CUTS = np.cumsum(np.random.default_rng(2).integers(1, 30, 180))
STREAMED = {
    "stream": lambda store: Streamed(),
    "generator": lambda store: (row["input_ids"] for row in rows(400)),
    "store": lambda store: store,
}


@pytest.mark.error(n=9)
@pytest.mark.parametrize("kind", STREAMED)
def test_streams_and_stores_are_gone_on_with_to_the_bit(tmp_path, store, kind):
    def build(**settings):
        model = make_model("llama", vocab_size=store.vocab_size)
        settings |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
        return trainer_of(tmp_path, model, dataset=STREAMED[kind](store), latents=LATENTS, **settings)

    through = build(save_strategy="steps", save_steps=1)
    through.train()
    for step in (2, 4, 7):  # in superposition, at the switch, in recovery
        resumed = build(restore_callback_states_from_checkpoint=step == 4)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert losses(resumed) == losses(through)
        for name, tensor in through.model.state_dict().items():
            assert torch.equal(tensor, resumed.model.state_dict()[name]), name


@pytest.mark.error(n=9)
def test_a_stream_is_read_in_its_order_and_by_its_own_state(tmp_path):
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "latents": LATENTS}
    trainer = trainer_of(tmp_path, dataset=Streamed(), **settings, save_strategy="steps", save_steps=7)
    expected = WindowStream(Streamed(), trainer.schedule, 4, LATENTS, accumulate=2)
    for batch, other in zip(trainer.get_train_dataloader(), expected, strict=True):
        assert torch.equal(batch["input_ids"], other["input_ids"])
    trainer.train()  # reads it from its start again
    assert losses(trainer)[0] == pytest.approx(np.log(50), rel=0.1)
    logged = [r for r in trainer.state.log_history if "raw_tokens" in r]
    assert [r["raw_tokens"] for r in logged] == [expected.raw_tokens(step + 1) for step in range(STEPS)]
    checkpoint = tmp_path / "checkpoint-7"
    source = Streamed()
    resumed = trainer_of(tmp_path, dataset=source, **settings)
    source.rows[:30] = [None] * 30  # never asked for again
    resumed.train(resume_from_checkpoint=str(checkpoint))
    state = checkpoint / "trainer_state.json"
    stored = json.loads(state.read_text())
    assert stored["stateful_callbacks"]["SwitchCallback"].pop("stream")["step"] == 7
    state.write_text(json.dumps(stored))
    with mock.patch.object(integration.logger, "warning") as warned:
        again = trainer_of(tmp_path, dataset=Streamed(), **settings)
        again.train(resume_from_checkpoint=str(checkpoint))
    assert "does not say where the stream stood" in warned.call_args.args[0]
    assert losses(again) == losses(resumed)


def test_a_stream_of_one_token_a_row_trains_as_its_rows_do_and_what_it_lacks_is_said(tmp_path):
    singly = [[token] for row in rows(400) for token in row["input_ids"]]
    one = trainer_of(tmp_path / "one", dataset=iter(singly), latents=LATENTS)
    other = trainer_of(tmp_path / "other", dataset=iter(rows(400)), latents=LATENTS)
    one.train()
    other.train()
    assert losses(one) == losses(other)
    with pytest.raises(UserError, match="the stream ended at step 0 of 10, after 3 rows"):
        trainer_of(tmp_path, dataset=iter(rows(3)), latents=LATENTS).train()
    with pytest.raises(ValueError, match="train_dataset's column weight would weigh nothing"):
        trainer_of(tmp_path, dataset=iter([{"input_ids": [1], "weight": 1}]), latents=LATENTS).train()
    with pytest.raises(ValueError, match="row 1 of train_dataset holds the token id 50"):
        trainer_of(tmp_path, dataset=iter([[1], [50]]), latents=LATENTS).train()


def test_a_store_is_read_as_superpose_train_reads_it(tmp_path, store):
    model = make_model("llama", vocab_size=store.vocab_size)
    trainer = trainer_of(tmp_path, model, dataset=store, latents=LATENTS, seed=5)
    plan = WindowPlan(trainer.schedule, 4, LATENTS, len(store.train.tokens), 5)
    for step, batch in enumerate(trainer.get_train_dataloader()):
        assert torch.equal(batch["input_ids"], plan.read(store.train.tokens, step))
    with pytest.raises(ValueError, match=r"has a vocabulary of .*, the model embeds 50 tokens; build the model for"):
        trainer_of(tmp_path, dataset=store, latents=LATENTS)


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


def same_weights(one, other, tolerance):
    """Every weight, element by element."""
    others = other.state_dict()
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(others[name], tensor, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradient_checkpointing_changes_nothing(tmp_path, accumulate, monkeypatch):
    settings = {"gradient_accumulation_steps": accumulate, "per_device_train_batch_size": 4 // accumulate}
    plain = trainer_of(tmp_path, **settings)
    plain.train()
    runs = []
    attention = type(plain.model.model.layers[0].self_attn)
    own = attention.forward
    monkeypatch.setattr(attention, "forward", lambda self, *args, **named: runs.append(1) or own(self, *args, **named))
    saving = trainer_of(tmp_path, **settings, **{CHECKPOINTING: True})
    runs.clear()
    saving.train()
    assert len(runs) == 2 * 2 * STEPS * accumulate  # two layers, and each again in the backward pass
    assert losses(saving) == pytest.approx(losses(plain), rel=1e-6)
    same_weights(plain.model, saving.model, 1e-5)


@pytest.mark.parametrize(
    ("family", "backend"), [("llama", "eager"), ("gpt2", "eager"), ("qwen3_moe", "eager"), ("llama", "aot_eager")]
)
def test_torch_compile_changes_nothing(tmp_path, family, backend):
    plain = trainer_of(tmp_path, make_model(family))
    plain.train()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = trainer_of(tmp_path, make_model(family), torch_compile=True, torch_compile_backend=backend)
    compiled.train()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-6)
    same_weights(plain.model, compiled.model, 1e-5)
    compiled.save_model()
    same_weights(AutoModelForCausalLM.from_pretrained(tmp_path), plain.model, 1e-5)


def test_the_users_model_is_what_is_trained_and_is_left_as_it_is(tmp_path):
    """Another object on its layers: the same parameters under the same names, and nothing put into it."""
    model = make_model("llama")
    kind, own, before = type(model), set(vars(model)), type(model).forward
    trainer = trainer_of(tmp_path, model)
    trainer.train()
    assert type(model) is kind
    assert kind.forward is before
    assert set(vars(model)) == own
    assert isinstance(trainer.model, kind)
    assert repr(trainer.model) == repr(model)
    pairs = zip(model.named_parameters(), trainer.model.named_parameters(), strict=True)
    assert all(name == other_name and one is other for (name, one), (other_name, other) in pairs)
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(model.eval()(ids).logits, trainer.model.eval()(ids).logits)
    assert inspect.signature(trainer.model.forward) == inspect.signature(model.forward)


def test_no_private_method_of_trainer_is_overridden():
    private = {name for name in vars(Trainer) if name.startswith("_") and not name.startswith("__")}
    assert not private & set(vars(SuperposeTrainer))


@pytest.mark.error(n=5)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_label_of_minus_100_leaves_its_bag(tmp_path, family):
    """The first loss is that of its windows with those targets taken out by hand, and the tokens are read."""
    labelled = masked_rows(0.4)
    masked, plain = trainer_of(tmp_path, make_model(family), dataset=labelled), trainer_of(tmp_path, make_model(family))
    lm = SuperposedLM(make_model(family))
    item = next(iter(masked.get_train_dataloader()))
    bags, asked = fold(item["input_ids"], 4), fold(item["target_mask"], 4)[:, 1:]
    hidden, *_ = lm.parts().hidden_states(bags[:, :-1])
    minus_log = -lm.parts().head(hidden).double().log_softmax(-1).gather(-1, bags[:, 1:])
    filled = asked.any(-1)
    expected = ((minus_log * asked).sum(-1)[filled] / asked.sum(-1)[filled]).mean().detach()
    masked.train()
    plain.train()
    assert losses(masked)[0] == pytest.approx(float(expected), rel=1e-6)
    assert losses(masked) != losses(plain)
    with pytest.raises(ValueError, match="the labels of row 0 of train_dataset are others than its input_ids"):
        trainer_of(tmp_path, dataset=[{"input_ids": [1] * 200, "labels": [2] * 200}], latents=LATENTS).train()


def masked_rows(share):
    generator = np.random.default_rng(1)
    return [
        {**row, "labels": [-100 if generator.random() < share else token for token in row["input_ids"]]}
        for row in rows()
    ]


@pytest.mark.error(n=4)
def test_masked_labels_count_the_same_under_accumulation(tmp_path):
    whole = trainer_of(tmp_path / "a", dataset=masked_rows(0.8))
    parts = trainer_of(
        tmp_path / "b", dataset=masked_rows(0.8), per_device_train_batch_size=1, gradient_accumulation_steps=4
    )
    whole.train()
    parts.train()
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-5)
    same_weights(whole.model, parts.model, 1e-4)


@pytest.mark.parametrize("bag_size", [1, 4])
def test_label_smoothing_is_that_of_transformers(tmp_path, bag_size):
    """Of single tokens `LabelSmoother` itself; of bags the mean of what it gives for each token of the bag."""
    schedule = Schedule(STEPS, bag_size, 0.4)
    smoothed = trainer_of(tmp_path, make_model("llama"), schedule, label_smoothing_factor=0.3, eval_dataset=rows(4))
    inputs, targets = split_window(next(iter(smoothed.get_train_dataloader()))["input_ids"], bag_size)
    parts = SuperposedLM(make_model("llama")).parts()
    logits = parts.head(parts.hidden_states(inputs)[0])
    slots = targets.reshape(*inputs.shape[:2], bag_size)
    expected = [LabelSmoother(0.3)({"logits": logits}, slots[..., slot].clone()) for slot in range(bag_size)]
    smoothed.train()
    assert losses(smoothed)[0] == pytest.approx(float(torch.stack(expected).mean().detach()), rel=1e-6)
    batch = next_token_collator(rows(4))
    with torch.no_grad():
        logits = smoothed.model.eval()(input_ids=batch["input_ids"]).logits
    evaluated = LabelSmoother(0.3)({"logits": logits}, batch["labels"], shift_labels=True)
    assert smoothed.evaluate()["eval_loss"] == pytest.approx(float(evaluated), rel=1e-5)
    with pytest.raises(ValueError, match="variant 'mce_alt' is not smoothed"):
        trainer_of(tmp_path, label_smoothing_factor=0.3, variant="mce_alt")


def test_input_tokens_are_counted(tmp_path):
    settings = {
        "include_num_input_tokens_seen": "all",
        "save_strategy": "steps",
        "save_steps": 7,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
    }
    trainer = trainer_of(tmp_path, **settings)
    trainer.train()
    logged = [r for r in trainer.state.log_history if "raw_tokens" in r]
    assert [r["num_input_tokens_seen"] for r in logged] == [r["raw_tokens"] for r in logged]
    assert trainer.state.num_input_tokens_seen == 4 * LATENTS * (4 * 4 + 6)
    resumed = trainer_of(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))
    assert resumed.state.num_input_tokens_seen == trainer.state.num_input_tokens_seen


@pytest.mark.error(n=8)
@pytest.mark.parametrize("restore", [False, True])
def test_another_schedule_at_resume_is_refused(tmp_path, restore):
    saved = {"save_strategy": "steps", "save_steps": 6, "restore_callback_states_from_checkpoint": restore}
    trainer_of(tmp_path, **saved).train()
    checkpoint = str(tmp_path / "checkpoint-6")
    both = re.escape(f"the run began by {Schedule(STEPS, 4, 0.4)}, with switches at steps [4], and would go on by ")
    for other in (Schedule(20, 4, 0.4), Schedule(STEPS, 2, 0.4), Schedule(STEPS, 4, 0.5), Schedule(STEPS)):
        trainer = trainer_of(tmp_path, schedule=other, **{**saved, "max_steps": other.total_steps})
        with pytest.raises(ValueError, match=both + re.escape(str(other))):
            trainer.train(resume_from_checkpoint=checkpoint)
        assert trainer.state.global_step == 6
    trainer = trainer_of(tmp_path, schedule=Schedule(STEPS, 4, 0.4).lengthened(12), **{**saved, "max_steps": 12})
    trainer.train(resume_from_checkpoint=checkpoint)
    assert [r["bag_size"] for r in trainer.state.log_history if "bag_size" in r] == [4] * 4 + [1] * 8


def test_a_checkpoint_without_a_schedule_goes_on_with_a_warning(tmp_path):
    """As Trainer itself writes them, and superpose did."""
    trainer_of(tmp_path, save_strategy="steps", save_steps=6).train()
    state = tmp_path / "checkpoint-6" / "trainer_state.json"
    stored = json.loads(state.read_text())
    assert stored["stateful_callbacks"].pop("SwitchCallback")["args"]["schedule"]["bag_size"] == 4
    state.write_text(json.dumps(stored))
    with mock.patch.object(integration.logger, "warning") as warned:
        trainer_of(tmp_path, save_strategy="steps", save_steps=6).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-6")
        )
    assert "the checkpoint holds no schedule to compare with" in warned.call_args.args[0]
    again = json.loads((tmp_path / "checkpoint-10" / "trainer_state.json").read_text())
    assert again["stateful_callbacks"]["SwitchCallback"]["args"]["schedule"]["total_steps"] == STEPS


def test_weights_that_nothing_trains_are_named_once(tmp_path):
    model = make_model("llama")
    model.register_parameter("spare", torch.nn.Parameter(torch.zeros(2)))
    with mock.patch.object(integration.logger, "warning") as warned:
        trainer_of(tmp_path, model).train()
    assert [call.args[1] for call in warned.call_args_list] == ["spare"]


def test_a_model_that_is_not_trained_as_it_is_is_refused_when_the_trainer_is_built(tmp_path):
    model = make_model("llama")
    theirs = model.forward

    @wraps(theirs)
    def forward(*args, **kwargs):
        output = theirs(*args, **kwargs)
        output.logits = 3 * output.logits
        return output

    model.forward = forward
    with pytest.raises(ValueError, match="multiplies its logits by 3"):
        trainer_of(tmp_path, model)


def test_routers_that_are_balanced_by_a_bias_are_balanced(tmp_path):
    """Once a step, of all its forward passes."""

    def trained(name, **settings):
        torch.manual_seed(0)
        attention = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
        experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
        sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "moe_intermediate_size": 16}
        heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "first_k_dense_replace": 1}
        config = AutoConfig.for_model("deepseek_v3", **attention, **experts, **sizes, **heads)
        trainer = trainer_of(tmp_path / name, AutoModelForCausalLM.from_config(config), **settings)
        bias = trainer.model.model.layers[1].mlp.gate.e_score_correction_bias
        assert not bias.any()
        trainer.train()
        return bias

    whole = trained("a")
    assert whole.any()
    assert torch.equal(whole, trained("b", per_device_train_batch_size=1, gradient_accumulation_steps=4))


def test_a_second_training_reads_by_the_arguments_of_then(tmp_path):
    """As a search over them changes them."""
    trainer = trainer_of(tmp_path)
    trainer.args.per_device_train_batch_size = 2
    assert len(next(iter(trainer.get_train_dataloader()))["input_ids"]) == 2
    trainer.args.max_steps = 5
    with pytest.raises(ValueError, match="max_steps is 5"):
        trainer.train()


def test_what_does_not_fit_is_refused_when_the_trainer_is_built(tmp_path):
    with pytest.raises(ValueError, match="holds no tokens"):
        trainer_of(tmp_path, dataset=[{"input_ids": []}])
    with pytest.raises(ValueError, match="give latents"):
        trainer_of(tmp_path, dataset=[{"input_ids": [1]}, {"input_ids": [1, 2]}, {"input_ids": [3]}])
    with pytest.raises(ValueError, match="LlamaForCausalLM is compiled"):
        trainer_of(tmp_path, torch.compile(make_model("llama"), backend="eager"))
    with pytest.raises(ValueError, match="row 3 of train_dataset holds the token id 50"):
        trainer_of(tmp_path, dataset=[*rows(3), {"input_ids": [50] * 500}], latents=LATENTS).train()
    trainer = SuperposeTrainer(make_model("llama"), arguments(tmp_path), schedule=Schedule(STEPS, 4, 0.4))
    with pytest.raises(ValueError, match="has no train_dataset; give one to train"):
        trainer.train()
    headed = Schedule(STEPS, stages=[StageArgs(0.4, bag_size=4, extra_heads=1)])
    with pytest.raises(ValueError, match="stage 1 of the schedule has extra_heads, which SuperposeTrainer does not"):
        SuperposeTrainer(make_model("llama"), arguments(tmp_path), schedule=headed)


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


MIXED = Schedule(
    STEPS,
    stages=[
        StageArgs(0.4, bag_size={4: 1, 2: 1}, ordinary_rows=0.25, pooling="sqrt", weighting="power"),
        StageArgs(0.3, bag_size=2, mode="output", weighting=[1, 0.5], weighting_end=[1, 0]),
    ],
    seed=1,
)


@pytest.mark.parametrize("streamed", [False, True])
def test_stages_are_trained_as_a_loop_of_ones_own_does(tmp_path, streamed):
    """Drawn sizes, ordinary rows, pooling and weights that change; however many forward passes a step has."""
    logs = []

    class Log(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_):
            heard.append(dict(logs))

    trained = []
    for accumulate in (1, 2):
        heard = []
        trainer = trainer_of(
            tmp_path / str(accumulate),
            schedule=MIXED,
            dataset=Streamed() if streamed else None,
            latents=LATENTS,
            callbacks=[Log()],
            per_device_train_batch_size=4 // accumulate,
            gradient_accumulation_steps=accumulate,
            max_grad_norm=0.0,
            optim="sgd",
        )
        trainer.train()
        trained.append(dict(trainer.model.named_parameters()))
        logs = [entry for entry in heard if "bag_size" in entry]
    assert [entry["bag_size"] for entry in logs] == [MIXED.bag_size_at(step) for step in range(STEPS)]
    assert ["bag_loss" in entry for entry in logs] == [MIXED.bag_size_at(step) > 1 for step in range(STEPS)]
    assert logs[-1]["raw_tokens"] == MIXED.raw_tokens(4 * LATENTS)
    model = make_model("llama").train()
    lm, optimizer = SuperposedLM(model), torch.optim.SGD(model.parameters(), 1e-2)
    batches = WindowStream(Streamed(), MIXED, 4, LATENTS)
    if not streamed:
        batches = PlannedWindows(trainer.plan, trainer.tokens)
    for number, batch in enumerate(batches):
        step = MIXED.step_at(number)
        lm(batch["input_ids"], step.bag_size, step.mode, weighting=step.weighting, pooling=step.pooling).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in model.named_parameters():
        for others in trained:
            torch.testing.assert_close(others[name], parameter, rtol=1e-4, atol=1e-6)


def test_a_loss_over_several_bag_sizes_has_a_name_of_its_own(tmp_path):
    trainer = trainer_of(tmp_path, schedule=MIXED, logging_steps=4)
    trainer.train()
    named = [{"mixed_loss", "bag_loss", "loss"} & set(entry) for entry in trainer.state.log_history]
    assert named[:3] == [{"mixed_loss"}, {"bag_loss"}, {"loss"}]


def test_a_weighting_beside_those_of_stages_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has its own weighting"):
        SuperposeTrainer(
            make_model("llama"), arguments(tmp_path), train_dataset=rows(), schedule=MIXED, weighting="power"
        )
    with pytest.raises(ValueError, match="no loss for ordinary_rows"):
        trainer_of(tmp_path, schedule=MIXED, variant="mce_alt")
