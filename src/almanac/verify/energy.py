"""How much energy a stretch of work took: read from the processor's own counter, else estimated and called so.

The counter is Intel's and AMD's RAPL as Linux shows it (David et al. 2010, "RAPL: memory power estimation and capping"),
which counts the processor package in microjoules and wraps around. Where it cannot be read (a virtual machine, another
system), the estimate is the processor time that this process used, times a stated power per core.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WATTS_PER_CORE = 8.0  # of a laptop core at full load, its share of the package included; an assumption, stated as such
JOULES_PER_WATT_HOUR = 3600.0
_COUNTERS = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Energy:
    """``watt_hours`` and how they are known: ``measured`` of the whole processor, or ``estimated`` of this process."""

    watt_hours: float
    method: str
    cpu_seconds: float

    def to_dict(self) -> dict[str, Any]:
        return {"watt_hours": self.watt_hours, "method": self.method, "cpu_seconds": self.cpu_seconds}


class EnergyMeter:
    """Counts from its making on."""

    def __init__(self, counters: Path = _COUNTERS) -> None:
        self._files = [
            (zone / "energy_uj", _number(zone / "max_energy_range_uj"))
            for zone in sorted(counters.glob("intel-rapl:[0-9]*"))
            if zone.name.count(":") == 1 and _number(zone / "energy_uj") is not None
        ]
        self._last = [_number(file) for file, _ in self._files]
        self._joules = 0.0
        self._cpu = time.process_time()

    def read(self) -> Energy:
        """The energy since the meter was made. Read it at least every few minutes: the counter wraps around."""
        cpu = time.process_time() - self._cpu
        now = [_number(file) for file, _ in self._files]
        if not self._files or None in now or None in self._last:
            watt_hours = cpu * WATTS_PER_CORE / JOULES_PER_WATT_HOUR
            return Energy(watt_hours, f"estimated: processor time x {WATTS_PER_CORE:g} W per core", cpu)
        for (_, span), before, after in zip(self._files, self._last, now, strict=True):
            assert before is not None and after is not None
            self._joules += ((after - before) if after >= before else (after - before + (span or 0))) / 1e6
        self._last = now
        return Energy(self._joules / JOULES_PER_WATT_HOUR, "measured: processor packages (RAPL)", cpu)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
