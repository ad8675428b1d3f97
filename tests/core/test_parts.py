import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from superpose import IGNORE_INDEX, Schedule, SuperposedLM, SuperposedParts, split_window, window_length
from superpose.core.loss import multi_hot_cross_entropy, target_weights
from superpose.core.parts import fold_side
from superpose.models.build import build_config, build_model
from superpose.train.loop import train
from superpose.train.optim import build_optimizers, learning_rate
from superpose.train.records import read_metrics
from tests.conftest import load_example, make_model

VOCAB = 50


@pytest.fixture
def tiny():
    """Embedding, backbone and head in float64; the backbone looks back and takes side inputs."""
    torch.manual_seed(0)

    class Tiny(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.values = nn.Embedding(VOCAB, 8), nn.Embedding(VOCAB, 8)
            self.mix, self.head = nn.GRU(8, 8, batch_first=True), nn.Linear(8, VOCAB)

        def backbone(self, x, values=None, documents=None, features=None):
            self.seen = {"documents": documents, "features": features}
            return self.mix(x if values is None else x + values)[0]

    return Tiny().double()


def windows(bag_size, mode="full", latents=5, rows=3):
    torch.manual_seed(bag_size)
    return torch.randint(VOCAB, (rows, window_length(latents, bag_size, mode)))


def reference(model, window, bag_size, mode, values=False):
    """Slowly, token by token, from the definition."""
    total, count = 0.0, 0
    for row in window:
        latents = (len(row) - bag_size) if mode == "output" else len(row) // bag_size - 1
        width = 1 if mode == "output" else bag_size
        bags = [row[j * width : (j + 1) * width] for j in range(latents)]
        x = torch.stack([sum(model.embedding.weight[t] for t in bag) / width for bag in bags])
        extra = torch.stack([sum(model.values.weight[t] for t in bag) / width for bag in bags]) if values else None
        logits = model.head(model.backbone(x[None], extra if extra is None else extra[None]))[0]
        for j in range(latents):
            first = (j + 1) * width
            targets = row[first : first + (1 if mode == "input" else bag_size)]
            total = total + sum(F.cross_entropy(logits[j], t) for t in targets) / len(targets)
            count += 1
    return total / count


@pytest.mark.error(n=1)
@pytest.mark.error(n=6)
@pytest.mark.parametrize("values", [False, True])
@pytest.mark.parametrize(("bag_size", "mode"), [(1, "full"), (3, "full"), (3, "input"), (3, "output")])
def test_the_loss_of_three_callables_is_the_definition(tiny, bag_size, mode, values):
    tables = {"values": tiny.values} if values else {}
    window = windows(bag_size, mode)
    for head in (tiny.head, lambda hidden: tiny.head(hidden)):
        parts = SuperposedParts(tiny.embedding, tiny.backbone, head, tables=tables)
        tiny.zero_grad()
        loss = parts(window, bag_size, mode)
        loss.backward()
        ours = {name: p.grad.clone() for name, p in tiny.named_parameters() if p.grad is not None}
        tiny.zero_grad()
        expected = reference(tiny, window, bag_size, mode, values)
        expected.backward()
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
        for name, grad in ours.items():
            torch.testing.assert_close(grad, dict(tiny.named_parameters())[name].grad, rtol=1e-9, atol=1e-13)


@pytest.mark.error(n=6)
def test_side_inputs_are_folded_as_the_tokens_are(tiny):
    parts = SuperposedParts(tiny.embedding, tiny.backbone, tiny.head, sides={"documents": "last", "features": "mean"})
    window = windows(3)
    documents = torch.arange(window.shape[1]).expand(len(window), -1)
    features = torch.randn(*window.shape, 2)
    parts(window, 3, documents=documents, features=features)
    assert tiny.seen["documents"].tolist() == [[2, 5, 8, 11, 14]] * 3
    expected = torch.stack([features[:, 3 * j : 3 * j + 3].mean(dim=1) for j in range(5)], dim=1)
    torch.testing.assert_close(tiny.seen["features"], expected)
    for bag_size, mode in ((1, "full"), (3, "output")):  # tokens go in singly
        window = windows(bag_size, mode)
        parts(window, bag_size, mode, documents=documents[:, : window.shape[1]], features=features)
        assert tiny.seen["documents"].tolist() == [[0, 1, 2, 3, 4]] * 3


def test_each_folding():
    values = torch.tensor([[1.0, 3.0, 0.0, 0.0]])
    assert fold_side(values, 2, "mean").tolist() == [[2, 0]]
    assert fold_side(values, 2, "any").tolist() == [[True, False]]
    assert fold_side(values, 2, "first").tolist() == [[1, 0]]
    assert fold_side(values, 2, "last").tolist() == [[3, 0]]
    with pytest.raises(ValueError, match="choose one of mean, any, first, last"):
        fold_side(values, 2, "sum")


@pytest.mark.error(n=4)
def test_parts_of_a_step_add_up_under_ignored_tokens(tiny):
    parts = SuperposedParts(tiny.embedding, tiny.backbone, tiny.head)
    window = windows(3, rows=4)
    window[1, 4:] = IGNORE_INDEX
    positions = sum((split_window(window, 3)[1] != IGNORE_INDEX).any(dim=-1).flatten().tolist())
    pieces = sum(parts(part, 3, normalizer=positions) for part in window.split([1, 2, 1]))
    torch.testing.assert_close(pieces, parts(window, 3), rtol=1e-12, atol=0)
    assert parts(torch.full((1, 9), IGNORE_INDEX), 3).item() == 0


def test_side_inputs_that_do_not_fit_are_refused(tiny):
    parts = SuperposedParts(tiny.embedding, tiny.backbone, tiny.head, sides={"documents": "last"})
    with pytest.raises(ValueError, match="name each in `sides`"):
        parts(windows(3), 3)


@pytest.mark.error(n=6)
@pytest.mark.parametrize("variant", ["mce", "mce_alt", "hinge", "bce"])
def test_no_setting_is_ignored_whatever_the_head(tiny, variant):
    """A linear head and a function of the same logits have one loss, and each setting changes it."""
    losses = []
    for settings in ({}, {"z_loss": 0.1}, {"softcap": 0.1}):
        of_both = [
            SuperposedParts(tiny.embedding, tiny.backbone, head, variant=variant, **settings)(windows(3), 3)
            for head in (tiny.head, lambda hidden: tiny.head(hidden))
        ]
        torch.testing.assert_close(*of_both, rtol=1e-12, atol=0)
        losses.append(of_both[0].item())
    assert len(set(losses)) == 3
    with pytest.raises(ValueError, match="softcap is 0"):
        SuperposedParts(tiny.embedding, tiny.backbone, tiny.head, softcap=0.0)


@pytest.mark.error(n=6)
def test_a_backbone_is_told_where_documents_begin(tiny):
    seen = []

    def backbone(x, position_ids):
        seen.append(position_ids.tolist())
        return tiny.backbone(x)

    window = torch.tensor([[1, 2, 0, 3, 4, 5, 6, 7, 8, 9]])
    SuperposedParts(tiny.embedding, backbone, tiny.head, end_of_text=0)(window, 2)
    assert seen == [[[0, 0, 1, 2]]]  # a bag of two documents belongs to the second


@pytest.mark.error(n=4)
def test_a_router_loss_is_weighed_by_its_share_of_the_step(tiny):
    router_loss, load = torch.tensor(2.0).double(), torch.tensor([0.5, 0.5])

    def routed(x):
        return tiny.backbone(x), router_loss, load

    window = windows(3, rows=4)
    plain = SuperposedParts(tiny.embedding, tiny.backbone, tiny.head)
    parts = SuperposedParts(tiny.embedding, routed, tiny.head, router_coef=0.01)
    output = parts.output(window, 3)
    assert output.expert_load is load
    assert output.positions == 20
    torch.testing.assert_close(output.loss, plain(window, 3) + 0.02)
    pieces = sum(parts(part, 3, normalizer=20) for part in window.split([1, 3]))
    torch.testing.assert_close(pieces, output.loss)
    for backbone, coefficient in ((routed, None), (tiny.backbone, 0.01)):
        with pytest.raises(ValueError, match="give both or neither"):
            SuperposedParts(tiny.embedding, backbone, tiny.head, router_coef=coefficient)(window, 3)
    with pytest.raises(ValueError, match="backbone returned 2 values"):
        SuperposedParts(tiny.embedding, tiny.mix, tiny.head)(window, 3)


@pytest.mark.parametrize("mode", ["full", "input", "output"])
@pytest.mark.parametrize("weighting", ["uniform", "power"])
def test_a_transformers_model_in_parts_is_superposed_lm(mode, weighting):
    model = make_model("llama").double()
    parts = SuperposedParts(
        model.model.embed_tokens,
        lambda x: model.model(inputs_embeds=x, use_cache=False).last_hidden_state,
        model.lm_head,
        weighting,
    )
    window = windows(3, mode)
    expected = SuperposedLM(model, weighting)(window, 3, mode).loss
    assert parts(window, 3, mode).item() == expected.item()


def test_a_plain_loop_has_the_losses_of_the_trainer(recipe, store, tmp_path):
    train(recipe, store, tmp_path / "run")
    records = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "training"]
    args, schedule, plan = recipe.train, recipe.schedule, recipe.windows(store.train)
    torch.manual_seed(args.seed)
    model = build_model(build_config(recipe.model, store.vocab_size, args.latents, store.end_of_text))
    (optimizer,) = build_optimizers(args, model)
    parts = SuperposedParts(
        model.model.embed_tokens,
        lambda x: model.model(inputs_embeds=x, use_cache=False).last_hidden_state,
        model.lm_head,
    )
    losses = []
    for step in range(schedule.total_steps):
        loss = parts(plan.read(store.train.tokens, step), schedule.bag_size_at(step))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip)
        for group in optimizer.param_groups:
            factor = schedule.step_at(step).lr_factor
            group["lr"] = learning_rate(args, step, args.steps, schedule.boundaries) * factor
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    expected = [record.get("bag_loss", record.get("loss")) for record in records]
    assert losses == pytest.approx(expected, rel=1e-5)


