"""Energy: the processor's counter where there is one, wrapping around; else an estimate that says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from almanac.verify.energy import JOULES_PER_WATT_HOUR, WATTS_PER_CORE, EnergyMeter


def zone(root: Path, name: str, microjoules: int, span: int = 10_000_000) -> Path:
    folder = root / name
    folder.mkdir(exist_ok=True)
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{span}\n")
    return folder


def test_packages_are_added_and_their_parts_are_not(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", 1_000_000)
    zone(tmp_path, "intel-rapl:1", 0)
    zone(tmp_path, "intel-rapl:0:0", 5)  # the cores of package 0: counted in it already
    meter = EnergyMeter(tmp_path)
    zone(tmp_path, "intel-rapl:0", 4_600_000)
    zone(tmp_path, "intel-rapl:1", 400_000)
    zone(tmp_path, "intel-rapl:0:0", 900_000_000)
    found = meter.read()
    assert found.watt_hours == pytest.approx(4.0 / JOULES_PER_WATT_HOUR) and found.method.startswith("measured")


def test_a_counter_that_wraps_around_goes_on(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", 9_000_000)
    meter = EnergyMeter(tmp_path)
    zone(tmp_path, "intel-rapl:0", 9_500_000)
    meter.read()
    zone(tmp_path, "intel-rapl:0", 500_000)
    assert meter.read().watt_hours == pytest.approx(1.5 / JOULES_PER_WATT_HOUR)


def test_without_a_counter_it_is_an_estimate_from_processor_time(tmp_path: Path) -> None:
    meter = EnergyMeter(tmp_path)
    sum(number * number for number in range(300_000))
    found = meter.read()
    assert found.cpu_seconds > 0 and "estimated" in found.method
    assert found.watt_hours == pytest.approx(found.cpu_seconds * WATTS_PER_CORE / JOULES_PER_WATT_HOUR)
