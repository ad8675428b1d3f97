"""A subject on the bench: its step is run on windows, with its own model, and each run is read.

Shapes: B rows, L latents, S bag, T tokens of a window, R rows of logits, V vocabulary, D width.
"""

import contextlib
import io
import random
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from superpose.conform.dependence import depends_on
from superpose.conform.gradients import flat, gradients_at
from superpose.conform.reading import (
    LATENTS,
    ROWS,
    TOLERANCES,
    NotCheckedError,
    Reading,
    Replace,
    TooNarrowError,
    asked_for,
)
from superpose.conform.subject import Subject, find_weight, parameters_of, shares_of_valid, takes_model
from superpose.conform.watch import Watch
from superpose.core.fold import Mode, window_length
from superpose.errors import UserError, first_line


@dataclass
class Bench:
    """A subject, and its readings, each made once.

    Args:
        subject: what is judged.
        model: what its step is given.
        ordinary: whether its step is ordinary training alone.
        vocab_size: V; None while it isn't known.
        found_mode: the mode, where the subject declares none.
        seed: of the random numbers that each call draws.
        tokens: ids below it may stand in windows.
        causes: by error, the words for a cause of several verdicts.
        differences: what `body.difference` found.
    """

    subject: Subject
    model: Any
    ordinary: bool = False
    vocab_size: int | None = None
    found_mode: Mode = "full"
    seed: int = 1
    tokens: int = 20
    causes: dict[int, str] = field(default_factory=dict)
    differences: dict[tuple[int, float], tuple[str, str]] = field(default_factory=dict)
    _watch: Watch | None = None
    _plain: dict[tuple[Mode, int, int], Reading] = field(default_factory=dict)
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
            NotCheckedError: it raises.
        """
        assert function is not None
        given = (window,) if bag_size is None else (window, bag_size)
        if role not in ("fold", "loss") and takes_model(function, len(given)):
            given = (self.model, *given)
        for seed in (torch.default_generator.manual_seed, np.random.seed, random.seed):
            seed(self.seed)
        try:
            with _quiet(), _eager(), self._watch or Watch():
                return function(*given, **arguments)
        except (NotCheckedError, UserError):
            raise
        except (Exception, SystemExit) as error:
            size = f" at bag size {bag_size}" if isinstance(bag_size, int) else ""
            raised = f"{role} raised {type(error).__name__}{size}: {first_line(error)} ({_place(error, function)})"
            if self.vocab_size is None and isinstance(error, IndexError):
                raised += f"; a vocabulary of less than {self.tokens} is too small for the windows"
            if role == "step" and bag_size == 1 and not self.ordinary:
                raised += "; if it is for bags alone, give ordinary(model, window)"
            raise NotCheckedError(raised) from error

    def step(self, window: Tensor, bag_size: int, **sides: Any) -> Tensor:
        """The subject's loss of a window."""
        subject = self.subject
        if subject.step is None:
            return _scalar(self._of_fold_and_loss(window, bag_size, **sides), "loss")
        if bag_size == 1 and subject.ordinary is not None:
            return _scalar(self.run("ordinary", subject.ordinary, window, None, **sides), "ordinary")
        bare = self.ordinary and "bag_size" not in parameters_of(subject.step)
        return _scalar(self.run("step", subject.step, window, None if bare else bag_size, **sides), "step")

    def read(
        self, window: Tensor, bag_size: int, replace: Replace | None = None, documents: bool = False, **sides: Any
    ) -> Reading:
        """What the step makes of a window.

        Args:
            window: [B, T].
            bag_size: S.
            replace: vectors of tokens by others, as `Watch` does it.
            documents: whether the window holds several, which alone changes what a position may depend on.
            sides: further arguments of the step.

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
        cap = self.subject.softcap or getattr(getattr(self.model, "config", None), "final_logit_softcapping", None)
        logits, gradient, hidden = gradients_at(nodes, watch, cap)
        tolerance = TOLERANCES.get(watch.dtype, 1e-2)
        asked, extra, uneven, smoothing = asked_for(logits, gradient, window, tolerance, self.subject.label_smoothing)
        row, last, seen = self._places_of(window, bag_size, len(logits), documents, sides)
        return Reading(
            value=float(loss.detach()),
            logits=logits,
            asked=asked,
            extra=extra,
            uneven=uneven,
            hidden=hidden,
            row=row,
            last=last,
            seen=seen,
            watch=watch,
            unused={name for name, one in parameters.items() if one.grad is None or not one.grad.any()},
            finite=all(one.grad is None or bool(one.grad.isfinite().all()) for one in parameters.values()),
            kept=sum(size for place, size in kept.items() if place not in watch.weights),
            window=window,
            tolerance=tolerance,
            smoothing=smoothing,
        )

    def plain(self, bag_size: int, latents: int = LATENTS) -> Reading:
        """Of a window without padding."""
        key = self.mode, bag_size, latents
        if key not in self._plain:
            try:
                self._plain[key] = self.read(self.window(bag_size, latents), bag_size)
            except TooNarrowError:
                self._plain[key] = self.read(self.window(bag_size, latents, rows=1), bag_size)
        return self._plain[key]

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
                f"of {bag_size}; take one of {max(64, self.needed(length))} or more"
            )
        order = usable[torch.randperm(len(usable), generator=torch.Generator().manual_seed(length))]
        if len(order) >= rows * length + 2:
            return order[: rows * length].view(rows, length)
        return torch.stack([order[:length].roll(row) for row in range(rows)])

    def needed(self, length: int) -> int:
        """Ids that windows of a length need: two are put in others' places, and up to six may have a meaning."""
        return length + 8 + len(self.subject.special_ids)

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
        inputs, targets = self._folded(window, bag_size)
        if subject.embed is not None:
            vectors = self.run("embed", subject.embed, inputs, None)
        else:
            valid = inputs != subject.ignored
            shares = shares_of_valid(subject.shares("pooling", bag_size), valid)
            with self._watch or Watch():
                vectors = (model.embedding(inputs.where(valid, 0)) * shares.unsqueeze(-1)).sum(dim=2)
        with self._watch or Watch():
            logits = model.head(model.backbone(vectors))[:, : targets.shape[1]]
        return self.run("loss", subject.loss, logits, targets, **sides)

    def _folded(self, window: Tensor, bag_size: int) -> tuple[Tensor, Tensor]:
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

    def _places_of(
        self, window: Tensor, bag_size: int, count: int, documents: bool, sides: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `depends_on`, found once for windows of a shape that give `count` rows of logits."""
        key = bag_size, tuple(window.shape), count
        if key in self._places and not documents:
            return self._places[key]

        def logits_of(window: Tensor) -> Tensor:
            watch, _ = self.watched(window, bag_size, **sides)
            values = [flat(node.values) for node in watch.finals() if node.values is not None]
            return torch.cat(values) if values else torch.zeros(0, 1)

        usable = self.usable()
        spare = usable[~torch.isin(usable, window)]
        found = depends_on(logits_of, window, spare if len(spare) else usable, self.subject.ignored)
        if not sides and not documents:
            self._places[key] = found
        return found


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


def _scalar(loss: Any, role: str) -> Tensor:
    """A loss as a number with a graph; of transformers' outputs, `.loss`."""
    value = getattr(loss, "loss", loss)
    if isinstance(value, tuple) and value and isinstance(value[0], Tensor):
        value = value[0]
    if not isinstance(value, Tensor) or value.numel() != 1:
        kind = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise NotCheckedError(f"{role} returned {kind}; expected the loss, one number, as a tensor before backward()")
    return value.reshape(())