def test_the_example_learns_in_both_phases(corpus):
    example = load_example("plain_pytorch")
    text = corpus.read_bytes()
    model, losses = example.train(text, Schedule(60, 4, 0.5), latents=16, rows=4)
    assert losses[0] == pytest.approx(math.log(256), rel=0.05)  # log V, bags or not
    assert losses[29] < losses[0] - 1
    assert losses[59] < losses[30]
    # At bag size 1 it is the loss the loop had before.
    window = torch.randint(256, (2, 17))
    parts = SuperposedParts(model.tokens, model.backbone, model.head, tables={"values": model.values})
    ordinary = F.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
    torch.testing.assert_close(parts(window), ordinary)


@pytest.mark.error(n=8)
@pytest.mark.parametrize("step", [5, 10, 15])
def test_the_example_goes_on_where_it_stopped_and_by_no_other_schedule(corpus, tmp_path, step):
    example, text, schedule = load_example("plain_pytorch"), corpus.read_bytes()[:5000], Schedule(20, 4, 0.5)
    _, through = example.train(text, schedule, latents=16, rows=4)
    kept = tmp_path / "run.pt"
    example.train(text, schedule, latents=16, rows=4, checkpoint=kept, until=step)
    with pytest.raises(ValueError, match=r"the run began by .*total_steps=20.* and would go on by .*total_steps=40"):
        example.train(text, Schedule(40, 4, 0.5), latents=16, rows=4, checkpoint=kept)
    _, losses = example.train(text, schedule, latents=16, rows=4, checkpoint=kept)
    assert losses == through
    _, longer = example.train(text, schedule.lengthened(24), latents=16, rows=4, checkpoint=kept)
    assert longer[:20] == through
    assert len(longer) == 24


