"""Draws the pictures of the method: `python docs/images/draw.py` writes them beside it.

Text stays text, and each picture brings its own ground in both colour schemes, so that it can be read on any page.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from superpose import Schedule, StageArgs
from superpose.core.rates import blended_factor
from superpose.core.stage import Stage

STYLE = """
  svg { --ink: #111827; --soft: #4b5563; --line: #9ca3af; --paper: #f9fafb; --frame: #e5e7eb;
        --a: #dbeafe; --a-line: #2563eb; --b: #fef3c7; --b-line: #b45309; --c: #dcfce7; --c-line: #15803d;
        --wrong: #fee2e2; --wrong-line: #b91c1c; --none: #ffffff; }
  @media (prefers-color-scheme: dark) {
    svg { --ink: #f3f4f6; --soft: #a1a9b8; --line: #5b6475; --paper: #171e2e; --frame: #2d3748;
          --a: #1e3a6e; --a-line: #7aa2ff; --b: #573a0c; --b-line: #f5b041; --c: #14492c; --c-line: #4ade80;
          --wrong: #611a1a; --wrong-line: #f87171; --none: #0f1420; }
  }
  text { font: 14px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: var(--ink); }
  .soft { fill: var(--soft); } .small { font-size: 12px; } .middle { text-anchor: middle; } .bold { font-weight: 600; }
  .arrow { stroke: var(--line); stroke-width: 1.5; fill: none; marker-end: url(#tip); }
  .bracket { stroke: var(--line); stroke-width: 1.5; fill: none; }
"""
TIP = (
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0L8 4L0 8z" style="fill:var(--line)"/></marker></defs>'
)
BAGS = "abc"
"""A colour for each bag of a window."""


def box(x: float, y: float, width: float, height: float, label: str, colour: str, dashed: bool = False) -> str:
    line = "--line" if colour == "none" else f"--{colour}-line"
    dash = "stroke-dasharray:4 3;" if dashed else ""
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="5" '
        f'style="fill:var(--{colour});stroke:var({line});{dash}stroke-width:1.3"/>'
        + text(x + width / 2, y + height / 2 + 4.5, label, "small middle")
    )


def text(x: float, y: float, words: str, kind: str = "") -> str:
    return f'<text x="{x}" y="{y}" class="{kind}">{escape(words)}</text>'


def arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    return f'<path class="arrow" d="M{x} {y}L{to_x} {to_y}"/>'


def bracket(x: float, y: float, width: float) -> str:
    """Under boxes: which of them belong together."""
    return f'<path class="bracket" d="M{x} {y}v6h{width}v-6"/>'


def picture(width: int, height: int, title: str, parts: Iterable[str]) -> str:
    ground = (
        f'<rect x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="8" '
        f'style="fill:var(--paper);stroke:var(--frame)"/>'
    )
    lines = [f"<title>{escape(title)}</title>", f"<style>{STYLE}</style>", TIP, ground, *parts]
    body = "\n".join(lines)
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">\n{body}\n</svg>\n'


def folding() -> str:
    """A window of 12 tokens at s 4: what goes in and what has to come out."""
    left, step, size = 120, 47, 42

    def at(token: int) -> float:
        return left + step * token

    bag = 3 * step + size
    parts = [text(20, 51, "window", "bold")]
    parts += [box(at(t), 30, size, 32, f"t{t}", BAGS[t // 4]) for t in range(12)]
    for j in range(2):
        middle = at(4 * j) + bag / 2
        parts += [bracket(at(4 * j), 68, bag), arrow(middle, 74, middle, 96)]
        parts += [box(at(4 * j), 98, bag, 32, f"mean embedding of t{4 * j} to t{4 * j + 3}", BAGS[j])]
        parts += [arrow(middle, 132, middle, 154), box(at(4 * j), 156, bag, 32, f"position {j}: one softmax", "none")]
        parts += [arrow(middle, 190, middle, 212)]
        parts += [box(at(4 * j + i), 214, size, 32, f"t{4 * j + 4 + i}", BAGS[j + 1]) for i in range(4)]
    note = at(8) + 4
    parts += [text(20, 119, "inputs", "bold"), text(20, 177, "model", "bold"), text(20, 235, "targets", "bold")]
    parts += [text(note, 112, "t8 to t11 are targets alone:", "small soft")]
    parts += [text(note, 130, "the next window begins at t8", "small soft")]
    parts += [text(note, 226, "all tokens of the next bag,", "small soft")]
    parts += [text(note, 244, "in no order", "small soft")]
    return picture(704, 272, "Folding: a window of 12 tokens, bags of 4, two positions", parts)


def phases() -> str:
    """A row of each phase: the same four positions, four times the tokens."""

    def panel(x: float, title: str, share: str, s: int, reads: str, asks: str) -> list[str]:
        parts = [text(x, 40, title, "bold"), text(x, 60, share, "small soft")]
        for j in range(5):
            left = x + 66 * j
            for i in range(s):
                wide = 24 if s > 1 else 52
                label = f"t{s * j + i}"
                parts += [box(left + 28 * (i % 2), 170 + 30 * (i // 2), wide, 26, label, "b" if j == 4 else "a")]
            if j < 4:
                parts += [arrow(left + 26, 166, left + 26, 138), box(left, 100, 52, 36, f"z{j}", "none")]
        parts += [
            text(x, 258, reads, "small"),
            text(x, 277, asks, "small"),
            text(x, 296, "computes L = 4 positions", "small"),
        ]
        return parts

    parts = panel(
        24,
        "Superposition, s 4",
        "the first r of the steps",
        4,
        "reads s x L = 16 tokens",
        "z0 predicts t4, t5, t6 and t7",
    )
    parts += panel(392, "Recovery", "the rest: ordinary training", 1, "reads L = 4 tokens", "z0 predicts t1")
    parts += ['<path class="bracket" d="M368 28V300" style="stroke-dasharray:3 4"/>']
    parts += [text(368, 20, "switch", "small soft middle")]
    return picture(740, 316, "Both phases: four positions either way", parts)


def shifts() -> str:
    """What position 0 sees and must predict: the right way, and the two usual mistakes."""
    left, step, size = 170, 47, 42

    def line(y: float, name: str, seen: Sequence[int], asked: Sequence[int], words: str) -> list[str]:
        parts = [text(20, y + 20, name, "bold")]
        for t in range(9):
            both, neither = t in seen and t in asked, t not in seen and t not in asked
            skipped = neither and t < max(asked)
            colour = "wrong" if both or skipped else "a" if t in seen else "b" if t in asked else "none"
            parts += [box(left + step * t, y, size, 32, f"t{t}", colour, dashed=skipped)]
        return [*parts, text(left, y + 52, words, "small soft")]

    parts = [box(left, 18, 64, 24, "sees", "a"), box(left + 74, 18, 84, 24, "is asked for", "b")]
    parts += [box(left + 168, 18, 110, 24, "leaks, is skipped", "wrong")]
    parts += line(62, "right", range(4), range(4, 8), "Bag 0 predicts bag 1.")
    parts += line(
        136,
        "shift by 1, fold",
        range(4),
        range(1, 5),
        "Three of the four targets are in the input: the loss falls but means nothing.",
    )
    parts += line(
        210, "shift by 1 + s", range(4), range(5, 9), "Position 0 never predicts t4, the token that comes next."
    )
    return picture(620, 282, "The label shift, right, leaking and skipping", parts)


def heads() -> str:
    """The bag that each head predicts at each of three latents; at s 1 the bags are tokens."""
    left, step, width = 120, 104, 96
    parts = [text(20, 51, "window", "bold")]
    for bag in range(6):
        label = f"bag {bag}: t{2 * bag}, t{2 * bag + 1}"
        parts += [box(left + step * bag, 30, width, 32, label, "a" if bag < 3 else "none", dashed=bag > 3)]
    for latent in range(3):
        y = 84 + 44 * latent
        parts += [text(20, y + 21, f"latent {latent}", "bold"), box(left, y, step * latent + width, 32, "reads", "a")]
        for head, (label, colour) in enumerate((("the model", "b"), ("head 1", "c"), ("head 2", "c"))):
            parts += [box(left + step * (latent + 1 + head), y, width, 32, label, colour)]
    parts += [text(left, 236, "At latent j, head i predicts what the model predicts at latent j + i.", "small")]
    parts += [text(left, 254, "Only the heads need bags 4 and 5: the next window begins at bag 3.", "small soft")]
    return picture(760, 274, "Two extra heads: the bag each one predicts at each of three latents", parts)


def bars(x: float, y: float, heights: Sequence[float], labels: Sequence[str], colour: str, step: float) -> list[str]:
    """Bars with their base at height y, each with its label below."""
    wide, parts = step - 8, []
    for at, (height, label) in enumerate(zip(heights, labels, strict=True)):
        left = x + step * at
        parts += [area([(left, y), (left, y - height), (left + wide, y - height), (left + wide, y)], colour)]
        parts += [text(left + wide / 2, y + 17, label, "small soft middle")]
    return [*parts, curve([(x - 6, y), (x + step * len(heights) - 2, y)], "line")]


def area(points: Sequence[tuple[float, float]], colour: str) -> str:
    path = "L".join(f"{x:g} {y:g}" for x, y in points)
    return f'<path d="M{path}z" style="fill:var(--{colour});stroke:var(--{colour}-line);stroke-width:1.3"/>'


def curve(points: Sequence[tuple[float, float]], colour: str, dashed: bool = False) -> str:
    path = "L".join(f"{x:g} {y:g}" for x, y in points)
    dash = ";stroke-dasharray:5 4" if dashed else ""
    return f'<path d="M{path}" style="fill:none;stroke:var(--{colour});stroke-width:2{dash}"/>'


def pooling() -> str:
    """The factor of each token of a bag of four, before their vectors are added."""
    total = sum(1 / place for place in range(1, 5))
    kinds = (
        ("mean", [1 / 4] * 4, "each times 1/4: the paper"),
        ("sqrt", [1 / 2] * 4, "each times 1/2"),
        ("power", [1 / place / total for place in range(1, 5)], "as 1, 1/2, 1/3, 1/4; sum 1"),
    )
    parts = [text(20, 32, "What the embeddings of a bag of 4 are multiplied by", "bold")]
    for at, (name, factors, words) in enumerate(kinds):
        left = 26 + 220 * at
        parts += [text(left, 62, name, "bold"), text(left, 82, words, "small soft")]
        parts += bars(left, 196, [190 * factor for factor in factors], [f"t{i}" for i in range(4)], BAGS[at], 46)
    return picture(676, 230, "Three poolings of a bag of four tokens", parts)


def weights() -> str:
    """The weights of three targets at five moments of a stage."""
    begin, end = (4 / 7, 2 / 7, 1 / 7), (2 / 3, 1 / 3, 0)
    parts = [text(20, 32, "Weights of the next three tokens, from [1, 0.5, 0.25] to [1, 0.5, 0]", "bold")]
    for at, moment in enumerate(("the stage begins", "1/4", "1/2", "3/4", "it ends")):
        now = [(1 - at / 4) * first + at / 4 * last for first, last in zip(begin, end, strict=True)]
        left = 26 + 130 * at
        parts += [text(left, 62, moment, "small soft")]
        parts += bars(left, 190, [170 * weight for weight in now], ["t1", "t2", "t3"], "b", 34)
    return picture(676, 224, "Weights of target tokens that change over a stage", parts)


def drawn() -> str:
    """How likely each size is over a stage, and what one seed draws in its twelve steps."""
    left, right, top, bottom = 24, 652, 50, 170
    start, half, end = (left, bottom), (left, (top + bottom) / 2), (right, top)
    parts = [text(20, 32, "Probability of each size, from { 8 = 1, 4 = 1 } to { 2 = 1 }", "bold")]
    parts += [area([(left, top), half, end], "a"), area([half, start, end], "b")]
    parts += [area([start, (right, bottom), end], "c")]
    parts += [text(left + 14, top + 34, "size 8"), text(left + 14, top + 90, "size 4")]
    parts += [text(right - 64, bottom - 20, "size 2")]
    stage = StageArgs(0.3, bag_size={8: 1, 4: 1}, bag_size_end={2: 1})
    schedule = Schedule(40, stages=[stage], seed=1)
    sizes = [schedule.step_at(step).bag_size for step in range(schedule.stages[0].steps)]
    wide = (right - left) / len(sizes)
    parts += [text(left, 198, f"Drawn in {len(sizes)} steps by seed 1:", "small soft")]
    for step, size in enumerate(sizes):
        parts += [box(left + wide * step, 210, wide - 6, 30, str(size), {8: "a", 4: "b", 2: "c"}[size])]
    return picture(676, 260, "Bag sizes drawn for each step", parts)


def mixed() -> str:
    """Four rows of a step at s 4, one of them of single tokens: as many latents in each."""
    parts = [text(20, 32, "A step of 4 rows at s 4, ordinary_rows = 0.25: four latents in each", "bold")]
    for row in range(4):
        y, ordinary = 50 + 40 * row, row == 3
        parts += [text(20, y + 20, f"row {row}", "bold")]
        for latent in range(4):
            label = f"t{latent}" if ordinary else f"t{4 * latent} to t{4 * latent + 3}"
            parts += [box(80 + 104 * latent, y, 96, 30, label, "c" if ordinary else "a")]
        parts += [text(508, y + 20, "predicts the next token" if ordinary else "predicts the next bag", "small soft")]
    return picture(676, 224, "Ordinary rows beside rows of bags", parts)


def rates() -> str:
    """The learning rate of a run whose first stage has a factor of 2, and the rate without it."""

    def rate(step: int) -> float:
        return min((step + 1) / 20, 1, (300 - step) / 60)

    def line(stages: Sequence[Stage]) -> list[tuple[float, float]]:
        return [(60 + 1.9 * step, 200 - 72 * rate(step) * blended_factor(stages, step)) for step in range(300)]

    stages = Schedule(300, stages=[StageArgs(0.3, bag_size=4, lr_factor=2.0, lr_blend_steps=20)]).stages
    plain = Schedule(300, 4, 0.3).stages
    switch = 60 + 1.9 * stages[1].start
    parts = [text(20, 32, "Learning rate with lr_factor = 2 in the bags", "bold")]
    parts += [curve([(switch, 46), (switch, 200)], "line", dashed=True), text(switch + 6, 60, "switch", "small soft")]
    parts += [curve(line(plain), "b-line", dashed=True), curve(line(stages), "a-line")]
    parts += [curve([(60, 46), (60, 200), (630, 200)], "line")]
    parts += [text(52, 132, "1", "small soft"), text(52, 60, "2", "small soft")]
    parts += [text(switch + 34, 96, "blended over lr_blend_steps", "small"), text(130, 148, "unchanged", "small")]
    parts += [text(60, 222, "first step", "small soft"), text(580, 222, "last step", "small soft")]
    return picture(676, 240, "Learning rate of a stage, blended into the next", parts)


def mixture() -> str:
    """The source of each row in three steps, at 0.75 and 0.25."""
    parts = [text(20, 32, "mixture = { web = 0.75, code = 0.25 }: rows are assigned in turn", "bold")]
    next_row = {"w": 0, "c": 0}
    for step in range(3):
        left = 24 + 216 * step
        parts += [text(left, 60, f"step {step}", "small soft")]
        for row, source in enumerate("wcww"):
            words = f"{'web' if source == 'w' else 'code'} row {next_row[source]}"
            parts += [box(left, 72 + 36 * row, 190, 30, words, "a" if source == "w" else "b")]
            next_row[source] += 1
    return picture(676, 234, "The source of each row in three steps", parts)


def architecture() -> str:
    """The rooms of src/superpose by floor, from the table in docs/architecture.md."""
    page = (Path(__file__).parents[1] / "architecture.md").read_text(encoding="utf-8")
    floors = re.findall(r"^\| (\d+) \| (.+?) \| (.+) \|$", page, re.MULTILINE)
    parts = []
    for number, (floor, names, holds) in enumerate(floors):
        rooms = re.findall(r"`(\w+)`", names)
        y, colour = 20 + 44 * number, "c" if int(floor) > 6 else "b" if int(floor) > 3 else "a"
        parts += [text(20, y + 21, floor, "small soft")]
        parts += [box(44 + 98 * at, y, 90, 32, room, colour) for at, room in enumerate(rooms)]
        lines = textwrap.wrap(holds, 66)
        parts += [
            text(348, y + 20 + 15 * at - 7 * (len(lines) - 1), line, "small soft") for at, line in enumerate(lines)
        ]
    height = 44 * len(floors)
    parts += [arrow(10, 24, 10, height + 6), text(20, height + 36, "Imports go down only.", "small bold")]
    return picture(760, height + 54, "The rooms of superpose by floor: imports go down only", parts)


if __name__ == "__main__":
    method = (folding, phases, shifts, heads)
    for draw in (*method, pooling, weights, drawn, mixed, rates, mixture, architecture):
        (Path(__file__).parent / f"{draw.__name__}.svg").write_text(draw(), encoding="utf-8")
