"""Energy of the machine while a run lasts."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch

from superpose.train.records import Energy, Result
from superpose.train.watch.watcher import Watcher

# Watts of a processor core at work, where nothing measures them: server processors are rated at 3 to 12 a core.
_WATTS_PER_CORE = 8.0


class EnergyMeter(Watcher):
    """Says in the result what this machine took from now on, measured by codecarbon where that is installed.

    codecarbon reads the counters of processors and GPUs where the machine lets it. Without it, or where it finds no
    counter, the figure is an estimate from rated power and says so.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._started = time.perf_counter()
        self._tracker: Any = None
        try:
            from codecarbon import OfflineEmissionsTracker
        except ImportError:
            return
        # The country matters for emissions alone, which are not reported.
        self._tracker = OfflineEmissionsTracker(
            country_iso_code="USA", save_to_file=False, log_level="critical", allow_multiple_runs=True
        )
        self._tracker.start()

    def before_finish(self, result: Result) -> Result:
        return replace(result, energy=self.spent())

    def closed(self) -> None:
        if self._tracker is not None:
            self._tracker.stop()
            self._tracker = None

    def spent(self) -> Energy:
        """What was taken so far; it ends the measurement."""
        hours = (time.perf_counter() - self._started) / 3600
        if self._tracker is not None:
            tracker = self._tracker
            self.closed()
            counters = str(tracker._hardware).lower()
            measured = self._device.type == "cuda" or any(name in counters for name in ("rapl", "powermetrics"))
            how = "measured" if measured else "estimated from load and rated power"
            return Energy(tracker.final_emissions_data.energy_consumed, hours, how)
        if self._device.type != "cpu":
            return Energy(None, hours, "unknown; install superpose[energy]")
        cores = torch.get_num_threads()
        how = f"estimated: {cores} cores at {_WATTS_PER_CORE:.0f} W; superpose[energy] may measure it"
        return Energy(cores * _WATTS_PER_CORE * hours / 1000, hours, how)