@pytest.mark.error(n=5)
@pytest.mark.parametrize("weighting", ["uniform", "power"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_masked_and_smoothed_targets_whatever_the_head(tiny, weighting, smoothing):
    """Of a linear head and of a function, at both bag sizes: the same loss, and that of the definition."""
    for bag_size in (1, 3):
        window = windows(bag_size)
        mask = torch.rand(window.shape) < 0.5
        losses = [
            SuperposedParts(tiny.embedding, tiny.backbone, head, weighting, label_smoothing=smoothing)(
                window, bag_size, target_mask=mask
            )
            for head in (tiny.head, lambda hidden: tiny.head(hidden))
        ]
        inputs, targets = split_window(window, bag_size, "full", mask)
        vectors = tiny.embedding(inputs).mean(dim=2) if bag_size > 1 else tiny.embedding(inputs)
        logits = tiny.head(tiny.backbone(vectors))
        weights = target_weights(targets.view(*inputs.shape[:2], bag_size), weighting)
        expected = multi_hot_cross_entropy(logits, targets, weights, label_smoothing=smoothing)
        for loss in losses:
            torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)


def test_smoothing_that_would_be_ignored_is_refused(tiny):
    with pytest.raises(ValueError, match="variant 'bce' is not smoothed"):
        SuperposedParts(tiny.embedding, tiny.backbone, tiny.head, variant="bce", label_smoothing=0.1)
    for share in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="give a share of the target between 0 and 1"):
            SuperposedParts(tiny.embedding, tiny.backbone, tiny.head, label_smoothing=share)


