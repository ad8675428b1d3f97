"""The check refuses what it is for, each fault planted in a model that is right, and leaves everything as it was."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from superpose.core.model import SuperposedLM
from tiny_models import tiny_config, tiny_model


def with_forward(model, change):
    """The model with another forward pass of its own, its outputs given to `change`."""

    class Changed(type(model)):
        def forward(self, *args, **named):
            output = super().forward(*args, **named)
            output.logits = change(self, output.logits, named)
            return output

    model.__class__ = Changed
    return model


def scaled(model):
    return with_forward(model, lambda self, logits, named: logits * 0.0195)


def capped(model):
    return with_forward(model, lambda self, logits, named: 15 * torch.tanh(logits / 15))


def biased(model):
    model.extra = nn.Parameter(torch.zeros(300))
    return with_forward(model, lambda self, logits, named: logits + self.extra)


def cut(model):
    return with_forward(model, lambda self, logits, named: logits[..., :-8])


def looks_at_the_next(model):
    layer = model.model.layers[0]
    return hooked(layer, lambda hidden: hidden + hidden.roll(-1, dims=1))


def looks_at_other_rows(model):
    return hooked(model.model.layers[0], lambda hidden: hidden + hidden.mean(dim=0, keepdim=True))


def hooked(layer, change):
    layer.register_forward_hook(lambda module, inputs, output: change(output))


def reads_ids(model):
    """A table beside the embedding, which `inputs_embeds` goes past."""
    model.model.beside = nn.Embedding(300, 32)
    embed = model.model.forward

    def forward(input_ids=None, inputs_embeds=None, **named):
        if inputs_embeds is None:
            inputs_embeds = model.model.embed_tokens(input_ids) + model.model.beside(input_ids)
        return embed(inputs_embeds=inputs_embeds, **named)

    model.model.forward = forward
    return model


def needs_ids(model):
    def forward(input_ids=None, **named):
        raise RuntimeError("input_ids are needed\nhere")

    model.model.forward = forward
    return model


def not_linear(model):
    """An embedding of bags that is not the mean: how many tokens come in is part of what goes on."""
    embed = model.model.forward

    def forward(input_ids=None, inputs_embeds=None, **named):
        vectors = model.model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        return embed(inputs_embeds=vectors, **named)

    model.model.forward = forward

    class Noisy(nn.Embedding):
        def forward(self, ids):
            return super().forward(ids) * (1.0 if ids.shape[-1] <= 8 else 2.0)

    table = Noisy(300, 32)
    table.weight = model.model.embed_tokens.weight
    model.set_input_embeddings(table)
    return model


def trains_a_part(model):
    """A layer that only the model's own forward pass reaches."""
    model.beside = nn.Linear(32, 300, bias=False)
    nn.init.zeros_(model.beside.weight)

    def change(self, logits, named):
        return logits + self.beside.weight.sum() * 0 + (self.beside.weight.sum() - self.beside.weight.sum().detach())

    return with_forward(model, change)


@pytest.mark.error(n=6)
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (scaled, "multiplies its logits by 0.0195"),
        (capped, "does more than its head to its logits"),
        (biased, "does more than its head to its logits"),
        (cut, r"gives logits \[8, 292\], its head \[8, 300\]"),
        (reads_ids, "reads tokens by more than its embedding"),
        (needs_ids, "cannot be run by its own forward pass: input_ids are needed$"),
        (looks_at_the_next, "looks ahead: other tokens from place 4 on"),
        (looks_at_other_rows, "looks ahead"),
        (not_linear, "something else of a bag of equal tokens"),
        (trains_a_part, "no gradient reaches beside.weight, which the model's own loss trains"),
    ],
)
def test_a_fault_is_refused(fault, said):
    model = tiny_model("llama")
    SuperposedLM(model).check()
    fault(model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=said):
        SuperposedLM(model).check()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("family", "settings", "said"),
    [
        ("bert", {"is_decoder": False}, "looks ahead.*set is_decoder=True"),
        ("megatron-bert", {"is_decoder": False}, "looks ahead"),
        ("cpmant", {}, "cannot be run by its embeddings"),
        ("prophetnet", {}, "does more than its head"),
    ],
)
def test_families_that_cannot_be_trained_are_refused(family, settings, said):
    with pytest.raises(ValueError, match=said):
        SuperposedLM(tiny_model(family, **settings)).check()


@pytest.mark.error(n=6)
@pytest.mark.parametrize("family", ["jamba", "falcon_h1", "mamba2", "bloom", "granitemoehybrid"])
def test_state_that_carries_over_documents_is_refused(family):
    model = tiny_model(family)
    SuperposedLM(model).check()
    with pytest.raises(ValueError, match="does not keep attention inside documents"):
        SuperposedLM(model, end_of_text=1).check()


def test_a_router_loss_of_its_own_is_refused(monkeypatch):
    model = tiny_model("mixtral")
    monkeypatch.setattr("superpose.core.model.balance_loss", lambda *args: (torch.tensor(3.0), torch.ones(4) / 4))
    with pytest.raises(
        ValueError, match=r"balances its experts by a loss that is not supported: its own is 2\.\d+, ours 3"
    ):
        SuperposedLM(model).check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["gpt2", "deepseek_v3", "gemma2", "granitemoehybrid"])
def test_everything_is_left_as_it_was(family, dtype):
    model = tiny_model(family).to(dtype)
    model.eval()
    model.get_input_embeddings().train()
    first = next(model.parameters())
    first.grad = torch.ones_like(first)
    lm = SuperposedLM(model)
    state = {name: tensor.clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    modes = {name: module.training for name, module in lm.named_modules()}
    random = torch.get_rng_state()
    lm.check()
    lm.balance()  # what the check chose is no step's
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        assert torch.equal(tensor, state[name]), name
    assert {name: module.training for name, module in lm.named_modules()} == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(first.grad, torch.ones_like(first))
    assert all(parameter.grad is None for parameter in list(model.parameters())[1:])
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_weights_that_no_loss_trains_are_named():
    untrained = SuperposedLM(tiny_model("bart")).check()
    assert untrained
    assert all("encoder_attn" in name for name in untrained)
    model = tiny_model("llama")
    model.model.norm.weight.requires_grad_(False)
    assert SuperposedLM(model).check() == []


def test_weights_of_a_bag_are_no_matter_of_the_check():
    lm = SuperposedLM(tiny_model("llama"), weighting=[4.0, 3.0, 2.0, 1.0])
    assert lm.check() == []
    assert lm.weighting == [4.0, 3.0, 2.0, 1.0]


def test_a_row_of_a_few_positions_is_enough():
    SuperposedLM(tiny_model("gpt2", n_positions=64, max_position_embeddings=64)).check()
    config = tiny_config("gpt2")
    config.n_positions = 4
    SuperposedLM(AutoModelForCausalLM.from_config(config)).check()
