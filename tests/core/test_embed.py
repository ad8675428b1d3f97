from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.profiler import profile

from superpose import IGNORE_INDEX, embed_bags
from superpose.core import embed
from superpose.core.embed import Pooling


def reference(input_ids, weight, pooling="mean"):
    """What is made of valid tokens, one bag at a time, in float64."""
    out = torch.zeros(*input_ids.shape[:-1], weight.shape[1], dtype=torch.float64) + 0 * weight.sum()
    for place in torch.cartesian_prod(*[torch.arange(n) for n in input_ids.shape[:-1]]).view(-1, input_ids.dim() - 1):
        bag = input_ids[tuple(place)]
        valid = bag != IGNORE_INDEX
        if not valid.any():
            continue
        vectors = weight.double()[bag[valid]]
        if pooling == "power":
            shares = (1 / torch.arange(1, len(bag) + 1, dtype=torch.float64))[valid]
            out[tuple(place)] = (shares / shares.sum()) @ vectors
        else:
            out[tuple(place)] = vectors.mean(0) * (len(vectors) ** 0.5 if pooling == "sqrt" else 1)
    return out


@st.composite
def bags(draw, vocab_size=7):
    rows, latents, bag_size = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 5))
    ids = st.one_of(st.just(IGNORE_INDEX), st.integers(0, vocab_size - 1))
    values = draw(st.lists(ids, min_size=rows * latents * bag_size, max_size=rows * latents * bag_size))
    return torch.tensor(values).view(rows, latents, bag_size)


@pytest.mark.error(n=5)
@given(bags(), st.sampled_from(get_args(Pooling)), st.sampled_from([None, 2]))
def test_equals_the_pooling_of_valid_tokens_one_by_one(input_ids, pooling, padding_idx):
    weight = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    out = embed_bags(input_ids, weight, padding_idx=padding_idx, pooling=pooling)
    fixed = torch.arange(7).unsqueeze(1) == (-1 if padding_idx is None else padding_idx)
    expected = reference(input_ids, torch.where(fixed, weight.detach(), weight), pooling)
    torch.testing.assert_close(out, expected)
    upstream = torch.randn_like(out)
    torch.testing.assert_close(*(torch.autograd.grad((value * upstream).sum(), weight)[0] for value in (out, expected)))


@pytest.mark.error(n=5)
def test_a_bag_of_nothing_is_zeros_and_gets_no_gradient():
    weight = torch.randn(5, 4, requires_grad=True)
    out = embed_bags(torch.full((1, 2, 3), IGNORE_INDEX), weight)
    assert (out == 0).all()
    out.sum().backward()
    assert (weight.grad == 0).all()


@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_gradient_by_finite_differences(pooling):
    weight = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    input_ids = torch.tensor([[[0, 0, 4], [1, IGNORE_INDEX, 2]]])
    assert torch.autograd.gradcheck(lambda table: embed_bags(input_ids, table, pooling=pooling), weight)


@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_a_bag_with_one_token_is_the_token_to_the_bit(pooling):
    """So a row of bags can hold single tokens, as those of mixed batches do."""
    weight, tokens = torch.randn(50, 8), torch.arange(50).view(1, 50)
    alone = torch.full((1, 50, 4), IGNORE_INDEX)
    alone[..., 0] = tokens
    assert torch.equal(embed_bags(alone, weight, pooling=pooling), weight[tokens])


def test_the_root_keeps_the_variance():
    torch.manual_seed(0)
    weight = torch.randn(1000, 64)
    pooled = embed_bags(torch.randint(0, 1000, (1, 2000, 8)), weight, pooling="sqrt")
    assert float(pooled.var()) == pytest.approx(float(weight.var()), rel=0.05)


def test_a_pooling_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="pooling is 'sum'; choose one of mean"):
        embed_bags(torch.zeros(1, 1, 2, dtype=torch.long), torch.zeros(4, 2), pooling="sum")


def test_half_precision_is_summed_in_float32():
    # Summed in bfloat16, small numbers vanish beside large ones.
    torch.manual_seed(0)
    weight = (torch.randn(64, 32) + 8).to(torch.bfloat16)
    input_ids = torch.randint(0, 64, (4, 8, 16))
    out = embed_bags(input_ids, weight)
    assert out.dtype == torch.bfloat16
    exact = weight.double()[input_ids].mean(-2)
    # Two roundings to 8 bits: of the sum and of the mean.
    assert ((out.double() - exact).abs() <= exact.abs() * 2 * 2**-8).all()


