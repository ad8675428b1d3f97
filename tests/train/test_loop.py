import json
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from superpose.core.model import SuperposedLM
from superpose.core.schedule import Schedule
from superpose.data.config import prepare
from superpose.data.windows import WindowPlan
from superpose.errors import UserError
from superpose.runs.disk import open_run
from superpose.train import loop
from superpose.train.config import Recipe
from superpose.train.distributed import Ranks
from superpose.train.loop import announce, check_device, check_recipe, train
from superpose.train.records import read_metrics


def changed(recipe: Recipe, section: str, **values) -> Recipe:
    settings = recipe.model_dump()
    settings[section].update(values)
    return Recipe.model_validate(settings)


def weights(run):
    return load_file(run / "model" / "model.safetensors")


def same_weights(run, other):
    """Whether two runs ended in the same weights, to the bit."""
    ours, theirs = weights(run), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


ALONE = Ranks(0, 1, torch.device("cpu"))


class KilledError(Exception):
    pass


def killed_after(step):
    def listener(record):
        if record["step"] >= step and record["kind"] == "training":
            raise KilledError

    return listener


def killed_and_resumed(recipe, store, run, step):
    """The directory of a run that was killed at a step and went on."""
    with pytest.raises(KilledError):
        train(recipe, store, run, listener=killed_after(step))
    train(recipe, store, run, resume=True)
    return run


