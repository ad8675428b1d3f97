import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from superpose.data.store import TokenStore
from superpose.errors import ReportedError, UserError
from superpose.train.checkpoint import Checkpoints
from superpose.train.distributed import Ranks, joined_ranks
from superpose.train.loop import train
from superpose.train.records import read_metrics
from superpose.train.running import StoppedError
from superpose.train.step import accumulate_gradients, build_state, validate
from tests.conftest import MODELS
from tests.ranks import on_ranks, torchrun_environment
from tests.train.test_loop import ALONE, changed, same_weights, weights

GPT2 = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
MOE = {"hidden_size": 16, "num_hidden_layers": 2, "tie_word_embeddings": False, **MODELS["qwen3_moe"]}
BIASED = {
    **{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"num_key_value_heads": 2, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4},
    **{"v_head_dim": 8, "moe_intermediate_size": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1},
    **{"topk_group": 1, "first_k_dense_replace": 1},
}
STAGES = [{"ratio": 0.3, "bag_size": 4, "extra_heads": 2}, {"ratio": 0.4, "bag_size": 2, "extra_heads": 1}]
SUPERPOSITION = {"bag_size": 4, "ratio": 0.3, "stages": STAGES}
"""Switches at steps 6 and 14 of 20: one between heads, one that drops them."""
VARIANTS = {
    "fsdp": {"train": {"grad_clip": 0.05}},
    "ddp": {"train": {"accumulate": 2}, "parallel": {"strategy": "ddp"}},
    "sharded": {"train": {"accumulate": 2, "grad_clip": 0.05}, "parallel": {"shard_gradients": True}},
    "hybrid": {
        "train": {"accumulate": 2, "checkpoint_activations": True},
        "parallel": {"replicas": 2, "shard_gradients": True},
    },
    "experts": {"model": {"architecture": "qwen3_moe", "config": MOE}},
    "experts-ddp": {"model": {"architecture": "qwen3_moe", "config": MOE}, "parallel": {"strategy": "ddp"}},
    "biased": {"model": {"architecture": "deepseek_v3", "config": BIASED}},
    "tied": {
        "model": {"architecture": "gpt2", "config": {**GPT2, **MODELS["gpt2"]}},
        "superposition": {"expand": "batch", "documents": "aligned"},
        "train": {"attention": "document", "accumulate": 2},
    },
    "muon": {"train": {"optimizer": "muon", "average": 0.5}},
    "mixed": {
        "superposition": {
            "stages": [{"ratio": 0.4, "bag_size": {"4": 1, "2": 1}, "ordinary_rows": 0.25}],
            "ratio": 0.3,
        },
        "train": {"accumulate": 2},
        "parallel": {"strategy": "ddp"},
    },
    "heads": {"superposition": SUPERPOSITION, "train": {"accumulate": 2}, "parallel": {"shard_gradients": True}},
    "heads-ddp": {"superposition": SUPERPOSITION, "parallel": {"strategy": "ddp"}},
}
STRATEGIES = ("fsdp", "ddp")
RESUMED = ("ddp", "experts", "biased", "muon", "heads")


def varied(recipe, name):
    recipe = changed(recipe, "train", eval_every=20, checkpoint_every=20)
    for section, values in VARIANTS[name].items():
        recipe = changed(recipe, section, **values)
    return recipe


def stop_at(step):
    def listener(record):
        if record["kind"] == "training" and record["step"] == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    return listener


def work_of_two(rank, group, recipe, path, folder):
    """All that two ranks do in these tests: starting them takes longer than their work."""
    store = TokenStore.open(path)
    for name in VARIANTS:
        train(varied(recipe, name), store, folder / name)
    for name in RESUMED:
        # Rank 0 alone hears the signal, both have to stop.
        with pytest.raises(StoppedError, match="after step 5"):
            train(varied(recipe, name), store, folder / f"{name}-resumed", listener=stop_at(5))
        if rank == 0:
            shutil.copytree(folder / f"{name}-resumed", folder / f"{name}-to-one")
        train(varied(recipe, name), store, folder / f"{name}-resumed", resume=True)
        # How the ranks share the work is no matter of the run's.
        other = changed(varied(recipe, name), "parallel", strategy="fsdp", replicas=2)
        train(other, store, folder / f"{name}-from-one", resume=True)
    # Rank 0 finds a mistake and tells it; the other ends without a word, and does not wait.
    with pytest.raises(UserError if rank == 0 else ReportedError, match="holds a run already"):
        train(recipe, store, folder / "fsdp")
    odd = changed(recipe, "train", batch_size=3)
    with pytest.raises(UserError, match="cannot be shared out evenly"):
        train(odd, store, folder / "odd")
    three = changed(recipe, "parallel", replicas=3)
    with pytest.raises(UserError, match=r"parallel\.replicas = 3"):
        train(three, store, folder / "three")
    both = changed(recipe, "parallel", replicas=2, strategy="ddp")
    with pytest.raises(UserError, match="leave it out"):
        train(both, store, folder / "both")
    both = changed(changed(recipe, "train", accumulate=2), "parallel", shard_gradients=True, strategy="ddp")
    with pytest.raises(UserError, match=r"parallel\.shard_gradients is of FSDP2"):
        train(both, store, folder / "both")
    for name in ("sharded", "unsharded"):
        held = between_parts(changed(varied(recipe, "sharded"), "parallel", shard_gradients=name == "sharded"), store)
        if rank == 0:
            (folder / f"{name}.json").write_text(json.dumps(held))
    for strategy in STRATEGIES:
        found = validated(changed(recipe, "parallel", strategy=strategy), store)
        if rank == 0:
            (folder / f"{strategy}.json").write_text(json.dumps(found))


