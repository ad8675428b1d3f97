"""Watches a step at work: where its tokens are looked up, and what logits its loss is made of.

No module is replaced and none has to be named. A `TorchFunctionMode` sees each function of torch that is called, and
knows parameters by their storage, whatever view of them is used:

    lookup     a parameter and whole numbers give vectors              nn.Embedding, F.embedding, weight[ids]
    product    a parameter and hidden states give V-wide numbers       nn.Linear, F.linear, h @ W.T, einsum
    final      the logits that a softmax's functions are called on     after bias, cap, cast and slice

`fused` are heads that never show their logits: an operator of its own, or an autograd.Function's inside. Their logits
are computed here from what went in, and the gradient at them comes from the gradient of the head's weight.

Shapes: D width, V vocabulary.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_SOFTMAXES = {"cross_entropy", "log_softmax", "softmax", "logsumexp", "exp", "exp_"}
_LOSSES = _SOFTMAXES | {
    *("binary_cross_entropy_with_logits", "softplus", "logsigmoid", "multi_margin_loss"),
    *("multilabel_margin_loss", "multilabel_soft_margin_loss", "hinge_embedding_loss"),
}
_CONSUMERS = _LOSSES | {"gather", "take_along_dim", "index_select", "max", "amax", "sum", "mean"}
"""After these, logits are logits no more. Only where a loss is among them were they meant for one."""
_DROPOUTS = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"}
STEPS = 6
"""How far a token's vector is followed before the mean of its bag."""
_METADATA = {"__get__", "size", "dim", "numel", "stride", "is_contiguous", "untyped_storage", "data_ptr", "__len__"}


@dataclass(eq=False)
class Node:
    """A tensor of logits, made from others."""

    tensor: Tensor
    parents: tuple["Node", ...]
    number: int
    values: Tensor | None = None
    product: "Product | None" = None

    def ancestors(self) -> dict["Node", None]:
        """It and all that it was made from."""
        found: dict[Node, None] = {}
        waiting = [self]
        while waiting:
            node = waiting.pop()
            if node not in found:
                found[node] = None
                waiting.extend(node.parents)
        return found

    def products(self) -> list["Product"]:
        """Those that it was made from."""
        return [node.product for node in self.ancestors() if node.product]


@dataclass(eq=False)
class Product:
    """A product with a weight [V, D]; `inputs` and `values` are as they were when it was made."""

    weight: Tensor
    inputs: Tensor
    values: Tensor
    fused: bool


@dataclass(eq=False)
class Lookup:
    """Vectors that a weight gave for ids, and what was made of each on its own: a scale, a norm, ..."""

    weight: Tensor
    ids: Tensor
    output: Tensor
    steps: list[Tensor] = field(default_factory=list)


