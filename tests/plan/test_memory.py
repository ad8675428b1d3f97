from dataclasses import replace

import pytest
import torch

from superpose import Schedule, StageArgs
from superpose.core.linear_loss import chunk_positions, linear_multi_hot_cross_entropy
from superpose.core.model import SuperposedLM
from superpose.plan import memory as plan_memory
from superpose.plan.evidence import Setting
from superpose.plan.fit import request_of
from superpose.plan.memory import block_activations, head_memory, memory
from superpose.plan.model import facts
from superpose.plan.request import Request, Sharing
from superpose.train.step import build_state, optimizer_step
from tests.conftest import make_model
from tests.plan.test_model import config_of
from tests.train.test_loop import ALONE, changed

LATENTS = 256


def kept_for_backward(config, rows, monkeypatch):
    """Bytes a real model keeps in a real forward pass, by storage; parameters are not among them."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config).train()
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor, tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.base_model(inputs_embeds=torch.randn(rows, LATENTS, 16, requires_grad=True), use_cache=False)
    return sum(size for _, size in kept.values())


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_activations_are_what_a_real_forward_pass_keeps(family, monkeypatch):
    per_row, fixed = block_activations(config_of(family), LATENTS, "float32")
    configs = {layers: config_of(family) for layers in (2, 3)}
    for layers, config in configs.items():
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
    real = {layers: kept_for_backward(config, 4, monkeypatch) for layers, config in configs.items()}
    assert 4 * per_row + fixed == pytest.approx(real[3] - real[2], rel=0.02)


def test_experts_are_counted_too():
    per_row, _ = block_activations(config_of("qwen3_moe"), LATENTS, "bfloat16")
    wide, _ = block_activations(config_of("qwen3_moe"), LATENTS, "float32")
    assert wide == 2 * per_row > 0


def estimate(config, rows=4, **settings):
    return memory(Request(config, LATENTS, rows, 1, **settings), facts(config, LATENTS))


def test_gradients_are_whole_between_the_parts_of_a_step_unless_sharded():
    """One row at a time either way, on two devices."""
    config = config_of("llama")
    whole, sharded = (estimate(config, rows=4, parts=2, sharing=Sharing(2, 2, gradients=g)) for g in (False, True))
    assert whole.peak - sharded.peak == 4 * facts(config, LATENTS).parameters // 2
    one_part = (estimate(config, rows=2, sharing=Sharing(2, 2, gradients=g)) for g in (False, True))
    assert next(one_part) == next(one_part)


def test_the_state_is_arithmetic():
    config = config_of("llama")
    parameters = facts(config, LATENTS).parameters
    one = estimate(config)
    assert (one.weights, one.gradients, one.optimizer) == (4 * parameters, 4 * parameters, 8 * parameters)
    assert one.gathered == 0
    eight = estimate(config, sharing=Sharing(8, 8))
    assert eight.optimizer == one.optimizer // 8
    assert eight.gathered > 0
    assert estimate(config, optimizer="muon").optimizer < one.optimizer


def test_extra_heads_are_among_the_bytes_that_a_run_holds(recipe, store):
    """Against a tiny run after its first step: parameters, gradients as large, and the moments of the optimizers."""
    stages = [{"ratio": 0.2, "bag_size": 4, "extra_heads": 2}, {"ratio": 0.2, "bag_size": 2, "extra_heads": 1}]
    headed = changed(recipe, "superposition", bag_size=4, ratio=0.3, stages=stages)
    state, step = build_state(headed, store, ALONE), headed.schedule.step_at(0)
    optimizer_step(state, headed.train, step, headed.windows(store.train).read(store.train.tokens, 0), 1e-3)
    parameters = sum(p.nbytes for module in (state.model, state.lm.extra_heads) for p in module.parameters())
    kept = [each.state.values() for each in state.optimizers]
    moments = sum(t.nbytes for states in kept for of_one in states for t in of_one.values() if t.dim())
    request, plain = request_of(headed), request_of(recipe)
    model = facts(request.config, request.latents)
    found, without = memory(request, model), memory(plain, model)
    assert (found.weights, found.gradients, found.optimizer) == (parameters, parameters, moments)
    assert found.weights - without.weights == 4 * 2 * model.width**2
    positions = 2 * request.rows * request.latents
    assert found.head - without.head == head_memory("cpu", positions, model.width, 300)
    assert found.activations - without.activations == 8 * positions * model.width
    assert found.peak - found.base > without.peak - without.base
    assert memory(replace(request, setting=None), model).weights == without.weights, "what is recommended has none"


def test_the_live_peak_of_a_real_step_with_extra_heads():
    found, live = peaks_of_a_step(extra_heads=3)
    assert found == pytest.approx(live, rel=0.15)


def test_what_saves_memory_saves_it():
    config = config_of("llama")
    config.vocab_size = 5000
    one = estimate(config)
    assert one.head < one.head_whole
    assert one.peak < one.peak_whole
    assert estimate(config, checkpoint_activations=True).activations < one.activations
    assert estimate(config, rows=8).activations == pytest.approx(2 * one.activations, rel=0.01)


def test_the_live_peak_of_a_real_step():
    found, live = peaks_of_a_step()
    assert found == pytest.approx(live, rel=0.15)


def peaks_of_a_step(extra_heads=0):
    """Estimated, and by PyTorch's own tracker of what is allocated, in a step with its optimizer."""
    from torch.distributed._tools.mem_tracker import MemTracker

    model = make_model("llama", vocab_size=2000).train()
    lm, rows = SuperposedLM(model, extra_heads=extra_heads), 64
    optimizer = torch.optim.AdamW([*model.parameters(), *lm.extra_heads.parameters()])
    tracker = MemTracker()
    tracker.track_external(model, lm.extra_heads, optimizer)
    weight = {"extra_heads_weight": 0.3} if extra_heads else {}
    for _ in range(2):
        with tracker:
            lm(torch.randint(2000, (rows, LATENTS + 1 + extra_heads)), **weight).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        live = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
        tracker.reset_mod_stats()
    stages = [StageArgs(1.0, extra_heads=extra_heads)] if extra_heads else None
    of_heads = {"setting": Setting(1, 0.0), "schedule": Schedule(1, stages=stages)}
    found = estimate(model.config, rows, precision="float32", **of_heads)
    # The tracker does not look into the loss' operator, so its chunks are not in the live figure.
    return found.peak - found.base - found.head, live


