"""docs/gpu.md with what gpu.json says, between its two comments."""

import json
import re
from pathlib import Path
from typing import Any

from gpu.bench import ROOT
from gpu.losses import LIMIT, OURS, PLAIN
from superpose.files import write_text
from superpose.results.tables import markdown

PAGE = ROOT / "docs" / "gpu.md"

Rows = list[dict[str, Any]]


def write(file: Path) -> None:
    text = filled(json.loads(file.read_text(encoding="utf-8")))
    page = PAGE.read_text(encoding="utf-8")
    write_text(PAGE, re.sub("<!-- gpu -->.*<!-- end -->", lambda _: text, page, flags=re.DOTALL))


def filled(results: dict[str, Any]) -> str:
    """The text between the two comments, including them."""
    parts = ["<!-- gpu -->", card(results["device"])]
    for name, title, show in SECTIONS:
        found = results.get(name, {"failed": "it was not run"})
        parts += [f"## {title}", f"Nothing: {found['failed']}." if "failed" in found else show(found)]
    return "\n\n".join([*parts, "<!-- end -->"])


def card(facts: dict[str, Any]) -> str:
    versions = ", ".join(
        f"{name} {facts[key]}"
        for name, key in (
            ("torch", "torch"),
            ("CUDA", "cuda"),
            ("triton", "triton"),
            ("transformers", "transformers"),
            ("Liger", "liger_kernel"),
        )
        if facts.get(key)
    )
    product, copy = facts["product_tflops"], facts["copy_tb_per_s"]
    return (
        f"Measured on one **{facts['card']}** ({facts['memory_gb']:.0f} GB), {versions}.\n"
        f"A bfloat16 product of 8192 x 8192 matrices runs at {product:.0f} TFLOP/s, and a copy\n"
        f"moves {copy:.2f} TB/s, read and written. We have measured no other card.\n"
        "[gpu.json](../benchmarks/results/gpu.json) has all figures."
    )


def correctness(found: dict[str, Any]) -> str:
    cases: Rows = found["cases"]
    right = sum(case["right"] for case in cases)
    rows = []
    for dtype in ("float32", "bfloat16", "float16"):
        # What plain PyTorch is compared by; the other cases have bounds of their own.
        of = [case for case in cases if case["dtype"] == dtype and "plain_error" in case]
        worst = {key: max(max(case[key][1:]) for case in of) for key in ("error", "plain_error")}
        rows.append([dtype, str(len(of)), f"{worst['error']:.1e}", f"{worst['plain_error']:.1e}"])
    header = ["gradients, against float64", "cases", "largest error", "whole logits, plain PyTorch"]
    names = dict.fromkeys(case["case"] for case in cases)
    return f"{right} of {len(cases)} cases are right: {'; '.join(names)}.\n\n{_table(header, rows)}"


def passes(found: dict[str, Any]) -> str:
    rows = [
        [
            *(f"{row['positions']:,}", f"{row['vocab_size']:,}", f"{row['softcap']:g}" if row["softcap"] else ""),
            *(f"{row['fused_read_ms']:.3f}", f"{row['fused_read_tb_per_s']:.2f}"),
            *(f"{row['fused_write_ms']:.3f}", f"{row['fused_write_tb_per_s']:.2f}"),
            f"{row['plain_read_ms'] + row['plain_write_ms']:.2f}",
        ]
        for row in found["passes"]
    ]
    header = ["positions", "V", "cap", "read, ms", "TB/s", "write, ms", "TB/s", "plain PyTorch, both, ms"]
    blocks = [
        [str(row["block"]), str(row["warps"]), f"{row['read_ms']:.3f}", f"{row['write_ms']:.3f}"]
        for row in found["blocks"]
    ]
    return (
        f"{_table(header, rows)}\n\nWith other blocks and numbers of warps, N 8,192, V 50,304:\n\n"
        f"{_table(['block', 'warps', 'read, ms', 'write, ms'], blocks)}"
    )