def between_parts(recipe, store):
    """Bytes of the gradients that this rank holds between two parts of a step, and of all weights in float32."""
    with joined_ranks(recipe.parallel, "cpu") as ranks:
        state = build_state(recipe, store, ranks)
        held = []

        def count(*_):
            groups = [group for unit in units for group in unit._get_fsdp_state()._fsdp_param_groups]
            gradients = []
            for of in (parameter for group in groups for parameter in group.fsdp_params):
                gradients += [of.sharded_param.grad, of.unsharded_accumulated_grad]
                gradients += [of._unsharded_param.grad] if hasattr(of, "_unsharded_param") else []
            held.append(sum(local(gradient).nbytes for gradient in gradients if gradient is not None))

        units = [module for module in state.lm.modules() if isinstance(module, FSDPModule)]
        state.model.model.register_forward_pre_hook(count)
        accumulate_gradients(state, recipe.train, recipe.schedule.stage_at(0), window_of(recipe, store, ranks))
        return held[-1], sum(4 * parameter.numel() for parameter in state.model.parameters())


def local(tensor):
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def window_of(recipe, store, ranks):
    rows = recipe.windows(store.train).read(store.train.tokens, 0)
    return rows.chunk(ranks.world_size)[ranks.rank]


def validated(recipe, store):
    """Dtypes of matrix products in training and in validation, and the validation's loss, all in bfloat16."""
    recipe = changed(recipe, "train", precision="bfloat16")
    with joined_ranks(recipe.parallel, "cpu") as ranks:
        state = build_state(recipe, store, ranks)
        seen = []
        for module in state.model.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(lambda module, inputs, output: seen.append(str(output.dtype)))
        accumulate_gradients(state, recipe.train, recipe.schedule.stage_at(0), window_of(recipe, store, ranks))
        training, args = sorted(set(seen)), recipe.train
        seen.clear()
        held_out = validate(state.lm, store.val, args.latents, args.batch_size, ranks, args.precision)
        return training, sorted(set(seen)), held_out.loss


@pytest.fixture(scope="module")
def on_two(recipe, store, tmp_path_factory):
    """The directory of all runs of two ranks."""
    folder = tmp_path_factory.mktemp("two")
    for name in RESUMED:
        with pytest.raises(StoppedError):
            train(varied(recipe, name), store, folder / f"{name}-from-one", listener=stop_at(12))
    on_ranks(2, work_of_two, recipe, store.path, folder)
    return folder


@pytest.mark.error(n=4)
@pytest.mark.error(n=9)
@pytest.mark.parametrize("name", VARIANTS)
def test_two_ranks_train_what_one_process_trains(on_two, recipe, store, tmp_path, name):
    """Through the switch: losses, norms and the exported weights."""
    result = train(varied(recipe, name), store, tmp_path / "one")
    ours, theirs = (read_metrics(folder / "metrics.jsonl") for folder in (tmp_path / "one", on_two / name))
    assert len(ours) == len(theirs)
    for one, two in zip(ours, theirs, strict=True):
        assert one.keys() == two.keys()
        for key in {"loss", "bag_loss", "val_loss", "extra_loss", "router_loss", "expert_load_max"} & one.keys():
            assert two[key] == pytest.approx(one[key], abs=1e-4), (key, one["step"])
        if "grad_norm" in one:
            assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)
        for key in {"raw_tokens", "latents", "flops"} & one.keys():
            assert two[key] == one[key]
    reported = json.loads((on_two / name / "result.json").read_text())
    assert reported["ranks"] == 2
    for key in {"val_loss", "average_val_loss"} & result.keys():
        assert reported[key] == pytest.approx(result[key], abs=1e-4)
    one, two = weights(tmp_path / "one"), weights(on_two / name)
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        # Muon orthogonalises in bfloat16, which makes more of a difference in the last bit.
        torch.testing.assert_close(two[key], tensor, rtol=1e-3, atol=2e-3 if name == "muon" else 2e-4)