@dataclass(eq=False)
class Watch(TorchFunctionMode):
    """What was seen; use as a context around a step's forward pass.

    Args:
        vocab_size: V; None while it isn't known, when only lookups are seen.
        replace: (lookup, number of its step, vectors) to the vectors that take their place.
    """

    vocab_size: int | None = None
    replace: Callable[[Lookup, int, Tensor], Tensor] | None = None
    lookups: list[Lookup] = field(default_factory=list)
    consumed: dict[Node, bool] = field(default_factory=dict)
    body_rows: dict[int, int] = field(default_factory=dict)
    widths: set[int] = field(default_factory=set)
    softmax_rows: int = 0
    largest: int = 0
    dtype: torch.dtype = torch.float64
    weights: dict[int, Tensor] = field(default_factory=dict)
    _nodes: dict[int, Node] = field(default_factory=dict)
    _chains: dict[int, Lookup] = field(default_factory=dict)
    _kept: list[Any] = field(default_factory=list)
    _made: int = 0

    def __post_init__(self) -> None:
        super().__init__()
        self.widths.add(self.vocab_size or 0)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        if name == "scaled_dot_product_attention":
            args = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args
            kwargs = {key: value for key, value in kwargs.items() if key != "dropout_p"}
        if name in _METADATA and name != "__get__":
            return func(*args, **kwargs)
        given = [*_tensors(args), *_tensors(value for key, value in kwargs.items() if key != "out")]
        weights = [(tensor, weight) for tensor in given if (weight := self._weight(tensor)) is not None]
        nodes = [node for tensor in given if (node := self._nodes.get(id(tensor))) and node.tensor is tensor]
        if nodes and name in _CONSUMERS | {"__getitem__"}:
            self._consume(name, nodes, given)
        chains = [self._chains[id(tensor)] for tensor in given if id(tensor) in self._chains]
        out = func(*args, **kwargs)
        if name == "__get__" and not isinstance(out, Tensor):
            return out
        if weights:
            out = self._use(name, weights, given, out)
        elif (
            chains
            and isinstance(out, Tensor)
            and out.is_floating_point()
            and out.shape == chains[0].output.shape
            # What is added to each token alike leaves it a token's; positions do not.
            and all(self._chains.get(id(one)) is chains[0] or one.numel() <= out.shape[-1] for one in given)
        ):
            out = self._follow(chains[0], out)
        for result in _tensors((out,)):
            if result.is_floating_point() and result.dtype.itemsize < self.dtype.itemsize:
                self.dtype = result.dtype
            if self.vocab_size in result.shape[-1:] and not weights:
                self.largest = max(self.largest, result.untyped_storage().nbytes() // result.element_size())
            cut = nodes and name in ("__getitem__", "narrow") and result.shape[:-1] == nodes[0].tensor.shape[:-1]
            if cut and result.shape[-1] > (self.vocab_size or 0) // 2:
                self.widths.add(result.shape[-1])  # a padded vocabulary is cut back
            if nodes and name not in _CONSUMERS and result.is_floating_point() and self.widths & {*result.shape}:
                self._add(result, tuple(nodes))
        return out

    def finals(self) -> list[Node]:
        """The logits that softmaxes were made of: of each product's, the last tensor that all of them share."""
        groups: list[tuple[set[Node], list[Node]]] = []
        for node in self.consumed:
            roots, consumers = {one for one in node.ancestors() if one.product}, [node]
            for group in [group for group in groups if group[0] & roots]:
                roots, consumers = roots | group[0], group[1] + consumers
                groups.remove(group)
            groups.append((roots, consumers))
        found: list[Node] = []
        for roots, consumers in groups:
            if not any(self.consumed[node] for node in consumers):
                continue
            shared = set.intersection(*(set(node.ancestors()) for node in consumers))
            wide = [node for node in shared if node.tensor.shape[-1] in self.widths and node.values is not None]
            found += [max(wide, key=lambda node: node.number)] if wide else list(roots)
        return sorted(found, key=lambda node: node.number)

    def _weight(self, tensor: Tensor) -> Tensor | None:
        """The parameter whose numbers a tensor shows, if there is one."""
        try:
            place = tensor.untyped_storage().data_ptr()
        except (RuntimeError, NotImplementedError):  # a tensor of a kind without a storage
            return None
        # What goes into an autograd.Function looks like a leaf inside, where gradients are off.
        known = isinstance(tensor, torch.nn.Parameter) or (torch.is_grad_enabled() and tensor.is_leaf)
        if place and place not in self.weights and known and tensor.requires_grad and tensor.dim() > 1:
            self.weights[place] = tensor
        return self.weights.get(place)

    def _use(self, name: str, weights: list[tuple[Tensor, Tensor]], given: list[Tensor], out: Any) -> Any:
        shown, weight = weights[0]
        others = [tensor for tensor in given if all(tensor is not one for one, _ in weights)]
        whole = [tensor for tensor in others if not tensor.is_floating_point() and tensor.dtype != torch.bool]
        inputs = [tensor for tensor in others if tensor.is_floating_point() and tensor.dim() > 1]
        first = next(_tensors((out,)), weight.new_zeros(()))
        out_dim = first.shape[-1] if first.dim() else 0
        if isinstance(out, Tensor) and not others:
            if (
                out.numel() == weight.numel() and out.is_floating_point() and "like" not in name
            ):  # a cast, or another form of it
                self.weights.setdefault(out.untyped_storage().data_ptr(), weight)
                self._kept.append(out)
        elif (
            isinstance(out, Tensor) and whole and not inputs and out.is_floating_point() and out_dim == weight.shape[1]
        ):
            self.lookups.append(Lookup(weight, whole[0], out))
            if whole[0].shape == out.shape[:-1]:
                out = self.lookups[-1].output = self._follow(self.lookups[-1], out)
            if out.requires_grad:
                out.retain_grad()
        elif inputs and weight.dim() > 2:
            self.body_rows[id(weight)] = self.body_rows.get(id(weight), 0) + first.numel() // weight.shape[0]
        elif inputs and isinstance(out, Tensor) and out.dim() > 1 and out_dim == self.vocab_size:
            made = Product(weight, inputs[0].detach().clone(), out.detach().clone(), fused=not out.requires_grad)
            self._add(out, (), made)
        elif inputs and inputs[0].shape[-1] in weight.shape:
            width, fused = inputs[0].shape[-1], len(weight) == self.vocab_size and out_dim != inputs[0].shape[-1]
            if fused and weight.shape[1] == width:
                bias = [one.detach() for one in others if one.shape == (self.vocab_size,)]
                logits = torch.nn.functional.linear(inputs[0].detach(), shown.detach(), *bias[:1])
                made = Product(weight, inputs[0].detach().clone(), logits, fused=True)
                self._made += 1
                self.consumed[Node(logits, (), self._made, logits.clone(), made)] = True
            elif id(inputs[0]) not in self._chains:  # what projects a token's vector belongs to the embedding
                self.body_rows[id(weight)] = self.body_rows.get(id(weight), 0) + inputs[0].numel() // width
        return out

    def _follow(self, lookup: Lookup, out: Tensor) -> Tensor:
        """One step more of a lookup's vectors, each on its own as long as their shape stays."""
        if len(lookup.steps) < STEPS:
            if self.replace is not None:
                out = self.replace(lookup, len(lookup.steps), out)
            lookup.steps.append(out.detach())
            self._chains[id(out)] = lookup
            self._kept.append(out)
        return out

    def _consume(self, name: str, nodes: list[Node], given: list[Tensor]) -> None:
        whole = any(not tensor.is_floating_point() and tensor.dtype != torch.bool for tensor in given)
        if name == "__getitem__" and not whole:
            return
        if name in _SOFTMAXES:
            self.softmax_rows += nodes[0].tensor.numel() // max(1, self.vocab_size or 1)
        for node in nodes:
            self.consumed[node] = self.consumed.get(node, False) or name in _LOSSES
            for one in node.ancestors():
                if one.values is None and self.widths & {*one.tensor.shape[-1:]}:
                    one.values = one.tensor.detach().clone()

    def _add(self, tensor: Tensor, parents: tuple[Node, ...], product: Product | None = None) -> None:
        if tensor.requires_grad and tensor.grad_fn is not None:
            tensor.retain_grad()
        self._made += 1
        self._nodes[id(tensor)] = Node(tensor, parents, self._made, product=product)


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)
