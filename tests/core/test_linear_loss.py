import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from superpose import (
    IGNORE_INDEX,
    VocabShard,
    bag_weights,
    count_positions,
    linear_multi_hot_cross_entropy,
    multi_hot_cross_entropy,
)
from superpose.core import linear_loss, passes, sweep
from superpose.core.multi_hot_op import linear_multi_hot, linear_multi_hot_gradients
from superpose.core.sweep import Settings
from tests.core.test_loss import V, bags, reductions
from tests.ranks import on_ranks

D = 3
PRODUCTS = {"aten::mm": 0, "aten::addmm": 1, "aten::addmm_": 1}
"""Where a product's operands stand among its arguments."""


def whole_logits(hidden, head, targets, weights=None, bias=None, softcap=None, vocab_size=None, **options):
    """The definition: logits in full, then the loss on them."""
    logits = F.linear(hidden, head, bias)[..., :vocab_size]
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    return multi_hot_cross_entropy(logits, targets, weights, **options)


def leaves(positions, vocab_size=V, width=D, dtype=torch.float64, seed=0):
    """hidden [N, D], head [V, D] and bias [V], all to be differentiated."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (positions, width), (vocab_size, width), (vocab_size,)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


options = st.fixed_dictionaries(
    {
        "reduction": reductions,
        "z_loss": st.sampled_from([0.0, 0.1]),
        "softcap": st.sampled_from([None, 1.5]),
    }
)


@pytest.mark.error(n=4)
@pytest.mark.error(n=6)
@given(bags(), options, st.integers(1, 7), st.booleans(), st.integers(0, 2))
def test_equals_whole_logits(bag, options, chunk, with_bias, padding):
    targets, weights = bag
    hidden, head, bias = leaves(len(targets), V + padding)
    bias = bias if with_bias else None
    wanted = [leaf for leaf in (hidden, head, bias) if leaf is not None]
    options = {**options, "vocab_size": V if padding else None}
    expected = whole_logits(hidden, head, targets, weights, bias, **options)
    loss = linear_multi_hot_cross_entropy(hidden, head, targets, weights, bias, chunk_positions=chunk, **options)
    torch.testing.assert_close(loss, expected)
    upstream = torch.randn_like(loss)
    for ours, theirs in zip(
        torch.autograd.grad((loss * upstream).sum(), wanted),
        torch.autograd.grad((expected * upstream).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("chunk", [3, 9])
def test_rows_that_a_gpu_adds_to_the_head_change_nothing(monkeypatch, dtype, native, chunk):
    """On a CPU, which adds none, they are added all the same."""
    monkeypatch.setattr(linear_loss, "_CPU_HALVES", {torch.bfloat16} if native else set())
    operands, targets = leaves(9, V + 2, dtype=dtype), torch.randint(0, V, (9, 3))

    def loss_and_gradients():
        hidden, head, bias = operands
        loss = linear_multi_hot_cross_entropy(
            hidden, head, targets, bias=bias, softcap=3.0, z_loss=0.1, vocab_size=V, chunk_positions=chunk
        )
        return [loss, *torch.autograd.grad(loss, operands)]

    expected = loss_and_gradients()
    monkeypatch.setattr(sweep, "_missing_rows", lambda *_: 5)
    for ours, theirs in zip(loss_and_gradients(), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("extra", [{}, {"z_loss": 0.1, "softcap": 2.0, "vocab_size": V - 1}])
def test_gradients_by_finite_differences(reduction, extra):
    targets = torch.tensor([[0, 0, 5], [1, IGNORE_INDEX, 2], [IGNORE_INDEX] * 3, [5, 3, 4]])
    assert torch.autograd.gradcheck(
        lambda hidden, head, bias: linear_multi_hot_cross_entropy(
            hidden, head, targets, bag_weights(3, "power"), bias, reduction=reduction, chunk_positions=3, **extra
        ),
        leaves(4),
    )


@given(st.integers(1, 40), st.integers(1, 8))
def test_one_target_a_position_is_ordinary_cross_entropy(positions, chunk_positions):
    hidden, head, _ = leaves(positions)
    targets = torch.randint(0, V, (positions,))
    targets[0] = IGNORE_INDEX
    expected = F.cross_entropy(hidden @ head.T, targets, reduction="sum")
    for shaped in (targets, targets[:, None]):
        loss = linear_multi_hot_cross_entropy(hidden, head, shaped, reduction="sum", chunk_positions=chunk_positions)
        torch.testing.assert_close(loss, expected)


@pytest.mark.error(n=4)
@pytest.mark.parametrize("positions", [0, 4])
def test_a_batch_without_a_target_is_zero_not_nan(positions):
    hidden, head, _ = leaves(positions)
    targets = torch.full((positions, 3), IGNORE_INDEX)
    value = linear_multi_hot_cross_entropy(hidden, head, targets, z_loss=1.0)
    value.backward()
    assert value.item() == 0
    assert (hidden.grad == 0).all()
    assert (head.grad == 0).all()


@pytest.mark.error(n=4)
@given(bags(), st.data())
def test_cutting_a_step_into_parts_changes_nothing(bag, data):
    targets, weights = bag
    cut = data.draw(st.integers(0, len(targets)))
    hidden, head, _ = leaves(len(targets))
    whole = linear_multi_hot_cross_entropy(hidden, head, targets, weights)
    parts = sum(
        linear_multi_hot_cross_entropy(hidden[part], head, targets[part], weights, reduction="sum")
        for part in (slice(0, cut), slice(cut, None))
    )
    torch.testing.assert_close(whole, parts / count_positions(targets, weights).clamp(min=1))


def watched(run):
    """FLOPs of the matrix products and elements of the largest tensor that `run` takes part in."""
    with profile(record_shapes=True) as seen:
        run()
    events = [(event.name, event.input_shapes) for event in seen.events() if event.input_shapes]
    flops = 0
    for name, shapes in events:
        if name in PRODUCTS:
            (n, k), (_, m) = shapes[PRODUCTS[name] :][:2]
            flops += 2 * n * k * m
    return flops, max(torch.Size(shape).numel() for _, shapes in events for shape in shapes)


@pytest.mark.error(n=3)
def test_one_head_product_for_the_whole_bag_and_never_all_logits():
    positions, width, vocab_size, bag_size, chunk_positions = 64, 8, 256, 16, 8
    hidden, head, _ = leaves(positions, vocab_size, width, torch.float32)
    targets = torch.randint(0, vocab_size, (positions, bag_size))
    product = 2 * positions * width * vocab_size

    def loss():
        return linear_multi_hot_cross_entropy(hidden, head, targets, chunk_positions=chunk_positions)

    flops, largest = watched(lambda: loss().backward())
    assert flops == 3 * product
    assert largest <= vocab_size * max(chunk_positions, width)
    assert watched(torch.no_grad()(loss))[0] == product
    head.requires_grad_(False)
    assert watched(lambda: loss().backward())[0] == 2 * product


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_heads_gradient_is_held_once(dtype):
    """The one that is formed is scaled where it is and becomes that of the parameter."""
    held = set()  # addresses: a reference would keep the parameter from taking the gradient as it is

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple) else (out,):
                if isinstance(tensor, torch.Tensor) and tensor.numel() == head.numel():
                    held.add(tensor.data_ptr())
            return out

    hidden, head, _ = leaves(8, 64, 16, dtype)
    with Largest():
        linear_multi_hot_cross_entropy(hidden, head, torch.randint(0, 64, (8, 2))).backward()
    assert held == {head.grad.data_ptr()}


def test_a_chunk_in_half_precision_is_never_copied_whole(monkeypatch):
    """Nor into another dtype inside an operation of PyTorch."""
    monkeypatch.setattr(linear_loss, "_CPU_HALVES", {torch.bfloat16})
    positions, vocab_size = 64, 256
    monkeypatch.setattr(passes, "_BLOCK", positions * vocab_size // 8 // torch.get_num_threads())
    hidden, head, _ = leaves(positions, vocab_size, 8, torch.bfloat16)
    targets = torch.randint(0, vocab_size, (positions, 4))
    with profile(record_shapes=True) as seen:
        linear_multi_hot_cross_entropy(hidden, head, targets, chunk_positions=positions).backward()
    copied = [event.input_shapes[0] for event in seen.events() if event.name == "aten::copy_"]
    assert [positions // 8, vocab_size] in copied
    assert max(torch.Size(shape).numel() for shape in copied) == positions * vocab_size // 8


def test_gradients_are_added_up_over_backward_passes():
    """What was given away is not what the next pass scales."""
    hidden, head, _ = leaves(8)
    loss = linear_multi_hot_cross_entropy(hidden, head, torch.randint(0, V, (8, 2)))
    expected = torch.autograd.grad(loss, (hidden, head), retain_graph=True)
    for factor in (1.0, 2.0, 0.0, 3.0):
        (factor * loss).backward(retain_graph=True)
    for leaf, gradient in zip((hidden, head), expected, strict=True):
        torch.testing.assert_close(leaf.grad, 6 * gradient)


def test_positions_whose_loss_is_not_asked_for_have_no_gradient():
    hidden, head, _ = leaves(8)
    losses = linear_multi_hot_cross_entropy(hidden, head, torch.randint(0, V, (8, 2)), reduction="none", z_loss=0.1)
    losses[3:5].sum().backward()
    assert (hidden.grad.norm(dim=1) > 0).tolist() == [False] * 3 + [True] * 2 + [False] * 3
    assert head.grad.isfinite().all()


def test_a_second_backward_gives_the_same_again():
    hidden, head, _ = leaves(8)
    loss = linear_multi_hot_cross_entropy(hidden, head, torch.randint(0, V, (8, 2)))
    first = torch.autograd.grad(loss, (hidden, head), retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(loss, (hidden, head)), strict=True):
        assert torch.equal(a, b)


def test_a_second_derivative_is_refused_rather_than_wrong():
    hidden, head, _ = leaves(8)
    loss = linear_multi_hot_cross_entropy(hidden, head, torch.randint(0, V, (8, 2))) ** 2
    (gradient,) = torch.autograd.grad(loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_accumulated_in_float32(monkeypatch, dtype, native):
    """Whether or not the products are in half precision: value within 1e-3 of float64's, gradients no farther from
    float64's than the plain loss on whole logits, and within the dtype's own rounding of the result."""
    monkeypatch.setattr(linear_loss, "_CPU_HALVES", {torch.bfloat16, torch.float16} if native else set())
    torch.manual_seed(0)
    hidden, head = torch.randn(256, 32), 0.1 * torch.randn(512, 32)
    hidden, head = (leaf.to(dtype).requires_grad_() for leaf in (hidden, head))
    targets = torch.randint(0, 512, (256, 4))
    exact = multi_hot_cross_entropy(hidden.double() @ head.double().T, targets)
    plain = multi_hot_cross_entropy(hidden @ head.T, targets)
    ours = linear_multi_hot_cross_entropy(hidden, head, targets, chunk_positions=16)
    assert ours.dtype == torch.float32
    assert abs(ours.item() - exact.item()) < 1e-3
    truths, plains, gradients = (torch.autograd.grad(loss, (hidden, head)) for loss in (exact, plain, ours))
    for truth, theirs, gradient in zip(truths, plains, gradients, strict=True):
        assert gradient.dtype == dtype
        error, plain_error = ((g.double() - truth.double()).norm() / truth.double().norm() for g in (gradient, theirs))
        assert error <= 1.05 * plain_error + torch.finfo(dtype).eps / 4
        assert error < torch.finfo(dtype).eps


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_autocast_runs_the_products_in_its_dtype(monkeypatch, reduction, native):
    monkeypatch.setattr(linear_loss, "_CPU_HALVES", {torch.bfloat16, torch.float16} if native else set())
    torch.manual_seed(0)
    hidden, head, bias = leaves(64, 512, 32, torch.float32)
    targets = torch.randint(0, 512, (64, 4))
    exact = multi_hot_cross_entropy(hidden.double() @ head.double().T + bias.double(), targets)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_multi_hot_cross_entropy(hidden, head, targets, bias=bias, reduction=reduction).mean()
    loss.backward()
    error = abs(loss.item() - exact.item())
    assert 1e-5 < error < 5e-2 if native else error < 1e-4
    assert hidden.grad.dtype == head.grad.dtype == bias.grad.dtype == torch.float32


@pytest.mark.parametrize("weighting", ["uniform", "power"])
def test_the_same_bits_every_time(weighting):
    """Also where bags hold a token many times, on several threads, and where PyTorch is told to insist on it."""
    hidden, head, _ = leaves(64, 5, 8, torch.float32)
    targets = torch.randint(0, 5, (64, 16))

    def gradients():
        loss = linear_multi_hot_cross_entropy(hidden, head, targets, bag_weights(16, weighting), chunk_positions=8)
        return [loss, *torch.autograd.grad(loss, (hidden, head))]

    first = gradients()
    torch.use_deterministic_algorithms(True)
    try:
        runs = [gradients() for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for run in runs for a, b in zip(first, run, strict=True))


def sample_operands():
    hidden, head, bias = leaves(5, dtype=torch.float32)
    settings = Settings([True] * 3, 0.1, 2.0, V, 0, 2, "", torch.float32)
    return [hidden, head, bias, torch.randint(0, V, (5, 2)), torch.full((5, 2), 0.5)], settings.packed()


@pytest.mark.parametrize("form_gradients", [True, False])
def test_the_operator_keeps_pytorchs_contract(form_gradients):
    """Schema, shape function, autograd registration and what torch.compile makes of them."""
    operands, settings = sample_operands()
    torch.library.opcheck(linear_multi_hot, [*operands, form_gradients, *settings])


def test_the_gradients_operator_keeps_pytorchs_contract():
    operands, settings = sample_operands()
    operands = [operand.detach() for operand in operands]
    torch.library.opcheck(linear_multi_hot_gradients, [*operands, torch.randn(5), *settings])


@pytest.mark.parametrize(
    ("reduction", "dtype", "dynamic"),
    [
        ("mean", torch.float64, False),
        ("mean", torch.bfloat16, False),
        ("mean", torch.float32, True),
        ("none", torch.float64, False),
    ],
)
def test_compiled_it_is_one_operator_of_one_graph(reduction, dtype, dynamic):
    seen = []

    def count(graph, inputs):
        from torch._dynamo.backends.debugging import aot_eager

        seen.append(sum("linear_multi_hot" in str(node.target) for node in graph.graph.nodes))
        return aot_eager(graph, inputs)

    def step(hidden, head, targets):
        return linear_multi_hot_cross_entropy(hidden * 2, head, targets, reduction=reduction, chunk_positions=4).mean()

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend=count)
    for positions in (10, 12) if dynamic else (10,):
        hidden, head, _ = leaves(positions, dtype=dtype)
        targets = torch.randint(0, V, (positions, 3))
        if dynamic:
            torch._dynamo.mark_dynamic(hidden, 0)
            torch._dynamo.mark_dynamic(targets, 0)
        for a, b in zip(
            torch.autograd.grad(compiled(hidden, head, targets), (hidden, head)),
            torch.autograd.grad(step(hidden, head, targets), (hidden, head)),
            strict=True,
        ):
            torch.testing.assert_close(a, b)
    assert seen == [1]


def test_inside_activation_checkpointing():
    hidden, head, _ = leaves(8)
    targets = torch.randint(0, V, (8, 2))

    def loss(hidden, head):
        return linear_multi_hot_cross_entropy(hidden.tanh(), head, targets)

    expected = torch.autograd.grad(loss(hidden, head), (hidden, head))
    kept = torch.autograd.grad(checkpoint(loss, hidden, head, use_reentrant=False), (hidden, head))
    for a, b in zip(expected, kept, strict=True):
        torch.testing.assert_close(a, b)


def test_a_head_tied_to_the_embedding_gets_both_gradients():
    _, table, _ = leaves(0)
    input_ids, targets = torch.randint(0, V, (8,)), torch.randint(0, V, (8, 2))
    ours = linear_multi_hot_cross_entropy(F.embedding(input_ids, table), table, targets)
    expected = whole_logits(F.embedding(input_ids, table), table, targets)
    torch.testing.assert_close(*(torch.autograd.grad(loss, table)[0] for loss in (ours, expected)))


CASES = [
    {},
    {"reduction": "none"},
    {"softcap": 2.0, "z_loss": 0.1},
    {"vocab_size": 5, "reduction": "sum"},
    # All of the second rank's part is padding.
    {"vocab_size": 3},
]


def shards_equal_the_whole(rank, group):
    """On two ranks with shards of 4 and 3 rows: loss and gradients of the whole head, the same on both."""
    for case in CASES:
        hidden, head, bias = leaves(9)
        targets = torch.randint(0, case.get("vocab_size", V), (9, 4), generator=torch.Generator().manual_seed(1))
        targets[2, 1] = targets[5] = IGNORE_INDEX
        weights = bag_weights(4, "power")
        expected = whole_logits(hidden, head, targets, weights, bias, **case)
        start, stop = (0, 4) if rank == 0 else (4, 7)
        shard, part = (leaf[start:stop].detach().requires_grad_() for leaf in (head, bias))
        states = hidden.detach().requires_grad_()
        options = {"vocab_size": V, "shard": VocabShard(start, group), "chunk_positions": 2, **case}
        loss = linear_multi_hot_cross_entropy(states, shard, targets, weights, part, **options)
        torch.testing.assert_close(loss, expected)
        upstream = torch.linspace(-1, 1, 9, dtype=torch.float64) if loss.dim() else torch.tensor(0.7)
        truth = torch.autograd.grad((expected * upstream).sum(), (hidden, head, bias))
        ours = torch.autograd.grad((loss * upstream).sum(), (states, shard, part))
        for a, b in zip(ours, (truth[0], truth[1][start:stop], truth[2][start:stop]), strict=True):
            torch.testing.assert_close(a, b)


def test_a_head_sharded_over_the_vocabulary():
    on_ranks(2, shards_equal_the_whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"softcap": 0.0}, "softcap"),
        ({"vocab_size": V + 1}, "vocab_size"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"chunk_positions": 0}, "chunk_positions"),
        ({"bias": torch.zeros(V + 1)}, "bias"),
        ({"lm_head_weight": torch.zeros(V, D + 1)}, "lm_head_weight"),
        ({"targets": torch.zeros(3, 2, dtype=torch.long)}, "do not belong"),
        ({"reduction": "average"}, "choose one of"),
    ],
)
def test_wrong_settings_are_refused(change, message):
    settings = {
        "hidden": torch.zeros(4, D),
        "lm_head_weight": torch.zeros(V, D),
        "targets": torch.zeros(4, 2, dtype=torch.long),
    }
    with pytest.raises(ValueError, match=message):
        linear_multi_hot_cross_entropy(**{**settings, **change})


def test_a_sharded_head_outside_its_module_is_named():
    class Sharded(torch.Tensor):
        def to_local(self):
            return self

    head = torch.zeros(V, 4).as_subclass(Sharded)
    with pytest.raises(ValueError, match="DTensor"):
        linear_multi_hot_cross_entropy(torch.zeros(2, 4), head, torch.zeros(2, dtype=torch.long))


def test_a_large_logit_neither_overflows_nor_loses_the_loss():
    hidden, head = torch.tensor([[1e4], [-1e4]]), torch.tensor([[1.0], [0.5], [-1.0]])
    loss = linear_multi_hot_cross_entropy(hidden, head, torch.tensor([[0], [0]]), reduction="none")
    torch.testing.assert_close(loss, torch.tensor([0.0, 2e4]))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@given(st.integers(1, 10**6), st.integers(8, 8192), st.integers(100, 300_000), st.sampled_from([2, 4]))
def test_chunks_move_four_times_what_is_moved_between_them(device, positions, width, vocab_size, itemsize):
    chunk = linear_loss.chunk_positions(device, positions, width, vocab_size, itemsize)
    once = 8 * vocab_size * width + linear_loss._START_BYTES["cpu" if device == "cpu" else "gpu"]
    wanted = 4 * once / (5 * vocab_size * itemsize)
    assert 1 <= chunk <= min(positions, wanted + 1)
    # Chunks of one size: none is less than half of what the bytes ask for.
    assert chunk == positions or chunk >= wanted / 2 - 1


@pytest.mark.parametrize(
    ("device", "positions", "width", "vocab_size", "itemsize", "expected"),
    [
        ("cpu", 2048, 64, 1024, 2, 2048),  # the demo: one chunk
        ("cpu", 16_384, 768, 50_304, 4, 1261),
        ("cuda", 65_536, 4096, 128_256, 2, 16_384),  # a gradient of 2 GB is added up four times
        ("cpu", 0, 16, 0, 4, 1),  # no positions, or a shard without vocabulary
    ],
)
def test_chunks_follow_the_device_and_the_shapes(device, positions, width, vocab_size, itemsize, expected):
    assert linear_loss.chunk_positions(device, positions, width, vocab_size, itemsize) == expected
