import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from superpose.core.experts import balance_loss
from tests.ranks import on_ranks


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
