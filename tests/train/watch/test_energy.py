import sys
from types import SimpleNamespace

import pytest
import torch

from superpose.train.watch.energy import EnergyMeter

CPU = torch.device("cpu")


def test_energy_without_a_library_is_called_an_estimate(monkeypatch):
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    spent = EnergyMeter(CPU).spent()
    assert spent.kwh > 0
    assert spent.how.startswith("estimated")
    assert EnergyMeter(torch.device("meta")).spent().kwh is None


@pytest.mark.parametrize(("found", "how"), [("[CPU(intel_rapl)]", "measured"), ("[CPU(Cpu Load)]", "estimated")])
def test_energy_is_what_codecarbon_says(monkeypatch, found, how):
    class Tracker:
        def __init__(self, **settings):
            self._hardware = found

        def start(self):
            pass

        def stop(self):
            self.final_emissions_data = SimpleNamespace(energy_consumed=0.25)

    monkeypatch.setitem(sys.modules, "codecarbon", SimpleNamespace(OfflineEmissionsTracker=Tracker))
    spent = EnergyMeter(CPU).spent()
    assert spent.kwh == 0.25
    assert spent.how.startswith(how)
