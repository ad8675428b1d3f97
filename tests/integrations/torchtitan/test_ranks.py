"""TorchTitan on two ranks of a CPU: each kind of parallelism trains as one rank does, in both phases."""

import os
from typing import get_args

import pytest
import torch

pytest.importorskip("torchtitan")

from torchtitan.distributed.spmd_types import set_current_spmd_mesh
from torchtitan.distributed.utils import set_spmd_backend

from superpose import embed_bags, multi_hot_cross_entropy
from superpose.core.embed import Pooling
from superpose.core.loss import bag_weights
from superpose.integrations.torchtitan.embedding import BagEmbedding
from superpose.integrations.torchtitan.loss import mark_positions, sum_of_losses
from tests.integrations.torchtitan.runs import TWO_RANKS, config_of, on_two_ranks, run

pytestmark = pytest.mark.filterwarnings("ignore")  # TorchTitan's and PyTorch's own

STEPS, SWITCH, LATENTS = 5, 2, 256
STARTS = {name: [1] for name in TWO_RANKS} | {"fsdp": [1, SWITCH]}
SETTINGS = {
    "training.steps": STEPS,
    "superposition.ratio": SWITCH / STEPS,
    "training.seq_len": LATENTS,
    "training.local_batch_size": 4,
    "parallelism.spmd_backend": "partial_dtensor",  # the other needs PyTorch 2.14 on several ranks
    "checkpoint.enable": True,
    "checkpoint.interval": 1,
    "checkpoint.keep_latest_k": 0,
    "checkpoint.last_save_model_only": False,
    "validator.enable": True,
    "validator.freq": STEPS,
    "validator.steps": 1,
}


@pytest.fixture(scope="module")
def alone(store, tmp_path_factory):
    """Runs of one rank: metrics of each model, and the folder with a checkpoint of every step."""
    out = tmp_path_factory.mktemp("alone")
    models = {"dense": {}, "experts": {"experts": True}}
    return {name: run(config_of(store, out / name, **SETTINGS, **model)) for name, model in models.items()}, out


@pytest.fixture(scope="module")
def together(alone, store, tmp_path_factory):
    """The same run by two ranks in every way, from two checkpoints of the run alone; and the parts on shards."""
    return on_two_ranks(every_way, tmp_path_factory.mktemp("together"), store, alone[1])


def model_of(name):
    return "experts" if name == "experts" else "dense"


def every_way(rank, environments, out, store, alone):
    results = {"problems": on_shards(rank, next(environments))}
    for name, settings in TWO_RANKS.items():
        for start in STARTS[name]:
            begin = {
                "checkpoint.interval": 100,
                "checkpoint.initial_load_path": str(alone / model_of(name) / f"checkpoint/step-{start}"),
                "checkpoint.initial_load_model_only": False,
            }
            metrics = run(config_of(store, out / f"{name}{start}", **SETTINGS | begin | settings), next(environments))
            results[name, start] = metrics.records, metrics.validations
    return results


@pytest.mark.error(n=4)
@pytest.mark.parametrize(("name", "start"), [(name, start) for name in TWO_RANKS for start in STARTS[name]])
def test_two_ranks_go_on_as_one(name, start, alone, together):
    records, validations = together[name, start]
    whole = alone[0][model_of(name)]
    expected = whole.records[start:]
    assert [r["step"] for r in records] == [r["step"] for r in expected]
    assert [r["loss"] for r in records] == pytest.approx([r["loss"] for r in expected], rel=2e-5)
    assert [r["seen"] for r in records] == [r["seen"] for r in expected]
    assert validations[STEPS] == pytest.approx(whole.validations[STEPS], rel=2e-5)


def on_shards(rank, environment):
    """Loss and embedding of a vocabulary of 23, of which the ranks have 12 and 11 entries, in float64."""
    os.environ.update(environment)
    torch.distributed.init_process_group("gloo")
    group = torch.distributed.group.WORLD
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
    set_spmd_backend("spmd_types")
    generator = torch.Generator().manual_seed(0)
    start, stop = ((0, 12), (12, 23))[rank]
    problems = []

    def close(what, ours, reference):
        if not torch.allclose(ours, reference, rtol=1e-12, atol=1e-12):
            problems.append(f"{what} on rank {rank}: {ours} is not {reference}")

    for weighting, z_loss in (("uniform", 0.0), ("power", 0.01), ("first", 0.0)):
        logits = torch.randn(40, 23, dtype=torch.float64, generator=generator)
        targets = torch.randint(23, (40, 4), generator=generator)
        targets[torch.rand(40, 4, generator=generator) < 0.4] = -100
        targets[0] = -100
        targets[1] = 7  # a token four times
        weights = bag_weights(4, weighting).double()
        whole = logits.clone().requires_grad_()
        expected = multi_hot_cross_entropy(whole, targets, weights, reduction="sum", z_loss=z_loss)
        (3 * expected).backward()
        shard = logits[:, start:stop].clone().requires_grad_()
        labels = mark_positions(targets, weights).unsqueeze(0)
        with set_current_spmd_mesh(mesh):  # as TorchTitan's default backend hands it over
            ours = sum_of_losses(shard[None], labels, global_vocab_size=23, weights=weights, z_loss=z_loss)
        (3 * ours).backward()
        close(f"loss, {weighting}", ours, expected)
        close(f"gradient, {weighting}", shard.grad, whole.grad[:, start:stop])

    bags = torch.randint(23, (3, 5, 4), generator=generator)
    bags[torch.rand(3, 5, 4, generator=generator) < 0.3] = -100
    table = torch.randn(23, 6, dtype=torch.float64, generator=generator)
    upstream = torch.randn(3, 5, 6, dtype=torch.float64, generator=generator)
    for pooling in get_args(Pooling):
        whole = table.clone().requires_grad_()
        expected = embed_bags(bags, whole, pooling=pooling)
        expected.backward(upstream)
        embedding = BagEmbedding.Config(num_embeddings=23, embedding_dim=6).build()
        embedding.weight = torch.nn.Parameter(table[start:stop].clone())
        embedding.tp_group, embedding.pooling = group, pooling
        part = embedding(bags)
        part.backward(upstream)
        total = part.detach().clone()
        torch.distributed.all_reduce(total)
        close(f"embedding, {pooling}", total, expected)
        close(f"gradient of the table, {pooling}", embedding.weight.grad, whole.grad[start:stop])
    everyone = [None, None]
    torch.distributed.all_gather_object(everyone, problems)
    torch.distributed.destroy_process_group()
    return [problem for rank in everyone for problem in rank]


@pytest.mark.error(n=5)
def test_a_sharded_vocabulary_changes_nothing(together):
    assert together["problems"] == []
