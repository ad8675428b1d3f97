"""Which watchers a run has: a new one is a file in this folder and its name in this list."""

from __future__ import annotations

from collections.abc import Sequence

from superpose.train.config import TrainArgs
from superpose.train.distributed import Ranks
from superpose.train.records import Validation
from superpose.train.watch.baseline import Baseline
from superpose.train.watch.energy import EnergyMeter
from superpose.train.watch.loss import Finite, FirstLoss, Runaway
from superpose.train.watch.profile import Profile
from superpose.train.watch.switch import SwitchSpike
from superpose.train.watch.trackers import Trackers
from superpose.train.watch.watcher import Watcher


def watchers_of(args: TrainArgs, ranks: Ranks, baseline: Sequence[Validation], profile: bool) -> list[Watcher]:
    """The watchers on this rank, in the order they are called; energy counts from here on.

    Args:
        baseline: validations of an ordinary run to compare with; empty for none.
        profile: whether traces are written.
    """
    on_main = [EnergyMeter(ranks.device), Baseline(baseline), SwitchSpike(), Trackers(args.track)] if ranks.main else []
    return [Finite(), *on_main, FirstLoss(), Runaway(args.runaway), *([Profile()] if profile else [])]
