import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from superpose.core.experts import balance_loss, router_biases
from superpose.core.fold import IGNORE_INDEX
from superpose.core.model import SuperposedLM
from tests.ranks import on_ranks
from tiny_models import tiny_model


def slow(router_logits: list[Tensor], chosen: int, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Latent by latent, expert by expert, in float64."""
    experts = router_logits[0].shape[-1]
    choices, probability, latents = torch.zeros(experts).double(), torch.zeros(experts).double(), 0
    for layer in router_logits:
        for row, counts in zip(layer.double().flatten(0, -2), mask.flatten(), strict=True):
            if counts:
                probabilities = row.softmax(0)
                probability = probability + probabilities
                choices[probabilities.topk(chosen).indices] += 1
                latents += 1
    return experts * (choices / latents * probability / latents).sum(), choices / latents / chosen


@pytest.mark.parametrize("chosen", [1, 3])
def test_it_equals_a_slow_reference(chosen):
    torch.manual_seed(0)
    layers = [torch.randn(2, 7, 5) for _ in range(3)]
    mask = torch.rand(2, 7) > 0.3
    loss, load = balance_loss(layers, chosen, mask)
    expected, expected_load = slow(layers, chosen, mask)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(load.double(), expected_load)
    assert load.sum().item() == pytest.approx(1)


def test_it_is_what_transformers_computes():
    from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

    torch.manual_seed(0)
    layers = tuple(torch.randn(12, 6) for _ in range(2))
    mask = (torch.rand(3, 4) > 0.3).long()
    torch.testing.assert_close(balance_loss(layers, 2)[0], load_balancing_loss_func(layers, 6, 2))
    torch.testing.assert_close(balance_loss(layers, 2, mask)[0], load_balancing_loss_func(layers, 6, 2, mask))


def test_an_even_load_costs_as_many_as_are_chosen():
    even = torch.eye(4).repeat(3, 1) * 20  # each expert is the first choice of as many latents
    loss, load = balance_loss([even], 1)
    assert loss.item() == pytest.approx(1, abs=1e-4)
    assert load.tolist() == [0.25] * 4


def ranks_equal_one_process(rank, group):
    torch.manual_seed(0)
    layers = [torch.randn(8, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    whole, load = balance_loss(layers, 2)
    whole.backward()
    expected = [layer.grad[4 * rank : 4 * rank + 4].clone() for layer in layers]
    mine = [layer.detach()[4 * rank : 4 * rank + 4].requires_grad_() for layer in layers]
    part, part_load = balance_loss(mine, 2, group=group)
    part.backward()
    mean = part.detach() / 2
    dist.all_reduce(mean)
    torch.testing.assert_close(mean, whole.detach())
    torch.testing.assert_close(part_load, load)
    for ours, theirs in zip(mine, expected, strict=True):
        torch.testing.assert_close(ours.grad / 2, theirs)


@pytest.mark.error(n=4)
def test_ranks_count_the_load_together():
    on_ranks(2, ranks_equal_one_process)


def window() -> Tensor:
    return torch.randint(2, 300, (2, 3 * 9))


@pytest.mark.error(n=6)
@pytest.mark.parametrize("family", ["deepseek_v3", "ernie4_5_moe", "afmoe", "longcat_flash"])
def test_biases_move_towards_an_even_load(family):
    """By the rate, against what was chosen since they moved last: counted here from what the experts were given."""
    lm = SuperposedLM(tiny_model(family))
    layers = [module for name, module in lm.model.named_modules() if name.endswith(".experts")]
    chosen: list[list[Tensor]] = [[] for _ in layers]
    for number, layer in enumerate(layers):
        layer.register_forward_pre_hook(lambda module, inputs, number=number: chosen[number].append(inputs[1]))
    for _ in range(2):  # accumulation
        lm(window(), 3).loss.backward()
    with torch.no_grad():
        lm(window(), 3)  # a validation
    biases = [getattr(module, name) for module, name, _ in lm.biases._routers]
    before = [bias.clone() for bias in biases]
    lm.balance()
    assert len(biases) == len(layers) > 0
    for bias, old, picks in zip(biases, before, chosen, strict=True):
        counts = torch.bincount(torch.cat([part.flatten() for part in picks[:2]]), minlength=bias.numel()).double()
        expected = old + 1e-3 * (counts.mean() - counts).sign().view_as(old)
        torch.testing.assert_close(bias, expected.to(bias.dtype))
        assert (bias != old).any()
    moved = [bias.clone() for bias in biases]
    lm.balance()  # nothing was chosen since
    assert all(torch.equal(bias, old) for bias, old in zip(biases, moved, strict=True))


@pytest.mark.error(n=6)
@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3"])
def test_latents_that_hold_nothing_are_no_load(family):
    model = tiny_model(family)
    lm = SuperposedLM(model)
    short = window()[:, :18]
    padded = torch.cat([torch.full((2, 9), IGNORE_INDEX), short], dim=1)
    mask = (padded != IGNORE_INDEX).long()
    # Positions differ with padding, so the routers are asked of the padded rows' own latents.
    lm(padded, 3, attention_mask=mask)
    counts = torch.stack(lm.biases._counts).sum(dim=1) if lm.biases else None
    output = lm(padded, 3, attention_mask=mask)
    assert output.positions == 2 * 5
    assert output.expert_load.sum().item() == pytest.approx(1)
    if counts is not None:
        assert counts.tolist() == [2 * 5 * 2] * len(counts)
    else:
        latents = (mask.view(2, 9, 3).any(dim=-1))[:, :-1]
        logits = []
        for layer in model.model.layers:
            layer.mlp.gate.register_forward_hook(lambda module, inputs, output: logits.append(output[0]))
        again = lm(padded, 3, attention_mask=mask)
        expected, _ = slow(logits, 2, latents)
        torch.testing.assert_close(again.router_loss.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_family_balances_by_default():
    """Without `output_router_logits`, which is off in most configurations."""
    model = tiny_model("mixtral")
    assert not model.config.output_router_logits
    output = SuperposedLM(model)(window(), 3)
    torch.testing.assert_close(output.loss, output.cross_entropy + model.router_aux_loss_coef * output.router_loss)
    model.router_aux_loss_coef = 0.0
    output = SuperposedLM(model)(window(), 3)
    torch.testing.assert_close(output.loss, output.cross_entropy)


def test_experts_without_balance_are_known():
    assert SuperposedLM(tiny_model("aria_text")).unbalanced
    assert not any(SuperposedLM(tiny_model(family)).unbalanced for family in ("llama", "mixtral", "deepseek_v3"))


def biases_count_over_all_ranks(rank, group):
    torch.manual_seed(0)
    rows = window().repeat(2, 1)
    rows[2:] = rows[2:].flip(1)
    whole, part = (SuperposedLM(tiny_model("deepseek_v3"), group=of) for of in (None, group))
    for lm in (whole, part):  # so that no choice hangs on the order of a sum
        lm.model.model.layers[1].mlp.gate.weight.data *= 100
    whole(rows, 3).loss.backward()
    part(rows[2 * rank : 2 * rank + 2], 3).loss.backward()
    for lm in (whole, part):
        lm.balance()
    for name, bias in router_biases(whole.model).items():
        assert torch.equal(bias, router_biases(part.model)[name])


def test_ranks_move_their_biases_together():
    on_ranks(2, biases_count_over_all_ranks)
