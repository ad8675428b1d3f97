import json
import resource
import shutil
import threading
import time

import pytest
import torch

from superpose.errors import UserError
from superpose.train import checkpoint
from superpose.train.checkpoint import Checkpoints, Parts, Progress
from superpose.train.loop import train
from superpose.train.step import build_state, optimizer_step
from tests.train.test_loop import ALONE, KilledError, changed, killed_after, same_weights


def trained(recipe, store, steps=1):
    """A state that has moments, and the plan's windows behind it."""
    state = build_state(recipe, store, ALONE)
    plan = recipe.windows(store.train)
    for step in range(steps):
        optimizer_step(state, recipe.train, recipe.schedule.stage_at(step), plan.read(store.train.tokens, step), 1e-2)
    return state


def saved(folder, state, steps, **settings):
    """Checkpoints of several steps, all of one state."""
    checkpoints = Checkpoints(folder, ALONE, **settings)
    for step in steps:
        assert checkpoints.save(state.tensors, Progress(step, 2.5 * step)) is None
        assert checkpoints.wait() is None
    return checkpoints


def restored(checkpoints, state, said=None):
    average = state.average.tensors if state.average else None
    tell = said.append if said is not None else pytest.fail
    return checkpoints.restore(Parts(state.model, state.optimizer_of, average), tell)


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def one(recipe, store):
    return trained(recipe, store)


@pytest.mark.error(n=9)
@pytest.mark.parametrize(
    "settings",
    [{}, {"optimizer": "muon"}, {"average": 0.9}, {"optimizer": "muon", "average": 0.5}],
    ids=["adamw", "muon", "average", "both"],
)
def test_every_tensor_comes_back(recipe, store, tmp_path, settings):
    recipe = changed(recipe, "train", **settings)
    before = trained(recipe, store, 2)
    checkpoints = saved(tmp_path, before, [2])
    after = trained(changed(recipe, "train", seed=9), store)
    assert restored(checkpoints, after) == Progress(2, 5.0)
    assert before.tensors.keys() == after.tensors.keys()
    for name, tensor in before.tensors.items():
        assert torch.equal(tensor, after.tensors[name]), name
    fresh = build_state(recipe, store, ALONE)  # without any moment yet
    restored(checkpoints, fresh)
    assert before.tensors.keys() == fresh.tensors.keys()


def test_weights_alone_fill_a_model_and_change_nothing_on_disk(recipe, store, tmp_path):
    before = trained(changed(recipe, "train", average=0.9), store, 2)
    checkpoints = saved(tmp_path, before, [2, 4])
    assert checkpoints.steps == [2, 4]
    (tmp_path / "checkpoints" / ".step-00000006.tmp").mkdir()  # of a run that may be writing it
    here = names(tmp_path)
    for average, kind in ((False, "model"), (True, "average")):
        model = build_state(changed(recipe, "train", seed=9), store, ALONE).model
        checkpoints.weights(model, 2, average)
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, before.tensors[f"{kind}.{name}"]), name
    assert names(tmp_path) == here


def test_weights_that_are_not_there_are_refused(recipe, store, tmp_path, one):
    checkpoints = saved(tmp_path, one, [2])
    with pytest.raises(UserError, match="no checkpoint of step 3; those it holds: 2"):
        checkpoints.weights(one.model, 3)
    with pytest.raises(UserError, match="holds no average"):
        checkpoints.weights(one.model, 2, average=True)
    tied = changed(recipe, "model", config={**recipe.model.config, "tie_word_embeddings": True})
    with pytest.raises(UserError, match=r"another model or optimizer: model\.lm_head\.weight is in one alone"):
        checkpoints.weights(build_state(tied, store, ALONE).model, 2)
    wide = changed(recipe, "model", config={**recipe.model.config, "hidden_size": 32})
    with pytest.raises(UserError, match="cannot be loaded"):
        checkpoints.weights(build_state(wide, store, ALONE).model, 2)


def test_tied_weights_are_stored_once_and_stay_tied(recipe, store, tmp_path):
    tied = changed(recipe, "model", config={**recipe.model.config, "tie_word_embeddings": True})
    before = trained(tied, store)
    assert not any("lm_head" in name for name in before.tensors)
    after = build_state(tied, store, ALONE)
    restored(saved(tmp_path, before, [1]), after)
    assert after.model.get_input_embeddings().weight is after.model.get_output_embeddings().weight
    assert torch.equal(after.model.get_output_embeddings().weight, before.model.get_output_embeddings().weight)