@pytest.fixture(scope="module")
def finished(recipe, store, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    train(recipe, store, run)
    return run


def test_a_run_leaves_what_it_promises(finished, recipe):
    assert Recipe.model_validate(json.loads((finished / "config.json").read_text())) == recipe
    result = json.loads((finished / "result.json").read_text())
    assert result["raw_tokens"] == (8 * 4 + 12) * 4 * 16
    assert result["latents"] == 20 * 4 * 16
    assert result["val_loss"] < math.log(300)
    assert not result["ends_in_superposition"]
    records = read_metrics(finished / "metrics.jsonl")
    assert [record["step"] for record in records if record["kind"] == "validation"] == [0, 8, 10, 20]


@pytest.mark.error(n=7)
def test_bag_losses_and_token_losses_have_different_names(finished):
    for record in read_metrics(finished / "metrics.jsonl"):
        if record["kind"] == "training":
            superposed = record["step"] <= 8
            assert record["phase"] == ("superposition" if superposed else "recovery")
            assert ("bag_loss" in record, "loss" in record) == (superposed, not superposed)


def test_transformers_loads_the_final_model(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(finished / "model")
    tokenizer = AutoTokenizer.from_pretrained(finished / "model")
    ids = tokenizer("the alpha of beta", return_tensors="pt")["input_ids"]
    assert model(ids).logits.shape == (1, ids.shape[1], 300)
    config = (finished / "model" / "config.json").read_text()
    assert "superpos" not in config
    assert "bag" not in config


@pytest.mark.error(n=9)
@pytest.mark.parametrize("step", [1, 5, 8, 9, 16])
def test_a_killed_run_resumes_to_the_same_bits(finished, recipe, store, tmp_path, step):
    """Killed in either phase, at the switch, and before the first checkpoint."""
    run = killed_and_resumed(recipe, store, tmp_path / "killed", step)
    assert same_weights(run, finished)

    def untimed(directory):
        measured = {"seconds", "raw_tokens_per_second", "latents_per_second", "mfu", "memory"}
        records = read_metrics(directory / "metrics.jsonl")
        return [{name: value for name, value in record.items() if name not in measured} for record in records]

    assert untimed(run) == untimed(finished)


@pytest.mark.error(n=9)
def test_dropout_goes_on_as_it_would_have(recipe, store, tmp_path):
    """The random generator's state is part of a checkpoint."""
    settings = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "resid_pdrop": 0.5}
    dropping = changed(recipe, "model", architecture="gpt2", config=settings)
    train(dropping, store, tmp_path / "whole")
    assert same_weights(tmp_path / "whole", killed_and_resumed(dropping, store, tmp_path / "killed", 11))


@pytest.mark.error(n=8)
def test_a_short_run_is_validated_more_often_and_trained_to_the_same_bits(recipe, store, tmp_path):
    steps = {}
    for every in (45, 15):
        train(changed(recipe, "train", steps=45, eval_every=every), store, tmp_path / f"{every}")
        told = read_metrics(tmp_path / f"{every}" / "metrics.jsonl")
        steps[every] = [record["step"] for record in told if record["kind"] == "validation"]
    assert steps == {45: [0, 18, 20, 40, 45], 15: [0, 15, 18, 30, 45]}
    assert same_weights(tmp_path / "45", tmp_path / "15")


def test_the_loop_asks_nothing_but_the_schedule(recipe, store, tmp_path, monkeypatch):
    """Bag sizes seen by the model are those of the schedule, also where stages change more than once."""
    staged = changed(recipe, "superposition", bag_size=[4, 2], ratio=[0.25, 0.25])
    seen = []
    forward = SuperposedLM.forward

    def watched(self, window, bag_size=1, *args, **kwargs):
        if self.training:
            seen.append((bag_size, window.shape[1]))
        return forward(self, window, bag_size, *args, **kwargs)

    monkeypatch.setattr(SuperposedLM, "forward", watched)
    monkeypatch.setattr(SuperposedLM, "check", lambda self: [])
    train(staged, store, tmp_path / "run")
    assert seen == [(4, 68)] * 5 + [(2, 34)] * 5 + [(1, 17)] * 10


@pytest.mark.error(n=4)
def test_accumulation_trains_the_same_model(finished, recipe, store, tmp_path):
    train(changed(recipe, "train", accumulate=4), store, tmp_path / "run")
    for name, tensor in weights(finished).items():
        torch.testing.assert_close(tensor, weights(tmp_path / "run")[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("mode", ["input", "output"])
def test_the_other_modes_train(recipe, store, tmp_path, mode):
    result = train(changed(recipe, "superposition", mode=mode), store, tmp_path / "run")
    assert result["val_loss"] < math.log(300)


def test_bfloat16_trains_close_to_float32(finished, recipe, store, tmp_path):
    result = train(changed(recipe, "train", precision="bfloat16"), store, tmp_path / "run")
    expected = json.loads((finished / "result.json").read_text())["val_loss"]
    assert result["val_loss"] == pytest.approx(expected, abs=0.05)
    assert all(tensor.dtype == torch.float32 for tensor in weights(tmp_path / "run").values())


@pytest.mark.error(n=7)
def test_a_model_that_ends_in_superposition_is_not_shipped(recipe, store, tmp_path):
    result = train(changed(recipe, "superposition", ratio=1.0), store, tmp_path / "run")
    assert result["ends_in_superposition"]
    assert not (tmp_path / "run" / "model").exists()


def test_a_run_is_never_overwritten_or_mixed_up(finished, recipe, store, tmp_path):
    with pytest.raises(UserError, match="--resume"):
        train(recipe, store, finished)
    with pytest.raises(UserError, match=r"another train\.lr"):
        train(changed(recipe, "train", lr=1.0), store, finished, resume=True)
    (tmp_path / "file").write_text("mine")
    for resume in (False, True):
        with pytest.raises(UserError, match="not empty"):
            train(recipe, store, tmp_path, resume)


@pytest.mark.error(n=9)
def test_one_call_starts_starts_again_and_goes_on(finished, recipe, store, tmp_path):
    """With nothing there, with a start that died before its first checkpoint, with one, and with a finished run."""
    told = []

    def listener(last):
        def listen(record):
            if record["kind"] == "start":
                told.append((record["step"], record["message"].removeprefix(str(tmp_path / "run "))))
            killed_after(last)(record)

        return listen

    for last in (1, 5, 20):
        with pytest.raises(KilledError):
            train(recipe, store, tmp_path / "run", resume=True, listener=listener(last))
    result = train(recipe, store, tmp_path / "run", resume=True, listener=listener(21))
    assert train(recipe, store, tmp_path / "run", resume=True, listener=listener(21)) == result
    assert told == [
        (0, "starts at step 0"),
        (0, "was started before and has no checkpoint yet, so it starts at step 0 again"),
        (3, "goes on from step 3 of 20"),
        (18, "goes on from step 18 of 20"),
        (20, "is finished; nothing is left to train"),
    ]
    assert same_weights(finished, tmp_path / "run")
    kinds = {record["kind"] for record in read_metrics(tmp_path / "run" / "metrics.jsonl")}
    assert kinds == {"training", "validation"}


def test_a_run_is_trained_by_one_process_at_a_time(recipe, store, tmp_path):
    """Called from Python as well: a second call is refused, and `superpose runs` says that the run is running."""
    refused, states = [], []

    def again(record):
        if not refused:
            with ThreadPoolExecutor(1) as another, pytest.raises(UserError, match="being trained by another") as error:
                another.submit(train, recipe, store, tmp_path / "run", resume=True).result()
            refused.append(error)
            states.append(open_run(tmp_path / "run").state)

    train(changed(recipe, "train", steps=4, warmup_steps=1), store, tmp_path / "run", listener=again)
    assert refused
    assert [*states, open_run(tmp_path / "run").state] == ["running", "finished"]
    assert not (tmp_path / ".run.lock").exists()


def test_resuming_a_finished_run_returns_its_result(finished, recipe, store):
    assert train(recipe, store, finished, resume=True) == json.loads((finished / "result.json").read_text())


def test_only_the_newest_checkpoints_are_kept(finished):
    assert [path.name for path in sorted((finished / "checkpoints").iterdir())] == [
        "step-00000008",
        "step-00000018",
        "step-00000020",
    ]


def test_a_run_that_fails_reads_no_further(recipe, store, tmp_path):
    def readers():
        return [thread for thread in threading.enumerate() if thread.name == "superpose-loader"]

    with pytest.raises(KilledError) as held:  # its traceback keeps the iterator of the loop alive
        train(recipe, store, tmp_path / "run", listener=killed_after(2))
    assert readers() == []
    assert held.value.__traceback__ is not None


def test_a_runaway_loss_stops_with_advice(recipe, store, tmp_path):
    with pytest.raises(UserError, match=r"lower train\.lr"):
        train(changed(recipe, "train", lr=1e30, grad_clip=0), store, tmp_path / "run")


@pytest.mark.error(n=2)
def test_a_first_loss_far_from_log_vocabulary_is_said_aloud(recipe, store, tmp_path):
    records = []
    loud = changed(recipe, "model", config={**recipe.model.config, "initializer_range": 1.0})
    train(loud, store, tmp_path / "run", listener=records.append)
    assert any(record["kind"] == "warning" and "log(vocabulary)" in record["message"] for record in records)


@pytest.mark.error(n=12)
def test_more_than_one_epoch_is_said_aloud(recipe, store):
    assert "read again" not in announce(recipe, store)
    assert "read again" in announce(changed(recipe, "train", steps=20_000), store)


@pytest.mark.error(n=10)
def test_reading_a_bags_window_takes_a_small_part_of_a_step(store):
    """Counted, not timed: a step copies each of its rows in one piece, whatever the bag size."""
    plan = WindowPlan(Schedule(10, 16, 0.5), 4, 16, len(store.train.tokens), 1)

    class Counted:
        reads = 0

        def read(self, start, length):
            Counted.reads += 1
            return store.train.tokens.read(start, length)

    plan.read(Counted(), 0)
    assert Counted.reads == 4


def test_models_are_checked_before_any_work(recipe):
    with pytest.raises(UserError, match="did you mean"):
        check_recipe(changed(recipe, "model", architecture="llamma"))
    with pytest.raises(UserError, match=r"train\.device"):
        check_device("nonsense")


@pytest.mark.error(n=9)
@pytest.mark.error(n=12)
def test_aligned_documents_more_rows_and_attention_inside_documents(recipe, tmp_path):
    """All of it together: trains, counts tokens that are there and FLOPs that are done, resumes to the same bits."""
    lines = [json.dumps({"text": f"the {number} of {number % 7}"}) for number in range(3000)]
    (tmp_path / "short.jsonl").write_text("\n".join(lines))
    recipe = changed(recipe, "data", corpus=str(tmp_path / "short.jsonl"))
    store = prepare(recipe.data)
    settings = changed(
        changed(recipe, "superposition", documents="aligned", expand="batch", bag_size=8, variant="mce_alt"),
        "train",
        attention="document",
        checkpoint_every=4,
    )
    assert "% of the places in bags hold nothing" in announce(settings, store)
    whole = loop.train(settings, store, tmp_path / "whole")
    plain = loop.train(recipe, store, tmp_path / "plain")
    assert whole["latents"] == plain["latents"]
    assert whole["flops"] < plain["flops"]
    assert whole["raw_tokens"] < settings.schedule.raw_tokens(settings.latents_per_step)

    def stop(record):
        if record["kind"] == "training" and record["step"] == 6:
            raise KilledError

    with pytest.raises(KilledError):
        loop.train(settings, store, tmp_path / "stopped", listener=stop)
    loop.train(settings, store, tmp_path / "stopped", resume=True)
    ended = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert ended[0] == ended[1]


def test_rows_that_cannot_be_cut_are_refused(recipe):
    with pytest.raises(ValidationError, match=r"train\.latents \(16\) is not a multiple"):
        type(recipe).model_validate(changed(recipe, "superposition", expand="batch", bag_size=3).model_dump())
