"""A recipe: everything a run depends on, checked before anything starts.

Every section is typed beside the component that uses it. A wrong name, type or combination is one sentence.
`superpose.train.recipe_file` reads, changes and writes recipes.
"""

import reprlib
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, PlainSerializer, model_validator

from superpose.core.ablations import WEIGHTED, Variant
from superpose.core.fold import Mode
from superpose.core.loss import Weighting
from superpose.core.schedule import Schedule
from superpose.core.stage import StageArgs
from superpose.data.config import DataArgs
from superpose.data.store import Split
from superpose.data.windows import UNEVEN, Expand, WindowPlan
from superpose.models.build import ModelArgs
from superpose.train.distributed import ParallelArgs
from superpose.train.hardware import Precision
from superpose.train.optim import OptimArgs

_BagSize = Annotated[int, Field(ge=1, le=2**20)]
_Ratio = Annotated[float, Field(ge=0, le=1)]
_Count = Annotated[int, Field(ge=1, lt=2**31)]


SHORT_FORM = ("bag_size", "ratio", "mode", "weighting")
"""Settings of superposition that say in short what `stages` spells out."""


def one_form(name: str) -> str:
    """Why a setting of the short form is refused beside described stages."""
    return (
        f"superposition.stages says what each stage is, so superposition.{name} would be ignored; give one of the two"
    )


def _described(stages: Any) -> Any:
    """Tables of stages as `StageArgs`; anything else is left to be refused.

    By hand, as the dataclass itself says best what is wrong with it.
    """
    if not isinstance(stages, Sequence) or isinstance(stages, str):
        raise ValueError(
            f"superposition.stages is {reprlib.repr(stages)}; write a table [[superposition.stages]] for each"
        )
    made = []
    for number, stage in enumerate(stages, 1):
        try:
            made.append(stage if isinstance(stage, StageArgs) else StageArgs.from_dict(stage))
        except ValueError as error:
            raise ValueError(f"superposition.stages, stage {number}: {error}") from None
    return tuple(made)


def _plain_stages(stages: Sequence[StageArgs]) -> list[dict[str, Any]]:
    return [stage.to_dict() for stage in stages]


def _not_drawn(bag_size: Any) -> Any:
    """Weights of sizes are refused where the short form has sizes, with the place they belong in."""
    if isinstance(bag_size, Mapping):
        sizes = ", ".join(f"{size}={weight}" for size, weight in bag_size.items())
        raise ValueError(
            f"superposition.bag_size is {{{sizes}}}; sizes that each step draws are a described stage's: give "
            f"superposition.stages=[{{ratio=0.3, bag_size={{{sizes}}}}}], with your ratio, in its place"
        )
    return bag_size