def test_only_safetensors_and_json_are_written(one, tmp_path):
    saved(tmp_path, one, [1])
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".safetensors", ".json"}


def test_what_is_written_is_the_state_at_that_moment(recipe, store, tmp_path, monkeypatch):
    """Training goes on while a checkpoint is written; the step does not wait and the file does not change."""
    state = trained(recipe, store)
    before = {name: tensor.clone() for name, tensor in state.tensors.items()}
    gate = threading.Event()
    checksum = checkpoint.file_sha256

    def slow(file):
        assert gate.wait(30)
        return checksum(file)

    monkeypatch.setattr(checkpoint, "file_sha256", slow)
    checkpoints = Checkpoints(tmp_path, ALONE)
    checkpoints.save(state.tensors, Progress(1))
    for tensor in state.tensors.values():
        tensor.zero_()
    assert not list((tmp_path / "checkpoints").glob("step-*")), "not yet written"
    gate.set()
    assert checkpoints.wait() is None
    restored(checkpoints, state)
    for name, tensor in state.tensors.items():
        assert torch.equal(tensor, before[name])


def torn(path):
    file = next(path.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])


def flipped(path):
    file = next(path.glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def missing(path):
    next(path.glob("*.safetensors")).unlink()


def added(path):
    shutil.copy(next(path.glob("*.safetensors")), path / "shard-00009-model-00001-of-00001.safetensors")


def without_state(path):
    (path / "state.json").unlink()


def with_another_step(path):
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, "step": 77}))


def with_half_a_state(path):
    (path / "state.json").write_text((path / "state.json").read_text()[:30])


def of_another_version(path):
    (path / "state.json").write_text('{"step": 2, "seconds": 1.0}')


def whole(path, change):
    """Altered by somebody who puts the checksums right."""
    file = path / "state.json"
    state = json.loads(file.read_text())
    state.pop("sha256")
    shards = {shard.name: checkpoint.file_sha256(shard) for shard in path.glob("*.safetensors")}
    state = {**state, "files": shards} | change
    file.write_text(json.dumps({**state, "sha256": checkpoint._fingerprint(state)}))


def with_seconds_of_text(path):
    whole(path, {"seconds": "~"})


def with_a_list_of_files(path):
    whole(path, {"files": []})


def with_a_link(path):
    file = next(path.glob("*.safetensors"))
    file.rename(path.parents[1] / "elsewhere.safetensors")
    file.symlink_to(path.parents[1] / "elsewhere.safetensors")
    whole(path, {})


def renamed(path):
    path.rename(path.with_name("step-00000009"))


@pytest.mark.parametrize(
    "damage",
    [
        *(torn, flipped, missing, added, without_state, with_another_step, with_half_a_state, of_another_version),
        *(renamed, with_seconds_of_text, with_a_list_of_files, with_a_link),
    ],
)
def test_a_damaged_checkpoint_is_named_and_passed_over(recipe, store, one, tmp_path, damage):
    checkpoints = saved(tmp_path, one, [1, 2])
    damage(tmp_path / "checkpoints" / "step-00000002")
    said = []
    assert restored(checkpoints, build_state(recipe, store, ALONE), said).step == 1
    assert len(said) == 1
    assert "step-0000000" in said[0]
    assert "passed over" in said[0]


def test_a_run_goes_on_from_the_one_before(recipe, store, tmp_path):
    train(recipe, store, tmp_path / "whole")
    with pytest.raises(KilledError):
        train(recipe, store, tmp_path / "run", listener=killed_after(16))
    flipped(tmp_path / "run" / "checkpoints" / "step-00000015")
    records = []
    train(recipe, store, tmp_path / "run", resume=True, listener=records.append)
    (warning,) = (record for record in records if record["kind"] == "warning")
    assert "step-00000015" in warning["message"]
    assert same_weights(tmp_path / "whole", tmp_path / "run")


def test_if_none_is_good_it_says_so(recipe, store, one, tmp_path):
    checkpoints = saved(tmp_path, one, [1])
    torn(tmp_path / "checkpoints" / "step-00000001")
    with pytest.raises(UserError, match="no good checkpoint"):
        restored(checkpoints, build_state(recipe, store, ALONE), [])


