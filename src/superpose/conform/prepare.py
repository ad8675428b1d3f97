"""A subject's model is made ready, and its step is tried: twice alike, whatever the seed."""

import math

import torch
from torch import Tensor, nn

from superpose.conform.bench import Bench
from superpose.conform.probe import Probe
from superpose.conform.reading import LATENTS, NotCheckedError
from superpose.conform.subject import Subject, find_weight
from superpose.conform.watch import Watch
from superpose.core.fold import window_length
from superpose.errors import UserError, first_line


def prepared(subject: Subject, ordinary: bool = False) -> Bench:
    """A bench with the subject's model, whose dropout is off and whose vocabulary is known.

    Raises:
        UserError: the first plain call of the step fails, or gives other values when it is repeated.
    """
    torch.default_generator.manual_seed(0)
    model = subject.model
    if model is None:
        model = Probe()
    elif not isinstance(model, nn.Module):
        try:
            model = model()
        except Exception as error:
            raise UserError(
                f"model() raised {type(error).__name__}: {first_line(error)}; give a model, or a function without "
                f"arguments that makes it"
            ) from error
    bench = Bench(subject, model, ordinary)
    if elsewhere := {str(one.device) for one in bench.parameters().values() if one.device.type != "cpu"}:
        raise UserError(
            f"the model is on {', '.join(elsewhere)}; a small one on the CPU is all that is needed: put it there"
        )
    for owner in (model, subject.step, subject.loss):
        if isinstance(owner, nn.Module):
            _calm(owner)
    size = min(bench.sizes)
    bench.tokens = max(bench.tokens, bench.needed(window_length(LATENTS, size)))
    try:
        window = bench.window(size)
        watch, loss = bench.watched(window, size)
        bench.vocab_size = bench.tokens = _vocabulary(bench, watch, window)
        watch, repeated = bench.watched(window, size)
        bench.tokens = min(watch.widths)
        bench.seed = 2
        reseeded = bench.step(window, size)
        value, again, other = (float(one.detach()) for one in (loss, repeated, reseeded))
    except NotCheckedError as error:
        raise UserError(str(error)) from error
    if not math.isclose(again, value) and again == again:
        raise UserError(
            f"step gave {value:.6f}, then {again:.6f} for the same window and seed: it keeps something between calls; "
            f"make it a function of model and window"
        )
    if not math.isclose(other, value) and other == other:
        raise UserError(f"step gave {value:.6f} with one seed and {other:.6f} with another; set dropout to 0")
    return bench


def _vocabulary(bench: Bench, watch: Watch, window: Tensor) -> int:
    declared = find_weight(bench.model, bench.subject.embedding, "embedding")
    if declared is not None:
        return len(declared)
    for lookup in watch.lookups:
        if torch.isin(lookup.ids, window).all():
            return len(lookup.weight)
    raise UserError(
        "step looked none of the window's tokens up in a weight [V, D]; it has to read its window, or name `embedding`"
    )


def _calm(module: nn.Module) -> None:
    """No dropout; and weights that start at zero, as some heads and projections do, start elsewhere."""
    generator = torch.Generator().manual_seed(0)
    for part in module.modules():
        if isinstance(part, (nn.RNNBase, nn.MultiheadAttention)):  # what does not go through a function of its own
            part.dropout = 0.0
    for parameter in module.parameters():
        if parameter.dim() > 1 and not parameter.any():
            with torch.no_grad():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
