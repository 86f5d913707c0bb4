"""The units on Daft, the data engine: the same pieces of work and the same shards, on this machine or on a Ray cluster.

Daft hands each unit to one of its worker processes; the shards lie in a folder that all machines see. What is compared
between documents comes after and stays where it was started. Daft counts its users over the network when it is imported,
unless it is told not to; it is told not to here.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from almanac.core.errors import MissingExtraError, RequestError
from almanac.curate.sources import Source
from almanac.curate.units import Input, Unit, run_unit
from almanac.files.quoting import quoted

HERE, CLUSTER = "daft", re.compile(r"ray(://[\w.\[\]:-]+)?")
QUIET = {"DO_NOT_TRACK": "1", "DAFT_ANALYTICS_ENABLED": "0", "DAFT_PROGRESS_BAR": "0", "RAY_USAGE_STATS_ENABLED": "0"}


def require_engine(engine: str) -> None:
    """Raises RequestError for an engine that is none, MissingExtraError where Daft is not installed."""
    if engine != HERE and not CLUSTER.fullmatch(engine):
        raise RequestError(
            f"No engine is called {quoted(engine)}",
            remedy="Give daft, ray, or the address of a cluster: ray://host:10001.",
        )
    _daft()


def run_on_daft(units: Sequence[Unit], plan: str, folder: Path, *, workers: int, engine: str) -> Iterator[int]:
    """Runs the units in ``workers`` processes; yields the number of each as it is done.

    Raises what a step raises when it is prepared, in Daft's wrapping.
    """
    daft = _daft()
    if engine == HERE:
        daft.set_runner_native()
    else:
        daft.set_runner_ray(None if engine == "ray" else engine)
    work = daft.cls(Work, max_concurrency=workers, use_process=True)(plan, str(folder.resolve()))
    frame = daft.from_pydict({"unit": [_written(unit) for unit in units]}).into_batches(1)
    for row in frame.select(work(frame["unit"]).alias("number")).iter_rows():
        yield int(row["number"])


class Work:
    """What a worker process holds: the recipe and the folder. Called with a unit, it does it and tells its number."""

    def __init__(self, plan: str, folder: str) -> None:
        self.plan, self.folder = plan, folder

    def __call__(self, unit: str) -> int:
        given = json.loads(unit)
        source, inputs = Source.from_dict(given["source"]), tuple(Input(**each) for each in given["inputs"])
        run_unit(Unit(given["number"], source, inputs, given["key"]), self.plan, Path(self.folder))
        return int(given["number"])


def _written(unit: Unit) -> str:
    inputs = [{**dataclasses.asdict(each), "path": str(Path(each.path).resolve())} for each in unit.inputs]
    return json.dumps({"number": unit.number, "source": unit.source.to_dict(), "inputs": inputs, "key": unit.key})


def _daft() -> Any:
    if "daft" not in sys.modules:
        os.environ.update(QUIET)
    try:
        import daft
    except ImportError as error:
        raise MissingExtraError(
            "The engine Daft is not installed", remedy="Run pip install 'almanac-lm[cluster]', or leave out the engine."
        ) from error
    return daft
