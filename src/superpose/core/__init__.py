"""Token superposition as a method, in plain PyTorch: all that an integration needs, and no I/O.

Read in this order: `fold` (rows to bags), `embed` (bags to vectors), `loss` (bags to predict) and `linear_loss` (the
same from hidden states, fast), `schedule` (which bag size when), `model` (all of it around a Hugging Face model),
`accounting` (what it costs).
"""

from superpose.core.accounting import Cost, cost, flops_per_latent
from superpose.core.embed import embed_bags
from superpose.core.fold import (
    IGNORE_INDEX,
    MODES,
    Mode,
    document_positions,
    fold,
    fold_mask,
    shift_labels,
    split_window,
    window_length,
)
from superpose.core.linear_loss import VocabShard, linear_multi_hot_cross_entropy
from superpose.core.loss import bag_weights, count_positions, multi_hot_cross_entropy
from superpose.core.model import SuperposedLM
from superpose.core.parts import SuperposedOutput, SuperposedParts
from superpose.core.schedule import Schedule
from superpose.core.stage import Stage, StageArgs, Step

__all__ = [
    "IGNORE_INDEX",
    "MODES",
    "Cost",
    "Mode",
    "Schedule",
    "Stage",
    "StageArgs",
    "Step",
    "SuperposedLM",
    "SuperposedOutput",
    "SuperposedParts",
    "VocabShard",
    "bag_weights",
    "cost",
    "count_positions",
    "document_positions",
    "embed_bags",
    "flops_per_latent",
    "fold",
    "fold_mask",
    "linear_multi_hot_cross_entropy",
    "multi_hot_cross_entropy",
    "shift_labels",
    "split_window",
    "window_length",
]