def test_the_head_takes_what_the_loss_allocates():
    """The largest tensor of logits that the loss makes has as many positions as its rule says, and so has the plan."""
    from torch.utils._python_dispatch import TorchDispatchMode

    positions, width, vocab_size = 700, 16, 3000
    seen = set()

    class Shapes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.shape[-1:] == (vocab_size,) and out.dim() == 2:
                seen.add(out.shape[0])
            return out

    hidden = torch.randn(positions, width, requires_grad=True)
    head = torch.randn(vocab_size, width, requires_grad=True)
    with Shapes():
        linear_multi_hot_cross_entropy(hidden, head, torch.randint(vocab_size, (positions, 2)))
    chunk = chunk_positions("cpu", positions, width, vocab_size)
    assert max(seen, default=chunk) <= chunk
    gradients = 4 * (vocab_size * width + positions * width)
    assert head_memory("cpu", positions, width, vocab_size) - gradients == 4 * chunk * vocab_size


def test_the_heads_chunk_on_a_gpu_is_two_to_three_of_its_gradients():
    positions, width, vocab_size = 65_536, 2048, 128_256
    gradients = 4 * (vocab_size * width + positions * width)
    chunk = head_memory("cuda", positions, width, vocab_size) - gradients
    assert chunk == 4 * chunk_positions("cuda", positions, width, vocab_size) * vocab_size
    assert 2 < chunk / (4 * vocab_size * width) < 3


@pytest.mark.parametrize("wasteful", [False, True])
def test_checkpointed_activations_leave_holes_where_the_c_library_does_not_fill_them(monkeypatch, wasteful):
    monkeypatch.setattr(plan_memory, "_wastes_aligned_blocks", lambda: wasteful)
    config = config_of("llama")
    kept = estimate(config, rows=512, precision="float32", device="cpu")
    checkpointed = estimate(config, rows=512, precision="float32", device="cpu", checkpoint_activations=True)
    assert checkpointed.activations < kept.activations
    assert (checkpointed.peak - checkpointed.base >= kept.activations) == wasteful
