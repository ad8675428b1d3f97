"""A subject on the bench: its step is run on windows, with its own model, and each run is read.

Shapes: B rows, L latents, S bag, T tokens of a window, R rows of logits, V vocabulary, D width.
"""

import contextlib
import io
import math
import random
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from superpose.conform.probe import Probe
from superpose.conform.reading import (
    LATENTS,
    MIXED,
    ROWS,
    TOLERANCES,
    NotCheckedError,
    Reading,
    Replace,
    TooNarrowError,
    asked_for,
    largest,
)
from superpose.conform.subject import Subject, find_weight, takes_model
from superpose.conform.watch import Node, Watch
from superpose.core.fold import Mode, window_length
from superpose.errors import UserError, first_line


@dataclass
class Bench:
    """A subject, and its readings, each made once.

    Args:
        subject: what is judged.
        model: what its step is given.
        ordinary: whether its step is ordinary training alone.
    """

    subject: Subject
    model: Any
    ordinary: bool = False
    vocab_size: int | None = None
    found_mode: Mode = "full"
    documents: bool = False
    seed: int = 1
    tokens: int = 20
    calls: int = 0
    slowest: float = 0.0
    causes: dict[int, str] = field(default_factory=dict)
    differences: dict[tuple[int, float], tuple[str, str]] = field(default_factory=dict)
    _watch: Watch | None = None
    _plain: dict[tuple[int, int], Reading] = field(default_factory=dict)
    _places: dict[Any, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    @property
    def sizes(self) -> Sequence[int]:
        """Bag sizes that the step is judged at."""
        return (1,) if self.ordinary else self.subject.bag_sizes

    def run(
        self, role: str, function: Callable[..., Any] | None, window: Any, bag_size: Any = None, **arguments: Any
    ) -> Any:
        """Calls one of the subject's functions, which may print, and draws the same random numbers each time.

        Raises:
            NotCheckedError: it raises, or does not return a loss.
        """
        assert function is not None
        given = (window,) if bag_size is None else (window, bag_size)
        if role not in ("fold", "loss") and takes_model(function, len(given)):
            given = (self.model, *given)
        for seed in (torch.default_generator.manual_seed, np.random.seed, random.seed):
            seed(self.seed)
        started = time.perf_counter()
        try:
            with _quiet(), _eager(), self._watch or Watch():
                result = function(*given, **arguments)
        except (NotCheckedError, UserError):
            raise
        except (Exception, SystemExit) as error:
            size = f" at bag size {bag_size}" if isinstance(bag_size, int) else ""
            raised = f"{role} raised {type(error).__name__}{size}: {first_line(error)} ({_place(error, function)})"
            if self.vocab_size is None and isinstance(error, IndexError):
                raised += "; a vocabulary of less than 20 is too small for the windows"
            if role == "step" and bag_size == 1 and not self.ordinary:
                raised += "; if it is for bags alone, give ordinary(model, window)"
            raise NotCheckedError(raised) from error
        self.calls += 1
        self.slowest = max(self.slowest, time.perf_counter() - started)
        return result

    def step(self, window: Tensor, bag_size: int, **sides: Any) -> Tensor:
        """The subject's loss of a window."""
        subject = self.subject
        if subject.step is None:
            return scalar(self._of_fold_and_loss(window, bag_size, **sides), "loss")
        if bag_size == 1 and subject.ordinary is not None:
            return scalar(self.run("ordinary", subject.ordinary, window, None, **sides), "ordinary")
        bare = self.ordinary and "bag_size" not in _names(subject.step)
        return scalar(self.run("step", subject.step, window, None if bare else bag_size, **sides), "step")

    def read(self, window: Tensor, bag_size: int, replace: Replace | None = None, **sides: Any) -> Reading:
        """What the step makes of a window.

        Raises:
            NotCheckedError: it raises, or no head was seen.
        """
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            if tensor.shape[-1:] == (self.vocab_size,):
                storage = tensor.untyped_storage()
                kept[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            watch, loss = self.watched(window, bag_size, replace, **sides)
        parameters = self.parameters(watch)
        for parameter in parameters.values():
            parameter.grad = None
        if not loss.requires_grad:
            raise NotCheckedError("the loss that step returned has no graph: return it before backward(), not detached")
        try:
            with _quiet():
                loss.backward()
        except Exception as error:
            raise NotCheckedError(f"loss.backward() raised {type(error).__name__}: {first_line(error)}") from error
        nodes = watch.finals()
        if not nodes:
            raise NotCheckedError(
                "no logits were seen: nothing V wide that a softmax, or an operator of one, was given; "
                "name `head`, the weight [V, D] or its module"
            )
        logits, gradient, hidden = self._gradients(nodes, watch)
        tolerance = TOLERANCES.get(watch.dtype, 1e-2)
        asked, extra, uneven, smoothing = asked_for(logits, gradient, window, tolerance, self.subject.label_smoothing)
        named = {id(parameter): name for name, parameter in parameters.items()}
        unused = {name for name, parameter in parameters.items() if parameter.grad is None or not parameter.grad.any()}
        row, last, seen = self._locate(window, bag_size, len(logits), replace, sides)
        return Reading(
            float(loss.detach()),
            *(logits, asked, extra, uneven, hidden, row, last, seen, watch),
            {name for name in unused if name in named.values()},
            all(one.grad is None or bool(one.grad.isfinite().all()) for one in parameters.values()),
            sum(size for place, size in kept.items() if place not in watch.weights),
            *(window, tolerance, smoothing),
        )

    def plain(self, bag_size: int, latents: int = LATENTS) -> Reading:
        """Of a window without padding."""
        key = bag_size, latents
        if key not in self._plain:
            try:
                self._plain[key] = self.read(self.window(bag_size, latents), bag_size)
            except TooNarrowError:
                self._plain[key] = self.read(self.window(bag_size, latents, rows=1), bag_size)
        return self._plain[key]

    def forget(self) -> None:
        """Of readings made so far."""
        self._plain.clear()
        self._places.clear()

    def watched(
        self, window: Tensor, bag_size: int, replace: Replace | None = None, **sides: Any
    ) -> tuple[Watch, Tensor]:
        """Runs the step: what was seen, and the loss."""
        watch = Watch(self.vocab_size, replace)
        for weight in (find_weight(self.model, getattr(self.subject, role), role) for role in ("embedding", "head")):
            if weight is not None:
                watch.weights[weight.untyped_storage().data_ptr()] = weight
        self._watch = watch
        try:
            return watch, self.step(window, bag_size, **sides)
        finally:
            self._watch = None

    @property
    def mode(self) -> Mode:
        return self.subject.mode or self.found_mode

    def window(self, bag_size: int, latents: int = LATENTS, rows: int = ROWS) -> Tensor:
        """Tokens in no order, distinct in a row: [rows, T]. Rows share none, where the vocabulary has enough."""
        length = window_length(latents, bag_size, self.mode if bag_size > 1 else "full")
        usable = self.usable()
        if len(usable) < length + 2:
            raise NotCheckedError(
                f"a vocabulary of {self.vocab_size} has no {length} tokens for a window of {latents} latents in bags "
                f"of {bag_size}; take one of 64 or more"
            )
        order = usable[torch.randperm(len(usable), generator=torch.Generator().manual_seed(length))]
        if len(order) >= rows * length + 2:
            return order[: rows * length].view(rows, length)
        return torch.stack([order[:length].roll(row) for row in range(rows)])

    def usable(self) -> Tensor:
        """Tokens that may stand for text."""
        subject, config = self.subject, getattr(self.model, "config", None)
        special = {0, subject.pad_id, subject.ignored, subject.end_of_text, *subject.special_ids}
        for name in ("pad_token_id", "eos_token_id", "bos_token_id"):
            given = getattr(config, name, None)
            special.update(given if isinstance(given, list) else [given])
        return torch.tensor([token for token in range(min(self.tokens, 512)) if token not in special])

    def parameters(self, watch: Watch | None = None) -> dict[str, Tensor]:
        """Of the model, of the step, and all that were seen, by name."""
        found: dict[int, tuple[str, Tensor]] = {}
        for owner, prefix in ((self.model, ""), (self.subject.step, "step."), (self.subject.loss, "loss.")):
            if isinstance(owner, nn.Module):
                for name, parameter in owner.named_parameters():
                    if parameter.requires_grad:
                        found.setdefault(id(parameter), (prefix + name, parameter))
        for weight in watch.weights.values() if watch else ():
            if weight.requires_grad:
                found.setdefault(id(weight), (f"a weight {list(weight.shape)}", weight))
        return dict(found.values())

    def _of_fold_and_loss(self, window: Tensor, bag_size: int, **sides: Any) -> Any:
        """Their fold and loss with our model between them, and with their embed, if it is given."""
        subject, model = self.subject, self.model
        inputs, targets = self.folded(window, bag_size)
        if subject.embed is not None:
            vectors = self.run("embed", subject.embed, inputs, None)
        else:
            valid = (inputs != subject.ignored).unsqueeze(-1)
            shares = valid * subject.shares("pooling", bag_size).view(-1, 1)
            shares = (
                shares
                / torch.where(valid, shares, 0).sum(2, keepdim=True).clamp(min=1e-9)
                * (subject.shares("pooling", bag_size).sum())
            )
            with self._watch or Watch():
                vectors = (model.embedding(inputs.where(valid[..., 0], 0)) * shares).sum(dim=2)
        with self._watch or Watch():
            logits = model.head(model.backbone(vectors))[:, : targets.shape[1]]
        return self.run("loss", subject.loss, logits, targets, **sides)

    def folded(self, window: Tensor, bag_size: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets [B, L, S] of the subject's fold, also at bag size 1."""
        given = self.run("fold", self.subject.fold, window, bag_size)
        if not isinstance(given, (tuple, list)) or len(given) != 2:
            raise NotCheckedError(f"fold returned {type(given).__name__}; expected inputs and targets")
        bags = []
        for name, part in zip(("inputs", "targets"), given, strict=True):
            single = isinstance(part, Tensor) and part.dim() == 2 and bag_size == 1
            values = part.unsqueeze(-1) if single else part
            if not isinstance(values, Tensor) or values.dim() != 3 or values.shape[::2] != (len(window), bag_size):
                shape = list(part.shape) if isinstance(part, Tensor) else type(part).__name__
                raise NotCheckedError(f"fold returned {name} {shape}; expected [{len(window)}, latents, {bag_size}]")
            bags.append(values)
        inputs, targets = bags
        if targets.shape[1] > inputs.shape[1]:
            raise NotCheckedError(
                f"fold returned {targets.shape[1]} bags of targets for {inputs.shape[1]} bags of inputs"
            )
        return inputs, targets

    def _gradients(self, nodes: list[Node], watch: Watch) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [R, V], the gradient at them, and what went into the head [R, D], all in float64."""
        cap = self.subject.softcap or getattr(getattr(self.model, "config", None), "final_logit_softcapping", None)
        logits, gradients, hidden = [], [], []
        for node in nodes:
            assert node.values is not None
            values = node.values.reshape(-1, node.values.shape[-1]).double()
            made = [one.product for one in node.ancestors() if one.product]
            inputs = torch.cat([one.inputs.reshape(-1, one.inputs.shape[-1]) for one in made]).double()
            if made[0].fused and node.tensor is made[0].values:  # an operator's, which shows no logits
                values = values if cap is None else cap * torch.tanh(values / cap)
            gradient = node.tensor.grad
            logits.append(values.clamp(min=-1e9))
            gradients.append(None if gradient is None else gradient.reshape(values.shape).double())
            hidden.append(inputs if len(inputs) == len(values) else inputs[:0])
        hidden_ = torch.cat(hidden) if all(map(len, hidden)) else hidden[0][:0]
        if any(gradient is None for gradient in gradients):
            solved = self._solved(nodes, watch, torch.cat(logits), cap)
            sizes = [len(part) for part in logits]
            gradients = [
                theirs if theirs is not None else ours
                for theirs, ours in zip(gradients, solved.split(sizes), strict=True)
            ]
        return torch.cat(logits), torch.cat([one for one in gradients if one is not None]), hidden_

    def _solved(self, nodes: list[Node], watch: Watch, logits: Tensor, cap: float | None) -> Tensor:
        """The gradient at fused logits [R, V], from the head's: d loss / d weight = gradient^T hidden."""
        made = [product for node in nodes for product in [one.product for one in node.ancestors()] if product]
        weight = made[0].weight
        if any(one.weight is not weight for one in made) or weight.grad is None:
            raise NotCheckedError("the head's weight has no gradient, or several heads are hidden in operators")
        whole = weight.grad.double().clone()
        for lookup in watch.lookups:  # a tied embedding's part of it
            if lookup.weight is weight and lookup.output.grad is not None:
                ids = lookup.ids.reshape(-1)
                whole.index_add_(0, ids, -lookup.output.grad.reshape(len(ids), -1).double())
        inputs = torch.cat([one.inputs.reshape(-1, one.inputs.shape[-1]) for one in made]).double()
        raw = torch.cat([one.values.reshape(-1, one.values.shape[-1]) for one in made]).double()
        solved: Tensor = (whole @ torch.linalg.pinv(inputs, rtol=1e-6)).T
        if len(inputs) != len(logits) or len(inputs.unique(dim=0)) > inputs.shape[1]:
            raise TooNarrowError(
                f"the head's logits are hidden in an operator, and a width of {inputs.shape[1]} is too little to tell "
                f"{len(inputs)} positions' gradients apart; take a wider model"
            )
        if cap is not None and not torch.allclose(raw, logits):
            solved = solved / (1 - (logits / cap).square()).clamp(min=1e-6)
        return solved

    def _locate(
        self, window: Tensor, bag_size: int, count: int, replace: Replace | None, sides: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """On which row, and on which places of it, each row of logits depends."""
        key = (bag_size, tuple(window.shape), count)
        # Documents alone change what a position may depend on.
        if key in self._places and not self.documents:
            return self._places[key]
        base = self._logits(window, bag_size, **sides)
        usable = self.usable()
        spare = usable[~torch.isin(usable, window)]
        spare = spare if len(spare) else usable
        rows, length = window.shape
        seen = torch.zeros(len(base), length, dtype=torch.bool)
        for place in range(length):
            other = window.clone()
            free = [spare[(place + row) % len(spare)] for row in range(rows)]
            other[:, place] = torch.where(other[:, place] == self.subject.ignored, other[:, place], torch.stack(free))
            seen[:, place] = self._differs(base, other, bag_size, sides)
        of_row = torch.zeros(len(base), rows, dtype=torch.bool)
        for row in range(rows):
            other = window.clone()
            other[row] = torch.where(other[row] == self.subject.ignored, other[row], other[row].roll(1))
            other[row, 0] = spare[0] if other[row, 0] != self.subject.ignored else other[row, 0]
            of_row[:, row] = self._differs(base, other, bag_size, sides)
        row_ = torch.where(of_row.any(-1), of_row.long().argmax(-1), -1)
        row_ = torch.where(of_row.sum(-1) > 1, MIXED, row_)
        last = torch.where(seen, torch.arange(length), -1).amax(-1)
        if not sides and not self.documents:
            self._places[key] = row_, last, seen
        return row_, last, seen

    def _logits(self, window: Tensor, bag_size: int, **sides: Any) -> Tensor:
        watch, _ = self.watched(window, bag_size, **sides)
        values = [node.values for node in watch.finals() if node.values is not None]
        return torch.cat([one.reshape(-1, one.shape[-1]).double() for one in values]) if values else torch.zeros(0, 1)

    def _differs(self, base: Tensor, window: Tensor, bag_size: int, sides: dict[str, Any]) -> Tensor:
        logits = self._logits(window, bag_size, **sides)
        if logits.shape != base.shape:
            raise NotCheckedError("the number of positions depends on which tokens are in the window")
        return (logits - base).nan_to_num(0).abs().amax(-1) > 1e-7 * largest(base)


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
    size = 1 if ordinary else min(subject.bag_sizes)
    try:
        window = bench.window(size, rows=ROWS)
        watch, loss = bench.watched(window, size)
        bench.vocab_size = bench.tokens = _vocabulary(bench, watch, window)
        bench.tokens = min(bench.watched(window, size)[0].widths)
        value = float(loss.detach())
        again = float(bench.step(window, size).detach())
        bench.seed = 2
        other = float(bench.step(window, size).detach())
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


def _place(error: BaseException, function: Any) -> str:
    """The last line of the function's own file on the way to an error; else the last of all."""
    frames = traceback.extract_tb(error.__traceback__)
    own = getattr(getattr(function, "__code__", None), "co_filename", "")
    at = next((frame for frame in reversed(frames) if frame.filename == own), frames[-1])
    return f"{Path(at.filename).name}, line {at.lineno}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What the subject prints is not ours to show."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def _eager() -> contextlib.AbstractContextManager[Any]:
    """Compiled code runs as it is written. Importing the compiler takes seconds, so only where it already is."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else contextlib.nullcontext()


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


def scalar(loss: Any, role: str) -> Tensor:
    """A loss as a number with a graph; of transformers' outputs, `.loss`."""
    value = getattr(loss, "loss", loss)
    if isinstance(value, tuple) and value and isinstance(value[0], Tensor):
        value = value[0]
    if not isinstance(value, Tensor) or value.numel() != 1:
        kind = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise NotCheckedError(f"{role} returned {kind}; expected the loss, one number, as a tensor before backward()")
    return value.reshape(())


def _names(function: Any) -> Iterator[str]:
    from superpose.conform.subject import _parameters

    return iter(_parameters(function))