class SuperpositionArgs(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """The first phase, see `superpose.Schedule`; lists give several stages, `stages` describes each of them."""

    bag_size: Annotated[_BagSize | tuple[_BagSize, ...], BeforeValidator(_not_drawn)] = 4
    ratio: _Ratio | tuple[_Ratio, ...] = 0.3
    mode: Mode = "full"
    weighting: Weighting | tuple[float, ...] = "uniform"
    """Of the tokens in a target bag, see `superpose.bag_weights`."""
    variant: Variant = "mce"
    """Of the loss: `superpose.multi_hot_cross_entropy`, or an ablation of `superpose.core.ablations`."""
    expand: Expand = "sequence"
    """How a step takes in more tokens: by longer rows, or by more of them, see `superpose.data.windows.WindowPlan`."""
    documents: Literal["joined", "aligned"] = "joined"
    """Whether bags run across the ends of documents, or every document starts a new bag."""
    stages: Annotated[tuple[StageArgs, ...], BeforeValidator(_described), PlainSerializer(_plain_stages)] = ()
    """In place of bag_size, ratio, mode and weighting: a table for each stage, see `superpose.StageArgs`."""

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        if self.stages:
            for name in SHORT_FORM:
                if getattr(self, name) != SuperpositionArgs.model_fields[name].default:
                    raise ValueError(one_form(name))
        return self


class TrainArgs(OptimArgs, frozen=True):
    """One run. `lr` and what else steers the optimizer stands here too."""

    steps: _Count = 3000
    """Optimizer steps, both phases together."""
    batch_size: _Count = 16
    """Rows of a step."""
    latents: _Count = 128
    """Positions of a row in both phases; a row reads bag_size x latents tokens."""
    attention: Literal["row", "document"] = "row"
    """Whether a latent attends to all before it in its row, or inside its document alone."""
    accumulate: _Count = 1
    """Parts a step's rows are split into to save memory; the result stays the same."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    """Of the initial weights and of the order of the data."""
    precision: Literal["auto"] | Precision = "auto"
    """Of matrix products; weights and optimizer stay in float32. auto: bfloat16 where it is measured to be faster."""
    checkpoint_activations: bool = False
    """Compute each block's activations again in the backward pass instead of keeping them."""
    compile: bool = False
    """Compile the model's blocks; their shape is the same in both phases, so once. It is not counted as training."""
    device: str = "cpu"
    """Where PyTorch computes: cpu, cuda, cuda:1, mps, ...; of several ranks each takes a GPU of its own."""
    threads: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """CPU threads; 0 for PyTorch's own choice."""
    log_every: _Count = 10
    eval_every: _Count = 300
    """At most so many steps from one validation to the next; a short run has more, see `Recipe.validation_interval`."""
    checkpoint_every: _Count = 1000
    keep_checkpoints: _Count = 2
    """How many of the newest stay; those at the boundaries of phases always do."""
    reinit_embeddings: bool = False
    """For ablations: the embedding and the head start afresh at each boundary of phases."""
    runaway: Annotated[float, Field(ge=0)] = 3.0
    """Nats the loss may stand above its lowest in a phase before the run stops; 0 for any."""
    track: Literal["auto"] | tuple[Literal["tensorboard", "wandb", "trackio"], ...] = "auto"
    """Where metrics go besides metrics.jsonl: tensorboard, wandb, trackio; auto: TensorBoard if it is installed."""


_VALIDATIONS, _CLOSEST = 5, 20
"""A run is validated so often at least, but never at less than so many steps: a validation takes as long as some."""
OF_THE_MACHINE = {
    *("train.accumulate", "train.checkpoint_activations", "train.compile", "train.device", "train.threads"),
    *("train.keep_checkpoints", "train.log_every", "train.runaway", "train.track"),
}
"""Settings that say where and how a run is computed and watched, not what it computes. A run may go on with others."""


_schedule = lru_cache(maxsize=256)(Schedule)
"""Asked for at each look at a recipe, and the same one for many runs."""


class Recipe(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """All settings of a run. The defaults are the recipe `cpu-tiny`."""

    data: DataArgs = DataArgs()
    model: ModelArgs = ModelArgs()
    superposition: SuperpositionArgs = SuperpositionArgs()
    train: TrainArgs = TrainArgs()
    parallel: ParallelArgs = ParallelArgs()

    @property
    def schedule(self) -> Schedule:
        """Which bag size trains at which step."""
        superposition = self.superposition
        if superposition.stages:
            return Schedule(self.train.steps, stages=superposition.stages, seed=self.train.seed)
        return _schedule(
            self.train.steps,
            superposition.bag_size,
            superposition.ratio,
            superposition.mode,
            superposition.weighting,
        )

    @property
    def latents_per_step(self) -> int:
        """Positions a step computes, all ranks together."""
        return self.train.batch_size * self.train.latents

    @property
    def validation_interval(self) -> int:
        """Steps from one validation to the next: `eval_every`, or fewer where a short run would have hardly a curve.

        What is trained does not depend on it.
        """
        steps, every = self.train.steps, self.train.eval_every
        return min(every, max(_CLOSEST, -(-steps // _VALIDATIONS)))

    def ordinary(self) -> Self:
        """The same run without superposition."""
        documents = self.superposition.documents  # where the stream of text starts depends on it
        superposition = SuperpositionArgs(bag_size=1, ratio=0.0, documents=documents)
        return self.model_copy(update={"superposition": superposition})

    @property
    def computing(self) -> dict[str, Any]:
        """The settings that decide what a run makes of a given text, by `section.name`.

        Those at their defaults are left out, so that runs of before a setting was added are recognised.
        """
        default = _defaults()
        return {
            place: value
            for section, values in self.model_dump(mode="json", exclude={"data", "parallel"}).items()
            for name, value in values.items()
            if (place := f"{section}.{name}") not in OF_THE_MACHINE and value != default[section][name]
        }

    def changes(self, before: Self) -> list[str]:
        """`section.name` of each setting that would make another run of one begun with the recipe `before`."""
        now, then = self.computing, before.computing
        return sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))

    @property
    def starts_at_log_v(self) -> bool:
        """Whether the first loss of a run is that of a guess: its weights are fresh and its loss a cross-entropy."""
        ordinary = not self.schedule.stages[0].superposes
        return not self.model.init_from and (ordinary or self.superposition.variant in WEIGHTED)

    @property
    def stable_steps(self) -> int:
        """Steps before an ordinary run's learning rate begins to fall: a longer run of its kind shares them.

        0 where there are none to share. Bags and a cosine depend on the number of all steps from the start.
        """
        schedule = self.schedule
        if self.train.lr_schedule != "wsd" or schedule.boundaries or schedule.ends_in_superposition:
            return 0
        if schedule.args:  # one stage over all of the run, which may be of another kind
            return 0
        return self.train.steps - self.train.decay_steps(self.train.steps)

    def windows(self, split: Split) -> WindowPlan:
        """Which tokens of the training side each step reads."""
        train, superposition = self.train, self.superposition
        return WindowPlan(
            self.schedule,
            train.batch_size,
            train.latents,
            len(split.tokens),
            train.seed,
            superposition.expand,
            split.offsets if superposition.documents == "aligned" else None,
            split.sources,
        )

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        train, superposition = self.train, self.superposition
        stages, variant = superposition.stages, superposition.variant
        if variant != "mce" and any(stage.ordinary_rows for stage in stages):
            raise ValueError(
                f"superposition.variant = '{variant}' is of rows of bags, so it has no loss for ordinary_rows of a "
                f"stage; leave one of the two out"
            )
        if superposition.documents == "aligned" and any(stage.is_uneven for stage in stages):
            raise ValueError(f"{UNEVEN}; leave one of the two out")
        weighted = superposition.weighting != "uniform" or any(
            stage.weighting != "uniform" for stage in self.schedule.args
        )
        if superposition.variant not in WEIGHTED and weighted:
            raise ValueError(
                f"superposition.variant = '{superposition.variant}' weighs no targets, so "
                f"superposition.weighting would be ignored; leave it out"
            )
        for stage in self.schedule.stages:
            stage.ordinary_of(train.batch_size)
            for size in stage.sizes:
                if superposition.expand == "batch" and train.latents % stage.at_size(size).raw_tokens_per_latent:
                    raise ValueError(
                        f"train.latents ({train.latents}) is not a multiple of superposition.bag_size ({size}), "
                        f"as superposition.expand = 'batch' needs it to be"
                    )
        if train.batch_size % train.accumulate:
            raise ValueError(
                f"train.batch_size ({train.batch_size}) is not a multiple of train.accumulate ({train.accumulate})"
            )
        if self.parallel.shard_gradients and train.accumulate == 1:
            raise ValueError(
                "parallel.shard_gradients is of steps in several parts; set train.accumulate above 1, or leave it out"
            )
        if train.warmup_steps + train.decay_steps(train.steps) > train.steps:
            raise ValueError(
                f"train.warmup_steps ({train.warmup_steps}) and the decay over the last "
                f"{train.decay_steps(train.steps)} steps do not fit into train.steps ({train.steps}); lower one of them"
            )
        return self


@cache
def _defaults() -> dict[str, Any]:
    return Recipe().model_dump(mode="json")