def losses(found: dict[str, Any]) -> str:
    settings: dict[tuple[int, int, int], dict[str, dict[str, Any]]] = {}
    for row in found["rows"]:
        key = row["bag_size"], row["vocab_size"], row["width"]
        settings.setdefault(key, {})[row["method"]] = row
    rows = []
    for (bag_size, vocab_size, width), of in sorted(settings.items()):
        ours, plain = of[OURS], of[PLAIN]
        others = [f"{name} {row['to_plain']:.2f}" for name, row in of.items() if _other(name) and "to_plain" in row]
        rows.append(
            [
                *(str(bag_size), f"{vocab_size:,}", f"{width:,}", f"{plain['ms']:.2f}", f"{ours['ms']:.2f}"),
                *(f"**{ours['to_plain']:.2f}**", f"{ours['to_limit']:.2f}"),
                *(f"{ours['peak_mb'] / plain['peak_mb']:.2f}", "; ".join(others)),
            ]
        )
    header = ["s", "V", "D", "plain, ms", "superpose, ms", "to plain", "to limit", "memory to plain", "others to plain"]
    ratios = [of[OURS]["to_plain"] for of in settings.values()]
    memory = [of[OURS]["peak_mb"] / of[PLAIN]["peak_mb"] for of in settings.values()]
    said = [
        f"superpose takes no longer than plain in {sum(ratio <= 1 for ratio in ratios)} of {len(ratios)} settings; "
        f"at most {max(ratios):.2f} of its time,\nand {min(memory):.2f} to {max(memory):.2f} of its memory."
    ]
    said += [f"Left out for lack of time: {len(found['left_out'])} settings."] if found["left_out"] else []
    said += [f"Missing: {sentence}." for sentence in found["missing"]]
    return f"{' '.join(said)}\n\n{_table(header, rows)}"


def _other(name: str) -> bool:
    return name not in (OURS, PLAIN, LIMIT)


def steps(found: dict[str, Any]) -> str:
    rows = [
        [
            *(row["recipe"], f"{row['rows']} x {row['latents']:,}", row["method"], f"{row['ms']:.1f}"),
            *(f"{row['to_plain']:.2f}", f"{row['latents_per_s']:,}", f"{row['tokens_per_s']:,}"),
            *(f"{100 * row['mfu']:.0f} %" if row["mfu"] else "", f"{row['peak_mb'] / 1000:.1f}"),
        ]
        for row in found["rows"]
    ]
    header = ["recipe", "latents", "", "ms", "to plain", "latents/s", "tokens/s", "MFU", "GB above weights"]
    left = f"\n\nLeft out for lack of time: {', '.join(found['left_out'])}." if found["left_out"] else ""
    return f"{_table(header, rows)}{left}"


def sharded(found: dict[str, Any]) -> str:
    rows = [
        [str(row["bag_size"]), *(f"{loss:.6f}" for loss in row["losses"]), f"{row['gradient_error']:.1e}"]
        for row in found["rows"]
        if "losses" in row
    ]
    times = found["rows"][-1]
    return (
        f"{_table(['s', 'loss, whole', 'loss, sharded', 'largest error of a gradient'], rows)}\n\n"
        f"Forward and backward pass in bfloat16, blocks not compiled, s 4: {times['sharded_ms']:.1f} ms sharded, "
        f"{times['whole_ms']:.1f} ms whole ({found['backend']})."
    )


def training(found: dict[str, Any]) -> str:
    runs, text = found["rows"], found["text"]
    rows = [
        [f"{step:,}", *(f"{run['losses'][number][1]:.3f}" for run in runs)]
        for number, (step, _) in enumerate(runs[0]["losses"])
    ]
    facts = [
        f"{run['run']} {run['ms_per_step']:.1f} ms a step, {run['raw_tokens'] / 1e6:.1f}M tokens of text"
        for run in runs
    ]
    steps = runs[0]["steps"]
    return (
        f"{steps:,} steps of {runs[0]['latents'] // steps:,} latents, s {found['bag_size']}, r {found['ratio']}, on "
        f"{text['train_tokens'] / 1e6:.1f}M tokens\n({text['documents']:,} files of the machine's own sources and "
        f"pages, V {text['vocab_size']:,}).\n{'; '.join(facts)}.\nHeld-out next-token loss in nats:\n\n"
        f"{_table(['step', *(run['run'] for run in runs)], rows)}\n\n"
        "One run of each, so the effect of chance is unknown."
    )


def _table(header: list[str], rows: list[list[str]]) -> str:
    return markdown([("", tuple(header), [tuple(row) for row in rows])], "").strip()


SECTIONS = [
    ("correctness", "Correctness", correctness),
    ("passes", "The two passes", passes),
    ("losses", "The loss", losses),
    ("steps", "Whole steps", steps),
    ("sharded", "FSDP2 on one device", sharded),
    ("training", "Ordinary and superposed training side by side", training),
]
