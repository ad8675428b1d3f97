import math

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from superpose import (
    IGNORE_INDEX,
    Schedule,
    SuperposedLM,
    bag_weights,
    split_window,
    window_length,
)
from tests.conftest import make_model
from tests.ranks import on_ranks

V = 50


def window_of(latents, bag_size, mode="full", rows=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, V, (rows, window_length(latents, bag_size, mode)), generator=generator)


def bag_loss(model, window, bag_size, weights=None):
    """The method written out with whole logits and s ordinary cross-entropies."""
    inputs, targets = split_window(window, bag_size)
    weights = torch.full((bag_size,), 1 / bag_size) if weights is None else weights
    vectors = model.get_input_embeddings()(inputs).mean(dim=2)
    logits = model(inputs_embeds=vectors).logits.flatten(0, 1)
    return sum(weight * F.cross_entropy(logits, targets[..., i].flatten()) for i, weight in enumerate(weights))


def test_a_bag_of_one_is_the_models_own_loss(family):
    model = make_model(family)
    window = window_of(10, 1)
    ours = SuperposedLM(model)(window).loss
    # transformers shifts labels itself, so it is given the row it will cut the last token from.
    theirs = model(input_ids=window[:, :-1], labels=window[:, :-1], shift_labels=window[:, 1:].contiguous()).loss
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(
        torch.autograd.grad(ours, list(model.parameters()), retain_graph=True),
        torch.autograd.grad(theirs, list(model.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.error(n=1)
@pytest.mark.parametrize("weighting", ["uniform", "power"])
def test_bags_equal_the_method_written_out(family, weighting):
    model = make_model(family)
    window = window_of(6, 4)
    ours = SuperposedLM(model, weighting)(window, 4).cross_entropy
    expected = bag_loss(model, window, 4, bag_weights(4, weighting))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    for a, b in zip(
        torch.autograd.grad(ours, list(model.parameters()), retain_graph=True, allow_unused=True),
        torch.autograd.grad(expected, list(model.parameters()), allow_unused=True),
        strict=True,
    ):
        if a is not None or b is not None:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_the_bags_total_probability_as_loss():
    model = make_model("llama")
    window = window_of(6, 4)
    inputs, targets = split_window(window, 4)
    logits = model(inputs_embeds=model.get_input_embeddings()(inputs).mean(dim=2)).logits
    total = logits.softmax(-1).gather(-1, targets).sum(dim=-1)
    expected = (math.log(4) - total.log()).mean()
    torch.testing.assert_close(SuperposedLM(model, variant="mce_alt")(window, 4).loss, expected)


@pytest.mark.error(n=6)
@pytest.mark.parametrize("bag_size", [1, 4])
def test_the_z_loss_is_added(family, bag_size):
    model = make_model(family)
    window = window_of(6, bag_size)
    lm = SuperposedLM(model, z_loss=0.1)
    lm.check()  # compares the loss without it
    hidden, *_ = lm.parts().hidden_states(split_window(window, bag_size)[0])
    penalty = 0.1 * model.get_output_embeddings()(hidden).logsumexp(-1).square().mean()
    expected = SuperposedLM(model)(window, bag_size).cross_entropy + penalty
    torch.testing.assert_close(lm(window, bag_size).cross_entropy, expected)


def test_ordinary_training_step_for_step():
    """At s = 1 a plain loop and ours end with the same weights, bit for bit up to the head's arithmetic."""
    plain, ours = make_model("llama").double(), make_model("llama").double()
    lm, schedule = SuperposedLM(ours), Schedule(10, 1, 0.5)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-2) for model in (plain, ours)]
    for step in range(10):
        window = window_of(8, 1, seed=step)
        logits = plain(input_ids=window[:, :-1]).logits
        expected = F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())
        loss = lm(window, schedule.bag_size_at(step)).loss
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
        for value, optimizer in zip((expected, loss), optimizers, strict=True):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    for a, b in zip(plain.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.error(n=1)
@pytest.mark.parametrize("mode", ["full", "input", "output"])
def test_no_loss_sees_its_own_target(mode):
    """The gradient of position j's loss reaches no token of the bag it predicts, nor any later one."""
    model = make_model("llama")
    bag_size, latents = 3, 4
    window = torch.arange(window_length(latents, bag_size, mode)).unsqueeze(0)  # each token its own embedding
    inputs, targets = split_window(window, bag_size, mode)
    lm = SuperposedLM(model)
    hidden, *_ = lm.parts().hidden_states(inputs)
    table = model.get_input_embeddings().weight
    for j in range(latents):
        (gradient,) = torch.autograd.grad(hidden[0, j].sum(), table, retain_graph=True)
        seen = set(gradient.abs().sum(dim=1).nonzero().flatten().tolist())
        assert seen == set(inputs[0, : j + 1].flatten().tolist())
        assert not seen & set(targets[0, j].flatten().tolist())


@pytest.mark.error(n=2)
@pytest.mark.parametrize("mode", ["full", "input", "output"])
def test_the_first_loss_is_log_vocabulary(family, mode):
    lm = SuperposedLM(make_model(family))
    loss = lm(window_of(8, 4, mode), 4, mode).cross_entropy
    assert loss.item() == pytest.approx(math.log(V), abs=0.15)


@pytest.mark.error(n=5)
def test_ignored_tokens_change_nothing(family):
    """Padding after the text, by mark or by mask, gives the loss of the text alone."""
    lm = SuperposedLM(make_model(family))
    window = window_of(4, 3)
    alone = lm(window, 3)
    padded = torch.cat([window, torch.full((3, 6), IGNORE_INDEX)], dim=1)
    by_mark = lm(padded, 3)
    torch.testing.assert_close(by_mark.cross_entropy, alone.cross_entropy)
    assert by_mark.positions == alone.positions
    mask = (padded != IGNORE_INDEX).long()
    by_mask = lm(padded.masked_fill(mask == 0, 7), 3, attention_mask=mask)
    torch.testing.assert_close(by_mask.cross_entropy, alone.cross_entropy)


@pytest.mark.error(n=5)
def test_ignored_tokens_inside_a_bag_are_left_out_of_mean_and_loss():
    model = make_model("llama")
    window = window_of(3, 4)
    window[:, 5] = IGNORE_INDEX
    inputs, targets = split_window(window, 4)
    table = model.get_input_embeddings().weight
    valid = (inputs != IGNORE_INDEX).unsqueeze(-1)
    vectors = (table[inputs.clamp(min=0)] * valid).sum(2) / valid.sum(2)
    log_p = model(inputs_embeds=vectors).logits.log_softmax(-1)
    picked = log_p.gather(-1, targets.clamp(min=0)) * (targets != IGNORE_INDEX)
    expected = -(picked.sum(-1) / (targets != IGNORE_INDEX).sum(-1)).mean()
    torch.testing.assert_close(SuperposedLM(model)(window, 4).loss, expected)


@pytest.mark.error(n=5)
def test_padding_before_the_text_is_not_attended_to():
    """The mask of a bag is that of any of its tokens: padded on the left by whole bags, bags are the same."""
    model = make_model("gpt2")
    torch.nn.init.zeros_(model.transformer.wpe.weight)  # positions move with the padding
    lm = SuperposedLM(model)
    window = window_of(4, 3)
    padded = torch.cat([torch.full((3, 3), 5), window], dim=1)
    mask = torch.ones_like(padded)
    mask[:, :3] = 0
    # The padded bag itself predicts the first real one; its loss is what differs.
    ours = lm(padded, 3, attention_mask=mask, normalizer=1.0)
    first = lm(torch.cat([torch.full((3, 3), IGNORE_INDEX), window[:, :3]], dim=1), 3, normalizer=1.0)
    alone = lm(window, 3, normalizer=1.0)
    torch.testing.assert_close(ours.loss - first.loss, alone.loss, rtol=1e-4, atol=1e-4)


@pytest.mark.error(n=4)
def test_accumulation_changes_nothing(family):
    """Parts of a step with different numbers of valid positions sum to the whole step, router loss included."""
    model = make_model(family)
    lm = SuperposedLM(model)
    window = window_of(6, 4, rows=4)
    window[0, 12:] = IGNORE_INDEX
    window[1, :9] = IGNORE_INDEX
    positions = int(lm(window, 4).positions)
    whole = torch.autograd.grad(lm(window, 4).cross_entropy, model.get_output_embeddings().weight)[0]
    parts = [lm(part, 4, normalizer=positions) for part in window.split(1)]
    gradient = torch.autograd.grad(sum(part.cross_entropy for part in parts), model.get_output_embeddings().weight)[0]
    torch.testing.assert_close(whole, gradient, rtol=1e-4, atol=1e-6)
    assert sum(int(part.positions) for part in parts) == positions


def test_router_loss_is_counted_over_bags():
    model = make_model("qwen3_moe")
    output = SuperposedLM(model)(window_of(6, 4), 4)
    # Perfectly balanced routing of top-2 costs 2; a fresh router is close to it.
    assert output.router_loss.item() == pytest.approx(2, abs=0.3)
    torch.testing.assert_close(output.loss, output.cross_entropy + 0.01 * output.router_loss)


@pytest.mark.error(n=11)
def test_every_parameter_is_used_in_both_phases(family):
    """A parameter without a gradient in one phase stops DDP; experts may be idle, but not absent from the graph."""
    model = make_model(family)
    lm = SuperposedLM(model)
    for bag_size in (4, 1):
        model.zero_grad(set_to_none=True)
        lm(window_of(8, bag_size), bag_size).loss.backward()
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.error(n=11)
def test_the_body_sees_one_shape_in_both_phases():
    """So a compiled model is not compiled again at the switch."""
    model = make_model("llama")
    lm, shapes = SuperposedLM(model), set()
    model.model.layers[0].register_forward_pre_hook(lambda module, args: shapes.add(tuple(args[0].shape)))
    for bag_size in (8, 4, 1):
        lm(window_of(6, bag_size), bag_size)
    assert shapes == {(3, 6, 16)}


@pytest.mark.error(n=7)
def test_a_model_is_left_as_it_was(family):
    model = make_model(family)
    names, forward = set(model.state_dict()), model.forward.__func__
    lm = SuperposedLM(model)
    lm(window_of(4, 4), 4).loss.backward()
    assert set(model.state_dict()) == names
    assert model.forward.__func__ is forward
    assert not any("superpose" in key for key in model.config.to_dict())


@pytest.mark.error(n=6)
def test_a_model_that_scales_its_logits_is_refused():
    model = make_model("llama")
    SuperposedLM(model).check()

    class Scaled(type(model)):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * 30
            return output

    model.__class__ = Scaled
    with pytest.raises(ValueError, match="not supported"):
        SuperposedLM(model).check()


@pytest.mark.error(n=6)
@pytest.mark.parametrize(
    ("family", "setting"),
    [
        ("gemma2", {"final_logit_softcapping": 2.0, "num_key_value_heads": 1, "head_dim": 8}),
        ("cohere", {"logit_scale": 0.25}),
        ("granite", {"logits_scaling": 4.0}),
    ],
)
def test_logits_scaled_or_capped_as_the_config_says(family, setting, monkeypatch):
    config = AutoConfig.for_model(
        family,
        vocab_size=V,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
        **setting,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.normal_()  # so that scale and cap matter
    lm = SuperposedLM(model)
    lm.check()
    window = window_of(10, 1)
    logits = model(input_ids=window[:, :-1]).logits.flatten(0, 1)
    torch.testing.assert_close(lm(window).loss, F.cross_entropy(logits, window[:, 1:].flatten()))
    for known in ("SCALES", "SOFTCAPS"):
        monkeypatch.setattr(f"superpose.core.head.{known}", {})
    assert abs(lm(window).loss - F.cross_entropy(logits, window[:, 1:].flatten())) > 0.1
    with pytest.raises(ValueError, match="its own logits and those of its head differ"):
        lm.check()


def data_parallel_equals_one_process(rank, group):
    """DDP and FSDP2 on two ranks, each with half of the rows, in both phases: gradients of the whole step."""
    from torch.distributed.fsdp import fully_shard

    for family, bag_size, heads in (("llama", 4, 0), ("llama", 1, 0), ("gpt2", 4, 0), ("llama", 4, 2), ("gpt2", 1, 1)):
        window, weight = window_of(6, bag_size, rows=4), 0.3 if heads else None
        window[3, bag_size:] = IGNORE_INDEX  # positions that count differ between the ranks
        whole = SuperposedLM(make_model(family), extra_heads=heads)
        expected = whole(window, bag_size, extra_heads_weight=weight)
        expected.loss.backward()
        normalizer = expected.positions / group.size()
        for shard in (False, True):
            lm = SuperposedLM(make_model(family), extra_heads=heads)
            if shard:
                for layer in lm.model.base_model.children():
                    for block in layer if isinstance(layer, torch.nn.ModuleList) else ():
                        fully_shard(block)
                wrapped = fully_shard(lm)
            else:
                wrapped = torch.nn.parallel.DistributedDataParallel(lm)
            rows = window[2 * rank : 2 * rank + 2]
            part = wrapped(rows, bag_size, normalizer=normalizer, extra_heads_weight=weight)
            part.loss.backward()
            loss = part.loss.detach() / group.size()
            torch.distributed.all_reduce(loss)
            torch.testing.assert_close(loss, expected.loss.detach())
            for ours, theirs in zip(lm.parameters(), whole.parameters(), strict=True):
                gradient = ours.grad.full_tensor() if shard else ours.grad
                torch.testing.assert_close(gradient, theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.error(n=4)
@pytest.mark.error(n=11)
def test_data_parallel_gradients_are_those_of_the_whole_step():
    on_ranks(2, data_parallel_equals_one_process)


@pytest.mark.error(n=6)
@pytest.mark.parametrize("bag_size", [1, 4])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_inside_documents(family, bag_size, attention):
    """Two documents in a row: the hidden states of each alone, and no gradient from one to the other."""
    model = make_model(family).eval()
    model.set_attn_implementation(attention)
    lm = SuperposedLM(model, end_of_text=0)
    lm.check()
    first, second = (torch.randint(1, V, (2, latents, bag_size)) for latents in (3, 5))
    first[:, -1, -1] = 0
    both = torch.cat([first, second], dim=1)
    if bag_size == 1:
        first, second, both = (inputs.squeeze(-1) for inputs in (first, second, both))
    together, *_ = lm.parts().hidden_states(both)
    for inputs, part in ((first, together[:, :3]), (second, together[:, 3:])):
        torch.testing.assert_close(part, lm.parts().hidden_states(inputs)[0], rtol=1e-4, atol=1e-5)
    # Over the row, the second document sees the first.
    over_row, *_ = SuperposedLM(model).parts().hidden_states(both)
    assert (over_row[:, 3:] - together[:, 3:]).abs().max() > 1e-3


def test_attention_that_does_not_stay_inside_documents_is_refused(monkeypatch):
    lm = SuperposedLM(make_model("llama"), end_of_text=0)
    with pytest.raises(ValueError, match="takes no attention_mask"):
        lm(window_of(4, 1), attention_mask=torch.ones(3, 5))
    over_the_row = lambda inputs, end: torch.arange(inputs.shape[1])[None]  # noqa: E731
    monkeypatch.setattr("superpose.core.parts.document_positions", over_the_row)
    with pytest.raises(ValueError, match="does not keep attention inside documents"):
        lm.check()


@pytest.mark.error(n=6)
def test_an_embedding_that_scales_is_asked_and_not_bypassed():
    model = make_model("llama")
    window = window_of(4, 3)

    class Scaled(torch.nn.Embedding):
        def forward(self, ids):
            return super().forward(ids) * 2

    plain = model.get_input_embeddings()
    scaled = Scaled(*plain.weight.shape)
    scaled.weight.data = plain.weight.data / 2
    expected = SuperposedLM(model)(window, 3).loss
    model.set_input_embeddings(scaled)
    torch.testing.assert_close(SuperposedLM(model)(window, 3).loss, expected)


def test_a_model_without_a_head_is_refused():
    with pytest.raises(ValueError, match="ForCausalLM"):
        SuperposedLM(make_model("llama").model)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch.compile looks at hidden states
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe"])
def test_a_compiled_model_is_refused_and_a_compiled_loss_is_not(family):
    """The loss calls the model's parts: what was compiled as a whole would be trained uncompiled, without a word."""
    compiled = torch.compile(make_model(family), backend="eager")
    in_place = make_model(family)
    in_place.compile(backend="eager")
    for model in (compiled, in_place):
        with pytest.raises(ValueError, match=f"{type(in_place).__name__} is compiled, but the loss calls its parts"):
            SuperposedLM(model)
    window = window_of(6, 4)
    plain = SuperposedLM(make_model(family))
    plain(window, 4).loss.backward()
    for wrapped in (torch.compile(SuperposedLM(make_model(family)), backend="eager"), by_blocks(family)):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        wrapped(window, 4).loss.backward()
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
        for one, other in zip(wrapped.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-7)


def by_blocks(family):
    lm = SuperposedLM(make_model(family))
    for part in lm.model.base_model.children():
        for block in part if isinstance(part, torch.nn.ModuleList) else ():
            block.compile(backend="eager")
    return lm


def sharded_models(rank, group):
    """FSDP2 of the model alone is refused; of its blocks, embedding and head as units of their own it is not."""
    from torch.distributed.fsdp import fully_shard

    with pytest.raises(ValueError, match=r"LlamaForCausalLM is sharded as a whole.*fully_shard\(SuperposedLM"):
        SuperposedLM(fully_shard(make_model("llama")))
    for family, bag_size in (("llama", 4), ("llama", 1), ("gpt2", 4), ("gpt2", 1)):
        window = window_of(6, bag_size, rows=4)
        whole = SuperposedLM(make_model(family))
        expected = whole(window, bag_size)
        expected.loss.backward()
        model = make_model(family)
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        for unit in ([embedding, head],) if embedding.weight is head.weight else (embedding, head):
            fully_shard(unit)
        lm = fully_shard(SuperposedLM(model))
        for _ in range(2):
            lm.zero_grad()
            part = lm(window[len(window) // group.size() * rank :][: len(window) // group.size()], bag_size)
            part.loss.backward()
        for ours, theirs in zip(lm.parameters(), whole.parameters(), strict=True):
            torch.testing.assert_close(ours.grad.full_tensor(), theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_model_that_is_sharded_first_is_refused_and_its_parts_are_not(ranks):
    on_ranks(ranks, sharded_models)