def test_gradients_are_kept_sharded_between_the_parts_of_a_step(on_two):
    for name, ranks in (("sharded", 2), ("unsharded", 1)):
        held, whole = json.loads((on_two / f"{name}.json").read_text())
        assert held == pytest.approx(whole / ranks, rel=0.01), name


def test_validation_is_in_the_precision_of_training_whatever_the_strategy(on_two, recipe, store):
    alone = validated(recipe, store)
    for training, validation, loss in (alone, *(json.loads((on_two / f"{s}.json").read_text()) for s in STRATEGIES)):
        assert training == validation == ["torch.bfloat16"]
        assert loss == pytest.approx(alone[2], abs=1e-3)


def test_the_model_of_shards_is_an_ordinary_one(on_two):
    from transformers import AutoModelForCausalLM

    for name in ("fsdp", "experts", "tied"):
        config = json.loads((on_two / name / "model" / "config.json").read_text())
        assert not config["architectures"][0].startswith("FSDP")
        model, report = AutoModelForCausalLM.from_pretrained(on_two / name / "model", output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        assert model(torch.arange(8).unsqueeze(0)).logits.isfinite().all()


@pytest.mark.error(n=9)
@pytest.mark.parametrize("name", RESUMED)
def test_two_ranks_resume_to_the_same_bits(on_two, name):
    assert same_weights(on_two / name, on_two / f"{name}-resumed")


@pytest.mark.error(n=9)
@pytest.mark.parametrize("name", RESUMED)
def test_a_checkpoint_of_two_ranks_loads_into_one(on_two, recipe, store, name):
    result = train(varied(recipe, name), store, on_two / f"{name}-to-one", resume=True)
    assert result["val_loss"] == pytest.approx(loss_of(on_two / name), abs=1e-4)


@pytest.mark.parametrize("name", ["fsdp", "ddp", "experts", "tied"])
def test_the_weights_of_two_ranks_fill_a_whole_model(on_two, recipe, store, name):
    """What is exported from a checkpoint of shards is the model the ranks exported together."""
    from transformers import AutoModelForCausalLM

    model = build_state(changed(varied(recipe, name), "train", seed=9), store, ALONE).model
    checkpoints = Checkpoints(on_two / name, ALONE)
    checkpoints.weights(model, checkpoints.steps[-1])
    exported = AutoModelForCausalLM.from_pretrained(on_two / name / "model")
    for key, tensor in exported.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), key


@pytest.mark.error(n=9)
@pytest.mark.parametrize("name", RESUMED)
def test_a_checkpoint_of_one_process_loads_into_two_ranks(on_two, name):
    assert loss_of(on_two / f"{name}-from-one") == pytest.approx(loss_of(on_two / name), abs=1e-4)


def loss_of(run):
    return json.loads((run / "result.json").read_text())["val_loss"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_dies_or_hangs_ends_the_others(recipe, store, tmp_path, number):
    endless = changed(recipe, "train", steps=100_000, eval_every=100_000, checkpoint_every=100_000, log_every=1)
    endless = changed(changed(endless, "parallel", timeout=3), "data", corpus=str(store.path), **NO_CHOICES)
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(endless.model_dump(mode="json")))
    environment = {**os.environ, **torchrun_environment(2), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "superpose", "train", str(path), "--out", str(tmp_path / "run")]
    heard = (tmp_path / "rank-0.txt").open("w+")
    ranks = [
        subprocess.Popen(
            command,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=heard if rank == 0 else subprocess.DEVNULL,
        )
        for rank in range(2)
    ]
    log = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 90
    try:
        while not (log.exists() and log.read_text().count("training") > 3):
            assert time.monotonic() < deadline
            assert [rank.poll() for rank in ranks] == [None, None]
            time.sleep(0.1)
        ranks[1].send_signal(number)
        ranks[0].wait(timeout=40)
        heard.seek(0)
        error = heard.read()
    finally:
        heard.close()
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert ranks[0].returncode == 2
    assert "superpose, rank 0: lost contact" in error
    assert "--resume" in error
    assert "Traceback" not in error


NO_CHOICES = {"vocab_size": 1024, "val_fraction": 0.02, "val_megabytes": 0.5}
"""What a prepared store leaves at its default."""


def test_one_process_is_a_rank_of_its_own():
    alone = Ranks(0, 1, torch.device("cpu"))
    tensor = torch.ones(2)
    assert alone.total(tensor) is tensor is alone.mean(tensor)
    assert (alone.highest(3), alone.gather("a"), alone.on_main(lambda: 5)) == (3, ["a"], 5)