def test_the_gradient_in_half_precision_is_summed_in_float32():
    """A frequent token's gradient is a sum of hundreds of terms: each entry is off by the rounding of its terms and
    of the sum (8 bits each), not of hundreds of partial sums; PyTorch's own backward pass is some 20 times as far."""
    torch.manual_seed(0)
    weight = torch.randn(8, 32).to(torch.bfloat16).requires_grad_()
    input_ids = torch.randint(0, 8, (4, 64, 16))
    upstream = (torch.rand(4, 64, 32) + 0.5).to(torch.bfloat16)
    (gradient,) = torch.autograd.grad(embed_bags(input_ids, weight), weight, upstream)
    exact = torch.zeros(8, 32, dtype=torch.float64)
    exact.index_add_(0, input_ids.flatten(), (upstream.double() / 16).repeat_interleave(16, dim=1).view(-1, 32))
    assert gradient.dtype == torch.bfloat16
    assert ((gradient.double() - exact).abs() <= exact.abs() * 2 * 2**-8).all()
    native = torch.nn.functional.embedding(input_ids, weight).mean(-2)
    (theirs,) = torch.autograd.grad(native, weight, upstream)
    assert (gradient.double() - exact).norm() < 0.1 * (theirs.double() - exact).norm()


def test_the_operators_keep_pytorchs_contract():
    bags = torch.tensor([[0, 4, 2], [IGNORE_INDEX, 1, 1]])
    torch.library.opcheck(embed._mean_bags, (bags, torch.randn(5, 4, requires_grad=True), IGNORE_INDEX))
    torch.library.opcheck(embed._mean_bags_backward, (bags, torch.randn(2, 4), IGNORE_INDEX, 1, 5))
    shares = torch.rand(2, 3) * (bags >= 0)
    torch.library.opcheck(embed._weigh_bags, (bags, torch.randn(5, 4, requires_grad=True), shares, None))
    torch.library.opcheck(embed._weigh_bags_backward, (bags, torch.randn(2, 4), shares, 1, 5))


@pytest.mark.error(n=5)
@given(bags())
def test_what_other_devices_run_gives_the_same(input_ids):
    weight = torch.randn(7, 3, dtype=torch.float64)
    rows = input_ids.flatten(0, 1)
    means = embed._mean_of_valid(rows, weight, rows != IGNORE_INDEX)
    torch.testing.assert_close(means.view(*input_ids.shape[:2], 3), reference(input_ids, weight))
    shares = embed._shares(rows != IGNORE_INDEX, [1 / place for place in range(1, rows.shape[1] + 1)], 1, weight.dtype)
    for padding_idx in (None, 2):
        pooled = embed._sums_of_shares(rows, weight, shares, padding_idx)
        torch.testing.assert_close(pooled.view(*input_ids.shape[:2], 3), reference(input_ids, weight, "power"))


