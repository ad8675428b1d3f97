import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from superpose import Schedule, cost
from superpose.models.build import model_flops_per_latent
from tests.conftest import make_model


@pytest.mark.error(n=12)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_flops_are_what_pytorch_counts(family):
    model = make_model(family)
    model.config._attn_implementation = "eager"  # whose products the counter sees, in full as the formula has them
    input_ids = torch.randint(0, 50, (3, 32))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=input_ids).logits.sum().backward()
    assert model_flops_per_latent(model, 32) * 3 * 32 == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.error(n=12)
def test_only_active_experts_are_counted():
    model = make_model("qwen3_moe")
    all_experts = model.config.num_experts
    few = model_flops_per_latent(model, 32)
    model.config.num_experts_per_tok = all_experts
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    assert model_flops_per_latent(model, 32) - few == 6 * experts // 2


@pytest.mark.error(n=12)
def test_the_four_axes_are_kept_apart():
    tst, ordinary = Schedule(100, 4, 0.3), Schedule(100)
    a, b = cost(tst, 64, lambda stage: 1000), cost(ordinary, 64, lambda stage: 1000)
    assert (a.latents, a.flops) == (b.latents, b.flops) == (6400, 6_400_000)
    assert (a.raw_tokens, b.raw_tokens) == (12160, 6400)
    assert cost(tst, 64, lambda stage: 1000, until=30) == type(a)(30, 1920, 7680, 1_920_000)
