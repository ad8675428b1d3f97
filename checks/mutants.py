"""Breaks the code in the ways the method is usually got wrong, and checks that the tests marked for it notice.

    python checks/mutants.py            all mutants, some minutes
    python checks/mutants.py 1 9        those of errors 1 and 9

Each mutant is one replacement in a copy of src/. The numbers are those of the twelve errors in docs/method.md.
A mutant that survives ends the script with exit code 1.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Mutant:
    """Replaces `old` by `new` in a source file; `tests` are where it has to be noticed."""

    error: int
    what: str
    file: str
    old: str
    new: str
    tests: str


MUTANTS = [
    Mutant(
        1,
        "targets shifted by one token and then folded: s - 1 of s targets are in the input",
        "core/fold.py",
        "inputs, targets = bags[:, :-1], bags[:, 1:]",
        "inputs, targets = bags[:, :-1], fold(window[:, 1 : length - bag_size + 1], bag_size)",
        "tests/core",
    ),
    Mutant(
        1,
        "targets shifted by one token and then by a bag: a token is skipped",
        "core/fold.py",
        "inputs, targets = bags[:, :-1], bags[:, 1:]",
        "inputs, targets = bags[:, :-1], fold(window.roll(-1, 1), bag_size)[:, 1:]",
        "tests/core",
    ),
    Mutant(
        1,
        "an extra head is asked for the bag that the model is asked for",
        "core/extra_heads.py",
        "for i in range(1, heads + 1)",
        "for i in range(heads)",
        "tests/core/test_extra_heads.py",
    ),
    Mutant(
        1,
        "labels that are already shifted are shifted by a whole bag more",
        "core/fold.py",
        "[labels[:, bag_size - 1 :], missing]",
        "[labels[:, bag_size:], missing, missing[:, :1]]",
        "tests/core/test_fold.py",
    ),
    Mutant(
        2,
        "the loss of a bag divided by its size once too often",
        "core/loss.py",
        'if reduction == "mean":',
        'losses = losses / targets.shape[-1]\n    if reduction == "mean":',
        "tests/core/test_loss.py",
    ),
    Mutant(
        2,
        "the same through the head",
        "core/parts.py",
        "loss = cross_entropy = total / divisor",
        "loss = cross_entropy = total / divisor / bag_size",
        "tests/core/test_model.py",
    ),
    Mutant(
        2,
        "nobody looks at the first loss",
        "train/watch.py",
        "if abs(loss - expected) > 0.2 * expected:",
        "if False:",
        "tests/train/test_loop.py",
    ),
    Mutant(
        3,
        "one head product for each target of a bag",
        "core/sweep.py",
        "torch.mm(states.to(dtype), head.t(), out=buffer[: len(states)])",
        "[torch.mm(states.to(dtype), head.t(), out=buffer[: len(states)]) for _ in targets[0]][0]",
        "tests/core/test_linear_loss.py",
    ),
    Mutant(
        3,
        "all N x V logits at once",
        "core/sweep.py",
        "chunk_positions = max(1, min(settings.chunk_positions, len(hidden)))",
        "chunk_positions = max(1, len(hidden))",
        "tests/core/test_linear_loss.py",
    ),
    Mutant(
        4,
        "positions without a valid target count in the mean",
        "core/loss.py",
        "return valid.any(dim=-1).sum()",
        "return torch.tensor(valid[..., 0].numel())",
        "tests/core/test_loss.py",
    ),
    Mutant(
        4,
        "a position without a valid target is NaN",
        "core/loss.py",
        "return weighted / mass.masked_fill(mass == 0, 1)",
        "return weighted / mass",
        "tests/core/test_loss.py",
    ),
    Mutant(
        4,
        "each part of a step is normalised by itself",
        "core/parts.py",
        "divisor = positions.clamp(min=1) if normalizer is None else normalizer",
        "divisor = positions.clamp(min=1)",
        "tests/core/test_model.py",
    ),
    Mutant(
        4,
        "duplicated targets count once",
        "core/sweep.py",
        "if share.shape[-1] == 1:",
        "if True:",
        "tests/core/test_linear_loss.py",
    ),
    Mutant(
        4,
        "positions without a valid target have gradients",
        "core/sweep.py",
        "factor = bags.counts.to(sums.lse.dtype) if upstream is None",
        "factor = torch.ones_like(sums.lse) if upstream is None",
        "tests/core/test_linear_loss.py",
    ),
    Mutant(
        6,
        "the z-loss has no gradient",
        "core/sweep.py",
        "factor = factor * (1 + 2 * settings.z_loss * sums.lse)",
        "pass",
        "tests/core/test_linear_loss.py",
    ),
    Mutant(
        6,
        "the gradient of capped logits is that of uncapped ones",
        "core/passes.py",
        "slope = 1 - block.square() if keep else None",
        "slope = None",
        "tests/core/test_linear_loss.py",
    ),
    Mutant(
        6,
        "a capped model is trained without its cap",
        "core/model.py",
        "            head.softcap,\n",
        "            None,\n",
        "tests/core/test_model.py",
    ),
    Mutant(
        5,
        "ignored tokens are embedded as token 0",
        "core/embed.py",
        "per_sample_weights=learned)",
        "per_sample_weights=0 * learned + 1)",
        "tests/core/test_embed.py",
    ),
    Mutant(
        5,
        "the mean divides by the bag size, ignored tokens included",
        "core/embed.py",
        "valid.sum(dim=-1, keepdim=True).clamp(min=1)",
        "valid.sum(dim=-1, keepdim=True).clamp(min=valid.shape[-1])",
        "tests/core/test_embed.py",
    ),
    Mutant(
        5,
        "the mask of a bag is that of its first token",
        "core/fold.py",
        "fold(mask.bool(), bag_size).any(dim=-1)",
        "fold(mask.bool(), bag_size)[..., 0]",
        "tests/core/test_fold.py",
    ),
    Mutant(
        5,
        "the mask of a row is cut instead of folded",
        "core/parts.py",
        "return fold_mask(values, bag_size)",
        "return values[:, : values.shape[1] // bag_size]",
        "tests/core/test_model.py",
    ),
    Mutant(
        6,
        "side inputs fold across bags",
        "core/fold.py",
        "values.unflatten(1, (-1, bag_size))",
        "values.unflatten(1, (bag_size, -1)).transpose(1, 2)",
        "tests/core/test_fold.py",
    ),
    Mutant(
        6,
        "an embedding's own scale is bypassed",
        "core/embed.py",
        "if type(embedding) is not nn.Embedding or",
        "if not isinstance(embedding, nn.Embedding) or",
        "tests/core/test_model.py",
    ),
    Mutant(
        6,
        "logits that a model scales are trained unscaled",
        "core/head.py",
        "return hidden if self.scale == 1 else hidden * self.scale",
        "return hidden",
        "tests/core/test_families.py",
    ),
    Mutant(
        6,
        "a head's transform is skipped",
        "core/head.py",
        "if self.transform is not None:",
        "if False:",
        "tests/core/test_families.py",
    ),
    Mutant(
        6,
        "tables of each layer are dropped",
        "core/model.py",
        'if lookup is None or not getattr(self.model.config, "hidden_size_per_layer_input", 0):',
        "if True:",
        "tests/core/test_families.py",
    ),
    *(
        Mutant(
            6,
            f"the check leaves out {what}",
            "core/check.py",
            f"                check.{name}()\n",
            "",
            "tests/core/test_check.py",
        )
        for what, name in (
            ("the logits", "logits"),
            ("bags", "bags"),
            ("causality", "causality"),
            ("documents", "documents"),
        )
    ),
    Mutant(
        6,
        "latents of padding count as an expert's load",
        "core/model.py",
        'sides["counted"] = window != IGNORE_INDEX',
        'sides["counted"] = torch.ones_like(window)',
        "tests/core/test_experts.py",
    ),
    Mutant(
        6,
        "biases of routers move the wrong way",
        "core/experts.py",
        "counts.mean(dim=-1, keepdim=True) - counts",
        "counts - counts.mean(dim=-1, keepdim=True)",
        "tests/core/test_experts.py",
    ),
    Mutant(
        5,
        "a document's open places are filled with the next document",
        "data/grid.py",
        "count = min(left, length - filled)",
        "count = min(room, length - filled)",
        "tests/data/test_windows.py",
    ),
    Mutant(
        6,
        "position ids run on over the ends of documents",
        "core/fold.py",
        "return latent - torch.where(starts, latent, 0).cummax(dim=1).values",
        "return latent.contiguous()",
        "tests/core",
    ),
    Mutant(
        9,
        "recovery starts again at the first document",
        "data/windows.py",
        "token = grid.tokens_before(cut[-1].stop if cut else place)",
        "token = 0",
        "tests/data/test_windows.py",
    ),
    Mutant(
        9,
        "a source skips the rows of the others",
        "data/windows.py",
        "return plan, plan._start(stage, own)",
        "return plan, plan._start(stage, in_stage)",
        "tests/data/test_mixture.py",
    ),
    Mutant(
        9,
        "rows of a stage are of sources in blocks and not in turn",
        "data/mixture.py",
        "before = node.of_first(row)",
        "before = min(row, 7)",
        "tests/data/test_mixture.py",
    ),
    Mutant(
        9,
        "every rank reads the rows of the first",
        "data/windows.py",
        "rank * (rows // world_size)",
        "0 * rank * (rows // world_size)",
        "tests/data/test_windows.py",
    ),
    Mutant(
        12,
        "places that hold nothing are counted as tokens",
        "data/windows.py",
        "total += share * (grid.tokens_before(stretch.stop) - grid.tokens_before(stretch.start))",
        "total += share * (stretch.stop - stretch.start)",
        "tests/data/test_windows.py",
    ),
    Mutant(
        12,
        "an extra head costs its own matrix, and the model's unembedding nothing more",
        "core/accounting.py",
        "6 * count * (width * width + vocab_size * width)",
        "6 * count * width * width",
        "tests/core/test_extra_heads.py",
    ),
    Mutant(
        12,
        "shorter rows cost as much attention as longer ones",
        "train/running.py",
        "lambda stage: flops_of[self._shape(stage)]",
        "lambda stage: max(flops_of.values())",
        "tests/train/test_loop.py",
    ),
    Mutant(
        7,
        "validation in bag mode",
        "train/step.py",
        "bag_size=1, normalizer=1.0",
        "bag_size=2, normalizer=1.0",
        "tests/train/test_step.py",
    ),
    Mutant(
        7,
        "bag loss and token loss under one name",
        "train/running.py",
        "loss=loss if step.bag_size == 1 else None",
        "loss=loss",
        "tests/train/test_loop.py",
    ),
    Mutant(
        7,
        "a model that ends in superposition is shipped",
        "train/loop.py",
        "if run.recipe.schedule.ends_in_superposition:\n        return",
        "if False:\n        return",
        "tests/train/test_loop.py",
    ),
    Mutant(
        8,
        "the loop switches a step late",
        "train/loop.py",
        "computed = schedule.step_at(step)",
        "computed = schedule.step_at(max(0, step - 1))",
        "tests/train/test_loop.py",
    ),
    Mutant(
        8,
        "the boundary does not follow the number of steps",
        "core/schedule.py",
        "stop = int(self.total_steps * share + Fraction(1, 2))",
        "stop = min(self.total_steps, int(1000 * share))",
        "tests/core/test_schedule.py",
    ),
    Mutant(
        9,
        "windows are drawn at random, some twice",
        "data/stretches.py",
        "index = permute(index, self.shuffled, ",
        "index = self.shuffled and index // 2 + 0 * permute(index, self.shuffled, ",
        "tests/data/test_windows.py",
    ),
    Mutant(
        9,
        "the optimizer's state is not restored",
        "train/checkpoint.py",
        "            if values:\n",
        "            if False:\n",
        "tests/train/test_checkpoint.py",
    ),
    Mutant(
        9,
        "random numbers depend on where the run was resumed",
        "train/loop.py",
        'torch.manual_seed(random_bits(args.seed, "step", step, ranks.rank))',
        "pass",
        "tests/train/test_loop.py",
    ),
    Mutant(
        4,
        "each rank divides by the whole step",
        "train/step.py",
        "args.batch_size * args.latents / ranks.world_size",
        "args.batch_size * args.latents",
        "tests/train/test_distributed.py",
    ),
    Mutant(
        4,
        "each rank balances the experts by itself",
        "core/experts.py",
        "if group is not None:",
        "if False:",
        "tests/core/test_experts.py",
    ),
    Mutant(
        9,
        "all ranks read the same rows",
        "train/running.py",
        "self.windows.read(self.store.train.tokens, step, self.ranks.rank, self.ranks.world_size)",
        "self.windows.read(self.store.train.tokens, step, 0, self.ranks.world_size)",
        "tests/train/test_distributed.py",
    ),
    Mutant(
        10,
        "tokens are read one by one",
        "data/windows.py",
        "grid.read(text, int(start), length)",
        "np.concatenate([grid.read(text, int(start) + i, 1) for i in range(length)])",
        "tests/train/test_loop.py",
    ),
    Mutant(
        11,
        "the embedding is unused in superposition",
        "core/embed.py",
        "return embed_bags(inputs, embedding.weight, padding_idx=embedding.padding_idx, pooling=pooling)",
        "return embed_bags(inputs, embedding.weight.detach())",
        "tests/core/test_model.py",
    ),
    Mutant(
        11,
        "the body sees another length in superposition",
        "core/embed.py",
        "return embed_bags(inputs, embedding.weight, padding_idx=embedding.padding_idx, pooling=pooling)",
        "return embedding(inputs.flatten(1))",
        "tests/core/test_model.py",
    ),
    Mutant(
        9,
        "rows of drawn bag sizes start where the stage does",
        "data/uneven.py",
        "return begin + longer + moved * tokens",
        "return begin + moved * tokens",
        "tests/data/test_windows.py",
    ),
    Mutant(
        12,
        "raw tokens of ordinary rows counted as a bag's",
        "core/stage.py",
        "return self.ordinary_share + (1 - self.ordinary_share) * self.raw_tokens_per_latent",
        "return Fraction(self.raw_tokens_per_latent)",
        "tests/core/test_stage.py",
    ),
    Mutant(
        12,
        "raw tokens counted as latents",
        "core/stage.py",
        'return 1 if self.mode == "output" else self.largest',
        "return 1",
        "tests/core/test_schedule.py",
    ),
    Mutant(
        12,
        "FLOPs counted by raw tokens",
        "core/accounting.py",
        "steps * latents_per_step * flops_of_latent(stage)",
        "steps * latents_per_step * flops_of_latent(stage) * stage.raw_tokens_per_latent",
        "tests/core/test_accounting.py",
    ),
    Mutant(
        12,
        "all experts counted as active",
        "models/build.py",
        "parameter.numel() * _setting(model.config, _CHOSEN) // _setting(model.config, _EXPERTS)",
        "parameter.numel()",
        "tests/core/test_accounting.py",
    ),
    Mutant(
        12,
        "a second epoch is not mentioned",
        "train/loop.py",
        "*by_source.values()]) > 1",
        "*by_source.values()]) > 1e9",
        "tests/train/test_loop.py",
    ),
    Mutant(
        12,
        "equal data is taken for equal steps",
        "compare/experiment.py",
        "return round(recipe.schedule.raw_tokens(recipe.latents_per_step) / per_step)",
        "return recipe.train.steps",
        "tests/compare/test_experiment.py",
    ),
    Mutant(
        12,
        "the ordinary arm is given as many raw tokens at the same steps",
        "compare/experiment.py",
        "return recipe.ordinary()",
        "return with_settings(recipe.ordinary(), 'train', latents=2 * recipe.train.latents)",
        "tests/compare/test_comparison.py",
    ),
]


def killed(mutant: Mutant) -> bool:
    """Whether a test marked for the mutant's error fails on it."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "src")
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        file = source / "superpose" / mutant.file
        text = file.read_text(encoding="utf-8")
        if mutant.old not in text:
            sys.exit(f"{mutant.file} no longer holds {mutant.old!r}; bring the mutant up to date")
        file.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "-m", f"error(n={mutant.error})"]
        done = subprocess.run(
            [*command, mutant.tests],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(source)},
            capture_output=True,
            text=True,
        )
    if done.returncode not in (0, 1):
        sys.exit(f"pytest did not run for {mutant.what!r}:\n{done.stdout}{done.stderr}")
    return done.returncode == 1


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    arguments.add_argument("errors", type=int, nargs="*", metavar="ERROR")
    wanted = set(arguments.parse_args().errors)
    if unknown := wanted - {mutant.error for mutant in MUTANTS}:
        arguments.error(f"there is no error {min(unknown)}; give numbers from 1 to 12")
    chosen = [mutant for mutant in MUTANTS if not wanted or mutant.error in wanted]
    survivors = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for mutant, caught in zip(chosen, pool.map(killed, chosen), strict=True):
            survivors += not caught
            print(f"{'caught  ' if caught else 'SURVIVED'}  error {mutant.error:2}  {mutant.what}", flush=True)
    print(f"{survivors} survived")
    sys.exit(survivors > 0)


if __name__ == "__main__":
    main()
