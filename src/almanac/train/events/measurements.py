"""What was measured on held-out text along a run, as an onlooker reads it: the curves, and what the model wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from almanac.train.events.curves import Curves, Series, last_lines, number
from almanac.train.events.tracker import MEASURED

SAMPLES, SAMPLE_CHARACTERS = 40, 4000
_SAMPLES_BYTES = 1 << 19
_MEASURED_BYTES = 1 << 24


class Measurements:
    """What was measured on held-out text; the file is written anew each time, so it is read anew when it changes."""

    def __init__(self, folder: Path) -> None:
        self.places = (folder / MEASURED, folder.parent / MEASURED)
        self.tag = 0
        self.samples: list[dict[str, Any]] = []
        self.series: dict[str, Series] = {}

    def read(self) -> None:
        """Takes up a change."""
        for place in self.places:
            try:
                status = place.lstat()
            except OSError:
                continue
            if status.st_mtime_ns != self.tag:
                self.tag = status.st_mtime_ns
                curves = Curves(place, _of_measurement)
                curves.read(_MEASURED_BYTES)
                self.series = curves.series
                self.samples = _samples(place)
            return


def _of_measurement(line: Mapping[str, Any]) -> dict[str, float]:
    return {"held_out_loss": number(line.get("loss")), "bits_per_byte": number(line.get("bits_per_byte"))}


def _samples(place: Path) -> list[dict[str, Any]]:
    """The last ones, newest first."""
    lines = [line for line in last_lines(place, _SAMPLES_BYTES) if isinstance(line.get("sample"), str)]
    return [
        {"step": line["step"], "text": line["sample"].encode("utf-8", "replace").decode()[:SAMPLE_CHARACTERS]}
        for line in lines[: -SAMPLES - 1 : -1]
    ]