def test_compiled_it_is_one_graph():
    torch._dynamo.reset()
    input_ids, weight = torch.randint(0, 5, (2, 3, 4)), torch.randn(5, 4, requires_grad=True)
    compiled = torch.compile(
        lambda ids, table: embed_bags(ids, table).square().sum(), fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(
        *(
            torch.autograd.grad(run(input_ids, weight), weight)[0]
            for run in (compiled, compiled._torchdynamo_orig_callable)
        )
    )


def test_shapes_that_are_no_bags_are_refused():
    with pytest.raises(ValueError, match="bags"):
        embed_bags(torch.zeros(3, dtype=torch.long), torch.zeros(4, 2))


@pytest.mark.error(n=6)
def test_a_hook_on_the_embedding_is_heard_in_both_phases():
    """As NEFTune and others add to what an embedding gives."""
    embedding = torch.nn.Embedding(20, 4)
    embedding.register_forward_hook(lambda module, inputs, output: output * 3)
    bags = torch.randint(20, (2, 5, 3))
    torch.testing.assert_close(embed.embed_tokens(bags, embedding), 3 * embedding.weight[bags].mean(dim=2))
    torch.testing.assert_close(embed.embed_tokens(bags[..., 0], embedding), 3 * embedding.weight[bags[..., 0]])


def learned(weight, padding_idx):
    """The table as `nn.Embedding` has it: its padding entry is read and not trained."""
    return torch.where(torch.arange(len(weight)).unsqueeze(1) == padding_idx, weight.detach(), weight)


@pytest.mark.error(n=5)
@given(bags(), st.integers(0, 6))
def test_a_padding_entry_is_looked_up_and_gets_no_gradient(input_ids, padding_idx):
    weight = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    expected = reference(input_ids, learned(weight, padding_idx))
    rows = input_ids.flatten(0, 1)
    elsewhere = embed._mean_of_valid(rows, weight, rows != IGNORE_INDEX, padding_idx).view(expected.shape)
    upstream = torch.randn_like(expected)
    (expected_gradient,) = torch.autograd.grad((expected * upstream).sum(), weight)
    for out in (embed_bags(input_ids, weight, padding_idx=padding_idx), elsewhere):
        torch.testing.assert_close(out, expected)
        (gradient,) = torch.autograd.grad(out, weight, upstream)
        torch.testing.assert_close(gradient, expected_gradient)
        assert (gradient[padding_idx] == 0).all()


def allocated(run):
    """Bytes of each piece of memory that an operation of `run` asks for."""
    with profile(profile_memory=True) as seen:
        run()
    return [event.self_cpu_memory_usage for event in seen.events() if event.self_cpu_memory_usage > 0]


def test_padding_costs_no_vector_of_each_token():
    """Neither on a CPU nor with what other devices run; and where a hook wants these vectors, they are there once."""
    positions, bag_size, width, vocab_size = 64, 16, 32, 20
    ids = torch.randint(vocab_size, (2, positions // 2, bag_size))
    rows, weight = ids.flatten(0, 1), torch.randn(vocab_size, width, requires_grad=True)
    plain, padded = torch.nn.Embedding(vocab_size, width), torch.nn.Embedding(vocab_size, width, padding_idx=0)
    tokens = positions * bag_size
    for run in (
        lambda: embed.embed_tokens(ids, plain).sum().backward(),
        lambda: embed.embed_tokens(ids, padded).sum().backward(),
        lambda: embed._mean_of_valid(rows, weight, rows != IGNORE_INDEX, 0).sum().backward(),
    ):
        assert max(allocated(run)) <= 8 * (tokens + 1), "an id of each token"
    assert (padded.weight.grad[0] == 0).all()
    padded.register_forward_hook(lambda module, inputs, output: None)
    vectors = [size for size in allocated(lambda: embed.embed_tokens(ids, padded)) if size > 8 * (tokens + 1)]
    assert vectors == [4 * tokens * width]


@pytest.mark.parametrize("settings", [{}, {"padding_idx": 3}, {"max_norm": 1.0}, {"scale_grad_by_freq": True}])
@pytest.mark.parametrize("bag_size", [1, 3])
def test_an_embedding_trains_as_the_module_itself(settings, bag_size):
    torch.manual_seed(0)
    embedding = torch.nn.Embedding(20, 4, dtype=torch.float64, **settings)
    ids = torch.randint(5, (2, 5, bag_size))
    expected = embedding(ids).mean(dim=2)
    out = embed.embed_tokens(ids if bag_size > 1 else ids.squeeze(-1), embedding)
    torch.testing.assert_close(out, expected)
    upstream = torch.randn_like(out)
    ours, theirs = (torch.autograd.grad(value, embedding.weight, upstream)[0] for value in (out, expected))
    torch.testing.assert_close(ours, theirs)


IDS, VECTORS = torch.Size([2, 15]), torch.Size([2, 15, 4])
HOOKS = {
    "register_forward_pre_hook": [IDS],
    "register_forward_hook": [IDS, VECTORS],
    "register_full_backward_pre_hook": [VECTORS],
    "register_full_backward_hook": [None, VECTORS],
}
"""What a hook of each kind gets of 2 rows of 5 bags of 3; ids have no gradient."""


@pytest.mark.error(n=6)
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("padding_idx", [None, 0])
def test_every_kind_of_hook_is_called_once_with_the_rows_tokens(kind, padding_idx):
    embedding, calls = torch.nn.Embedding(20, 4, padding_idx=padding_idx), []
    getattr(embedding, kind)(lambda module, *tensors: calls.append(torch.utils._pytree.tree_leaves(tensors)))
    bags = torch.randint(20, (2, 5, 3))
    bags[0, 0, 0] = IGNORE_INDEX
    embed.embed_tokens(bags, embedding).sum().backward()
    assert [[None if part is None else part.shape for part in call] for call in calls] == [HOOKS[kind]]


@pytest.mark.error(n=5)
@given(bags())
def test_vectors_a_hook_has_changed_are_averaged_over_valid_tokens(input_ids):
    embedding = torch.nn.Embedding(7, 3, dtype=torch.float64)
    embedding.register_forward_hook(lambda module, inputs, output: output.tanh())
    out, expected = embed.embed_tokens(input_ids, embedding), reference(input_ids, embedding.weight.tanh())
    torch.testing.assert_close(out, expected)
    upstream = torch.randn_like(out)
    torch.testing.assert_close(
        *(torch.autograd.grad(value, embedding.weight, upstream)[0] for value in (out, expected))
    )
