"""The paper's experiments again, at one's own scale.

from superpose.reproduce import reproduce

for done in reproduce(["table1", "figure6"], scale="tiny"):
    print(done.verdict())
"""

from typing import TYPE_CHECKING

from superpose.lazy import names

if TYPE_CHECKING:
    from superpose.reproduce.experiments import EXPERIMENTS
    from superpose.reproduce.reproduction import Reproduction, reproduce

__all__ = ["EXPERIMENTS", "Reproduction", "reproduce"]

_PLACES = {"EXPERIMENTS": "experiments", "Reproduction": "reproduction", "reproduce": "reproduction"}
__getattr__ = names(__name__, _PLACES)