def test_a_checkpoint_of_another_model_is_refused(recipe, store, one, tmp_path):
    checkpoints = saved(tmp_path, one, [1])
    deeper = changed(recipe, "model", config={**recipe.model.config, "num_hidden_layers": 2})
    with pytest.raises(UserError, match="another model or optimizer"):
        restored(checkpoints, build_state(deeper, store, ALONE))
    wider = changed(recipe, "model", config={**recipe.model.config, "intermediate_size": 48})
    with pytest.raises(UserError, match="it is of another model"):
        restored(checkpoints, build_state(wider, store, ALONE))


def test_the_newest_and_the_milestones_are_kept(one, tmp_path):
    saved(tmp_path, one, range(1, 9), keep=3, milestones=[2, 4])
    assert names(tmp_path) == [f"step-{step:08d}" for step in (2, 4, 6, 7, 8)]


def test_what_a_killed_run_left_half_written_is_removed(recipe, store, one, tmp_path):
    checkpoints = saved(tmp_path, one, [1])
    (tmp_path / "checkpoints" / ".step-00000002.tmp").mkdir()
    assert restored(checkpoints, build_state(recipe, store, ALONE)).step == 1
    assert names(tmp_path) == ["step-00000001"]


def test_without_room_the_older_ones_stay_and_training_goes_on(recipe, store, tmp_path):
    """A limit on the size of files stands in for a full disk."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    records = []

    def listener(record):
        records.append(record)
        if record["kind"] == "training" and record["step"] == 11:
            while not (tmp_path / "run" / "checkpoints" / "step-00000009").exists():
                time.sleep(0.01)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
        if record["kind"] == "training" and record["step"] == 18:
            time.sleep(0.5)  # what was to be written before has failed by now
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    try:
        train(recipe, store, tmp_path / "run", listener=listener)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    warnings = [record["message"] for record in records if record["kind"] == "warning"]
    assert [int(warning.split()[4]) for warning in warnings] == [12, 15]
    assert all("File too large" in warning and "step-00000009 is the newest" in warning for warning in warnings)
    assert names(tmp_path / "run") == ["step-00000008", "step-00000018", "step-00000020"]


NOTES = "DCP_SHARDING_INFO"
"""Where PyTorch says which part of a tensor a file holds."""


@pytest.mark.parametrize(
    ("notes", "message"),
    [
        ("{}", "cannot be loaded"),
        ("[]", "cannot be loaded"),
        ("5", "cannot be loaded"),
        ({"saved_offsets": None}, "cannot be loaded"),
        ({"saved_offsets": [0, 0.5]}, "cannot be loaded"),
        ({"saved_offsets": [0]}, "cannot be loaded .*[Ss]ize"),
        ({"saved_offsets": [10**12, 0]}, "a part of .* alone"),
        ({"saved_offsets": [1, 0]}, "a part of .* alone"),
    ],
)
def test_notes_that_were_altered_end_in_a_sentence(recipe, store, one, tmp_path, notes, message):
    """Also where the checksums are right: nothing absurd is allocated, and no part of a tensor is left as it was."""
    checkpoints = saved(tmp_path, one, [1])
    path = tmp_path / "checkpoints" / "step-00000001"
    file = next(path.glob("*.safetensors"))
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    if isinstance(notes, dict):
        known = json.loads(header["__metadata__"][NOTES])
        moment = "optimizer.model.embed_tokens.weight.exp_avg"
        known["model.model.embed_tokens.weight" if notes == {"saved_offsets": [0]} else moment] = notes
        notes = json.dumps(known)
    header["__metadata__"][NOTES] = notes
    changed_header = json.dumps(header).encode()
    file.write_bytes(len(changed_header).to_bytes(8, "little") + changed_header + content[8 + length :])
    whole(path, {})
    with pytest.raises(UserError, match=message):
        restored(checkpoints, build_state(recipe, store, ALONE))


def test_a_moment_of_another_shape_is_refused(recipe, store, one, tmp_path):
    state = {**one.tensors, "optimizer.model.norm.weight.exp_avg": torch.zeros(2000)}
    checkpoints = Checkpoints(tmp_path, ALONE)
    checkpoints.save(state, Progress(1))
    assert checkpoints.wait() is None
    with pytest.raises(UserError, match=r"norm\.weight\.exp_avg is \[2000\], its parameter \[16\]"):
        restored(checkpoints, build_state(recipe, store, ALONE))