class HostWatch(TorchDispatchMode):
    """The operations that read or write a tensor on the CPU."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, operator, types, arguments=(), named=None):
        result = operator(*arguments, **(named or {}))
        tensors = [part for part in tree_leaves((arguments, named, result)) if isinstance(part, torch.Tensor)]
        self.seen += [str(operator)] if any(tensor.device.type == "cpu" for tensor in tensors) else []
        return result


@pytest.mark.parametrize("weighting", ["uniform", "power", "exponential", "first", (3, 2, 1, 0)])
@pytest.mark.parametrize("mode", ["full", "input", "output"])
@pytest.mark.parametrize("head", ["matrix", "function"])
def test_a_forward_pass_on_a_device_touches_nothing_on_the_host(weighting, mode, head, monkeypatch):
    """A copy from the host makes it wait until the device has done all before; reading a value, which does too, is an
    error on this device."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)  # which knows no device of this kind
    with torch.device("meta"):
        embedding, matrix = nn.Embedding(VOCAB, 8, padding_idx=0), nn.Linear(8, VOCAB)
        window = torch.zeros(2, window_length(6, 4, mode), dtype=torch.long)
        mask = torch.ones_like(window)
    loss_of = SuperposedParts(
        embedding,
        lambda x, position_ids, kept: x * kept.unsqueeze(-1) + position_ids.unsqueeze(-1),
        matrix if head == "matrix" else lambda hidden: matrix(hidden),
        weighting,
        end_of_text=0,
        sides={"kept": "any"},
    )
    with HostWatch() as watch:
        if mode != "output":  # its inputs are single tokens, and its sides whole bags
            loss_of(window, 4, mode, kept=mask)
            loss_of(window, 4, mode, normalizer=6.0, target_mask=mask, kept=mask).backward()
        loss_of(window[:, :7], kept=mask[:, :7]).backward()
    assert watch.seen == []
    with watch:
        torch.ones(3).to("meta")
    assert watch.seen
