"""Whether a causal LM of transformers is trained by what it is: compared with itself, element by element.

A model may do to its logits, its embeddings or its experts what `superpose.core.model` does not know of, look ahead, or
mix documents. Training it would then optimise something else, without a sign of it in the loss. A fresh model hides
most of this: all heads give log V, all attention is nearly even. So it is compared here with weights of trained size,
drawn for the purpose: noise on every weight, and the head scaled until the largest logit is about 30.

Shapes: B rows of a batch, L latents, S tokens in a bag, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from superpose.core.head import find_head
from superpose.core.sharding import is_sharded, reshard
from superpose.errors import first_line

if TYPE_CHECKING:
    from superpose.core.model import SuperposedLM

_LARGEST_LOGIT = 30.0
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3}
"""Of the largest value, at which two ways to the same value may differ; elsewhere 0.05."""
_NOISE = 1_048_573
"""Numbers drawn; larger weights repeat them."""


def check_model(lm: SuperposedLM) -> list[str]:
    """Verifies that the losses of a `SuperposedLM` are its model's own, in both phases.

    On two short rows of tokens: the model's own logits against the head's logits of the latents, and its own router
    loss; bags of equal tokens against single tokens; what comes later against what came before; documents together
    against each alone; and which weights gradients reach, by single tokens, by bags and by the model's own loss.

    Weights, gradients, modes and the states of random number generators are those of before afterwards, to the bit.
    Costs a copy of the weights in CPU memory and about a dozen passes over 16 tokens; a sharded model is gathered as
    in training, so all its ranks call this together.

    Returns:
        names of trainable weights that neither phase trains, nor would the model's own loss.

    Raises:
        ValueError: in one sentence, what the model does that its loss here would not.
    """
    device = lm.model.get_input_embeddings().weight.device
    if is_sharded(lm) and "within" not in vars(lm):
        from torch.distributed.fsdp import register_fsdp_forward_method

        register_fsdp_forward_method(lm, "within")
    with _as_it_was(lm), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        lm.eval()
        check = _Check(lm, device)
        with torch.compiler.set_stance("force_eager"):
            with torch.no_grad():
                _draw_weights(lm.model)
                check.scale_head()
                check.logits()
                check.bags()
                check.causality()
                check.documents()
            return check.gradients()


class _Check:
    """The comparisons, on rows of tokens [2, L + 1] of a model with weights of trained size."""

    def __init__(self, lm: SuperposedLM, device: torch.device) -> None:
        self.lm, self.model, self.name = lm, lm.model, type(lm.model).__name__
        config = lm.model.config
        weight: Tensor = lm.model.get_input_embeddings().weight
        self.vocab_size = weight.shape[0]
        self.tolerance = _TOLERANCE.get(weight.dtype, 0.05)
        limits = [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions")]
        self.latents = max(2, min([8, *(limit for limit in limits if isinstance(limit, int) and limit > 0)]))
        place = torch.arange(2 * (self.latents + 1), device=device)
        usual = torch.arange(self.vocab_size, device=device)
        for kept_out in {lm.end_of_text, _padding(config)} - {None}:
            usual = usual[usual != kept_out]
        self.window = usual[place * 7919 % len(usual)].view(2, -1)
        self.tokens = self.window[:, :-1]

    def scale_head(self) -> None:
        """Scales the head until the largest of the model's own logits is about 30."""
        largest = float(self._own(self.tokens).logits.abs().max())
        reshard(self.lm)
        local = _local(find_head(self.model).linear.weight)
        local *= _LARGEST_LOGIT / max(largest, 1e-6)

    def logits(self) -> None:
        own = self._own(self.tokens)
        ours, router_loss = self._ours(self.tokens)
        self._compare_logits(own.logits, ours)
        if router_loss is None:
            return
        theirs = getattr(own, "aux_loss", None)
        if theirs is None or not torch.isclose(router_loss.float(), theirs.float(), rtol=1e-2, atol=1e-2):
            shown = "none" if theirs is None else f"{float(theirs):.3f}"
            raise ValueError(
                f"{self.name} balances its experts by a loss that is not supported: "
                f"its own is {shown}, ours {float(router_loss):.3f}"
            )

    def bags(self) -> None:
        single, _ = self._ours(self.tokens)
        equal, _ = self._ours(self.tokens.unsqueeze(-1).expand(-1, -1, 2))
        if self._far(equal, single):
            raise ValueError(
                f"{self.name} makes something else of a bag of equal tokens than of the token, by as much as "
                f"{float((equal - single).abs().max()):.3g} in a logit; its embedding cannot be averaged"
            )

    def causality(self) -> None:
        """Tokens from the middle on, and the other row, move nothing before the middle."""
        middle = self.latents // 2
        changed = (self.tokens + 1) % self.vocab_size
        changed[0, :middle] = self.tokens[0, :middle]
        logits: dict[str, Callable[[Tensor], Tensor]] = {
            "tokens": lambda tokens: self._own(tokens).logits,
            "bags": lambda tokens: self._ours(_bags(tokens))[0],
        }
        for what, logits_of in logits.items():
            before, after = logits_of(self.tokens), logits_of(changed)
            if self._far(after[0, :middle], before[0, :middle], float(before.abs().max())):
                raise ValueError(
                    f"{self.name} looks ahead: other {what} from place {middle} on move its logits before it by "
                    f"{float((after - before)[0, :middle].abs().max()):.3g}; set is_decoder=True where its "
                    f"configuration has it, or take a causal model"
                )

    def documents(self) -> None:
        """A document's hidden states are those it has alone."""
        end_of_text = self.lm.end_of_text
        if end_of_text is None:
            return
        middle = self.latents // 2
        for inputs in (self.tokens.clone(), _bags(self.tokens)):
            inputs[:, middle - 1] = end_of_text
            together, alone = self._hidden(inputs), self._hidden(inputs[:, middle:])
            if self._far(together[:, middle:], alone):
                raise ValueError(
                    f"{self.name} with attention {self.model.config._attn_implementation!r} does not keep attention "
                    f"inside documents; choose another implementation, or attention over the row"
                )

    def gradients(self) -> list[str]:
        """Weights that no gradient reaches; those that the model's own loss reaches alone are refused.

        In training mode, which some need for a backward pass, and each time with the same dropout.
        """
        reached = {}
        self.lm.train()
        losses: dict[str, Callable[[], Tensor]] = {
            "its own loss": lambda: F.cross_entropy(
                self._own(self.tokens).logits.float().flatten(0, 1), self.window[:, 1:].flatten()
            ),
            "single tokens": lambda: self._loss(self.window, 1),
            "bags": lambda: self._loss(self.window.repeat_interleave(2, dim=1), 2),
        }
        for how, loss in losses.items():
            reshard(self.lm)
            for parameter in self.model.parameters():
                parameter.grad = None
            torch.manual_seed(0)
            with torch.enable_grad():
                self._called(loss().backward, f"the backward pass of {how}")
            reshard(self.lm)
            reached[how] = {
                name
                for name, parameter in self.model.named_parameters()
                if parameter.grad is not None and bool(_local(parameter.grad).any())
            }
        for how in ("single tokens", "bags"):
            if missed := sorted(reached["its own loss"] - reached[how]):
                raise ValueError(
                    f"{self.name} would not be trained as a whole: of {how}, no gradient reaches {some_of(missed)}, "
                    f"which the model's own loss trains"
                )
        trained = reached["single tokens"] | reached["bags"]
        trainable = (name for name, parameter in self.model.named_parameters() if parameter.requires_grad)
        return [name for name in trainable if name not in trained]

    def _loss(self, window: Tensor, bag_size: int) -> Tensor:
        loss: Tensor = self._called(lambda: self.lm(window, bag_size).loss, f"bags of {bag_size}")
        return loss

    def _own(self, tokens: Tensor) -> Any:
        routed = {} if self.lm.router_coef is None else {"output_router_logits": True}
        return self._within(lambda: self.model(input_ids=tokens, use_cache=False, **routed), "its own forward pass")

    def _ours(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits [B, L, V] and router loss, as they go into the loss."""
        parts = self.lm.parts()

        def run() -> tuple[Tensor, Tensor | None]:
            hidden, router_loss, _ = parts.hidden_states(inputs)
            return parts.logits(hidden), router_loss

        returned: tuple[Tensor, Tensor | None] = self._within(run, "its embeddings")
        return returned

    def _hidden(self, inputs: Tensor) -> Tensor:
        hidden: Tensor = self._within(lambda: self.lm.parts().hidden_states(inputs)[0], "its embeddings")
        return hidden

    def _within(self, call: Callable[[], Any], what: str) -> Any:
        return self._called(lambda: self.lm.within(call), what)

    def _called(self, call: Callable[[], Any], what: str) -> Any:
        try:
            return call()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise ValueError(f"{self.name} cannot be run by {what}: {first_line(error)}") from error

    def _compare_logits(self, own: Tensor, ours: Tensor) -> None:
        if own.shape != ours.shape:
            raise ValueError(
                f"{self.name} gives logits {list(own.shape[1:])}, its head {list(ours.shape[1:])}, which is not "
                f"supported"
            )
        if not self._far(ours, own):
            return
        ratio = float((own * ours).sum() / ours.square().sum())
        if not self._far(ours * ratio, own):
            what = f"multiplies its logits by {ratio:.4g}"
        elif self._far(self._own_of_embeddings(), own):
            what = "reads tokens by more than its embedding"
        else:
            what = "does more than its head to its logits"
        raise ValueError(
            f"{self.name} {what}, which is not supported: its own logits and those of its head differ by as much as "
            f"{float((ours - own).abs().max()):.3g}"
        )

    def _own_of_embeddings(self) -> Tensor:
        def run() -> Tensor:
            vectors = self.model.get_input_embeddings()(self.tokens)
            logits: Tensor = self.model(inputs_embeds=vectors, use_cache=False).logits
            return logits

        logits: Tensor = self._within(run, "its embeddings")
        return logits

    def _far(self, one: Tensor, other: Tensor, scale: float | None = None) -> bool:
        size = float(other.abs().max()) if scale is None else scale
        return not bool(((one.float() - other.float()).abs() <= self.tolerance * max(size, 1e-3)).all())


def _padding(config: Any) -> int | None:
    """The token that pads, which no text holds, unless it ends documents as well."""
    end = getattr(config, "eos_token_id", None)
    padding: int | None = getattr(config, "pad_token_id", None)
    return None if padding in (end if isinstance(end, list) else [end]) else padding


def _bags(tokens: Tensor) -> Tensor:
    """Bags [B, L, 2] of each token and the one after it in the vocabulary."""
    return torch.stack([tokens, tokens + (tokens == tokens.max()).logical_not()], dim=-1)


def some_of(names: list[str]) -> str:
    """The first three, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@contextmanager
def _as_it_was(lm: SuperposedLM) -> Iterator[None]:
    """Gives back what the checks change."""
    modes = {module: module.training for module in lm.modules()}
    weighting, lm.weighting = lm.weighting, "uniform"  # numbers are for bags of their own size
    heads = lm.extra_heads
    lm.set_extra_heads(0)  # they are not the model's
    gradients = {parameter: parameter.grad for parameter in lm.parameters()}
    reshard(lm)
    weights = [(parameter, _local(parameter).to("cpu", copy=True)) for parameter in lm.parameters()]
    buffers = [(buffer, buffer.clone()) for buffer in lm.buffers()]
    try:
        yield
    finally:
        reshard(lm)
        with torch.no_grad():
            for parameter, weight in weights:
                _local(parameter).copy_(weight)
            for buffer, value in buffers:
                buffer.copy_(value)
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        for module, mode in modes.items():
            module.training = mode
        lm.weighting, lm.extra_heads = weighting, heads
        lm.biases.forget()


def _draw_weights(model: nn.Module) -> None:
    """Adds noise to each weight: of half its matrix's scale, and of a tenth to vectors."""
    for parameter in model.parameters():
        local = _local(parameter)
        if not local.is_floating_point() or not local.numel():
            continue
        size = 0.5 / local.shape[-1] ** 0.5 if local.dim() > 1 else 0.1
        noise = size * torch.randn(min(local.numel(), _NOISE), device=local.device)
        flat = local.view(-1)
        for start in range(0, len(flat), _NOISE):
            part = flat[start : start + _NOISE]
            part += noise[: len(part)].to(part.dtype)


def _local(tensor: Tensor) -> Tensor:
    """This rank's part of a weight."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()
