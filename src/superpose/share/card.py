"""The model card: a model's facts as README.md, in the shape of card.md, with the front matter that model hubs read.

All that comes from outside is text: quoted in the front matter, escaped in the page.
"""

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from importlib.resources import files
from string import Template

from superpose.errors import printable
from superpose.results.tables import Row, plain
from superpose.share.facts import Facts

_FIRST = {
    "full": "read the means of bags of contiguous tokens and predicted the tokens of the next bag",
    "input": "read the means of bags of contiguous tokens and predicted the token after each",
    "output": "read single tokens and predicted the tokens of the next bag",
    "a mode each": "read or predicted bags of contiguous tokens, in stages that differ",
}
"""What the first phase is, by mode."""


def model_card(name: str, facts: Facts, license_id: str = "", languages: Sequence[str] = ()) -> str:
    """The text of README.md, see `superpose.share.exporting.export`."""
    parts = defaultdict(str, name=plain(name), place=repr(printable(name)), version=facts.exported_with)
    parts["front_matter"] = _front_matter(facts, license_id, languages)
    parts["summary"], parts["training"] = _summary(facts), _training(facts)
    parts["tokenizer"] = "PreTrainedTokenizerFast" if facts.tokenizer else "AutoTokenizer"
    if facts.tokenizer:
        parts["text_is"] = f"AutoTokenizer would not give the tokens of training: {plain(facts.tokenizer)}."
    if facts.bag_size > 1:
        predicts = f"it stopped in superposition and predicts {plain(facts.predicts)}, not the next token"
        parts["warning"] = f"**This model cannot generate text: {predicts}.**"
        parts["then"] = "Train it on, without superposition, before it is to generate."
    if facts.val_loss is not None and facts.val_bits_per_byte is not None:
        held_out = f", on {facts.text.held_out_tokens:,} held-out tokens" if facts.text.held_out_tokens else ""
        losses = [
            ("validation loss, nats per token", f"{facts.val_loss:.4f}"),
            ("bits per byte", f"{facts.val_bits_per_byte:.4f}"),
        ]
        parts["results"] = f"## Results\n\nNext-token prediction{held_out}.\n\n{_table(losses)}"
    if facts.evaluation:
        figures = [tuple(map(plain, row)) for row in facts.evaluation]
        parts["evaluation"] = "## Evaluation\n\n" + _table(figures, ("of", "in", "figure and its 95 % interval"))
    if facts.comparison:
        parts["comparison"] = f"## Compared with ordinary training\n\n{plain(facts.comparison)}"
    if facts.versions:
        versions = ", ".join(f"{plain(what)} {plain(which)}" for what, which in facts.versions.items())
        parts["trained"] = f"Trained with {versions}. "
    card = Template(files("superpose.share").joinpath("card.md").read_text("utf-8")).substitute(parts)
    return re.sub(r"\n{3,}", "\n\n", card)  # what is not there leaves no gap


def _front_matter(facts: Facts, license_id: str, languages: Sequence[str]) -> str:
    # Text in quotes of JSON is YAML as well, once it holds no control characters.
    lines = [f"license: {_quoted(license_id or 'unknown')}", "library_name: transformers"]
    if languages:
        lines.append(f"language: [{', '.join(map(_quoted, languages))}]")
    if facts.bag_size == 1:
        lines.append("pipeline_tag: text-generation")
    tags = [facts.architecture, "superpose", *(["token-superposition"] if facts.superposed else [])]
    return "\n".join(["---", *lines, "tags:", *(f"- {_quoted(tag)}" for tag in tags), "---"])


def _summary(facts: Facts) -> str:
    whose = "the moving average of its weights" if facts.averaged else "its weights"
    when = "at the end of" if facts.step == facts.steps else f"at step {facts.step:,} of"
    method = (
        f"[token-superposition training](https://arxiv.org/abs/2605.06546): in a first phase it {_FIRST[facts.mode]}"
        if facts.superposed
        else "ordinary next-token training"
    )
    rest = ", then it was trained as usual" if facts.superposed and facts.bag_size == 1 else ""
    return (
        f"A causal language model of {facts.parameters:,} parameters ({plain(facts.architecture)} in transformers), "
        f"{whose} {when} {facts.steps:,} steps of {method}{rest}. Its architecture is an ordinary one."
    )


def _training(facts: Facts) -> str:
    text, spent, energy = facts.text, facts.spent, facts.energy
    rows = [("data", plain(", ".join(text.sources)))]
    if text.tokens is not None:
        rows.append(("its size", f"{text.tokens:,} tokens, {text.documents:,} documents, {text.bytes:,} bytes of text"))
    rate = f"learning rate {facts.lr:g} ({facts.lr_schedule}), {facts.warmup_steps:,} steps of warmup"
    rows += [
        ("its fingerprint", plain(text.fingerprint)),
        ("started from", plain(facts.started_from or "")),
        ("vocabulary", f"{facts.vocabulary:,}"),
        ("schedule", "; ".join(_stage(*stage, facts) for stage in facts.stages)),
        ("its stages", plain(facts.schedule or "")),
        ("a step", f"{facts.batch_size:,} rows of {facts.latents:,} latents"),
        ("optimizer", f"{facts.optimizer}, {rate}; {facts.precision}; seed {facts.seed}"),
    ]
    if spent:
        epochs = f" ({facts.epochs:.2f} epochs)" if facts.epochs is not None else ""
        rows += [
            ("raw tokens read", f"{spent['raw_tokens']:,.0f}{epochs}"),
            ("latents computed", f"{spent['latents']:,.0f}"),
            ("training FLOPs", f"{spent['flops']:.3e}"),
            ("hours of training", f"{spent['seconds'] / 3600:.3g}"),
        ]
    if energy and energy.kwh is not None:
        rows.append(("energy", f"{energy.kwh:.3g} kWh in {energy.hours:.3g} hours, {plain(energy.how)}"))
    return _table([row for row in rows if row[1]])


def _stage(size: int, start: int, stop: int, facts: Facts) -> str:
    """A stage in words; its share is of all steps the run was to have."""
    if size == 1:
        return f"next token in steps {start + 1:,} to {stop:,}"
    mode = "" if facts.mode in ("full", "a mode each") else f", {facts.mode} only"
    return f"bags of {size}{mode} in steps {start + 1:,} to {stop:,} (ratio {(stop - start) / facts.steps:.3g})"


def _table(rows: Sequence[Row], header: Row = ("", "")) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _quoted(text: str) -> str:
    return json.dumps(printable(text), ensure_ascii=False)
