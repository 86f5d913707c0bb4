"""``almanac build``: the main job, from a folder of documents to an assistant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, validators

from almanac.cli.interrupts import noticing_ctrl_c
from almanac.cli.options import Json
from almanac.cli.printing import emit, line, table
from almanac.cli.progress import reporting
from almanac.core.errors import TrainingError

STOPPED = "Run the same command again; the build goes on where it was."


def build(
    docs: Path,
    /,
    *,
    output: Path,
    model: str | None = None,
    steps: Annotated[int | None, Parameter(validator=validators.Number(gte=1))] = None,
    seed: int = 0,
    json: Json = False,
) -> int:
    """Turn a folder of documents into an assistant.

    Reads the documents, indexes them, makes training questions from them, measures the base model, adapts and
    compresses it, measures it again on documents that were set aside, and writes the assistant with its card. A build
    that was stopped goes on where it was when the same command is run again.

    ```
    almanac build handbook --output assistant
    almanac build handbook --output assistant --steps 200 --seed 1
    almanac build handbook --output assistant --json > build.jsonl
    ```

    Args:
        docs: A folder of documents.
        output: The folder of the assistant; made if it is not there.
        model: The base model, an alias or a folder; by default `smollm2-135m-instruct`.
        steps: Training steps; by default 40.
        seed: Of everything that is drawn.
    """
    from almanac.assistant.build import build as built
    from almanac.assistant.settings import BuildSettings
    from almanac.files.strict_json import read_json

    given: dict[str, Any] = {"model": model, "steps": steps}
    settings = BuildSettings(seed=seed, **{name: value for name, value in given.items() if value is not None})
    with noticing_ctrl_c() as pressed:
        try:
            with reporting(in_json=json) as report:
                built(docs, output, settings=settings, report=report)
        except (KeyboardInterrupt, TrainingError) as error:
            if isinstance(error, TrainingError) and not pressed():
                raise
            stop = KeyboardInterrupt()
            stop.add_note(STOPPED)
            raise stop from error
    evaluations = read_json(output / "evaluations.json")
    figures = _figures(evaluations)
    if json:
        emit({"event": "done", "output": str(output), "settings": settings.to_dict(), "figures": figures})
        return 0
    table(("held-out questions", "before", "after"), [(name, *map(_cell, pair)) for name, pair in figures.items()])
    line()
    line(f"{output} is ready; {output / 'card.md'} tells what it is. Try:")
    line(f'  almanac ask {output} "..."')
    return 0


def _figures(evaluations: Any) -> dict[str, list[float | None]]:
    """Mean of each figure of what the user is shown, before and after: ``answer_f1`` -> [0.31, 0.62]."""
    parts = [evaluations[part]["assistant"] for part in ("before", "after")]
    return {name: [part[name]["mean"] if part[name] else None for part in parts] for name in parts[1]}


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
