"""``almanac build``: the main job, from a folder of documents to an assistant."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter, validators

from almanac.cli.interrupts import resumable
from almanac.cli.options import Json
from almanac.cli.printing import emit, line, table
from almanac.cli.progress import reporting

if TYPE_CHECKING:
    from almanac.assistant.settings import BuildSettings


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Making:
    """How the assistant is made.

    Args:
        base: The base model, an alias or a folder; by default `smollm2-135m-instruct`.
        steps: Training steps; by default 24.
        policy: What to do with personal data in documents: keep it, redact it, or drop the documents that hold some.
        starter: Begin with the adapter that comes with Almanac, where there is one for the base model.
        words_only: Find passages by words alone, without the encoder that finds them by meaning.
        gguf: Also write the model as a GGUF file in this format, such as `Q8_0`.
        seed: Of everything that is drawn.
    """

    base: Annotated[str | None, Parameter(name=("--base", "--model"))] = None
    steps: Annotated[int | None, Parameter(validator=validators.Number(gte=1))] = None
    policy: Literal["keep", "redact", "drop"] = "keep"
    starter: Annotated[bool, Parameter(negative="--no-starter")] = True
    words_only: Annotated[bool, Parameter(negative=())] = False
    gguf: str | None = None
    seed: int = 0

    def settings(self) -> BuildSettings:
        """As a build wants them."""
        from almanac.assistant.settings import BuildSettings

        given = {"model": self.base, "steps": self.steps, "gguf": self.gguf, "encoder": "" if self.words_only else None}
        chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        return BuildSettings(seed=self.seed, policy=self.policy, starter=self.starter, **chosen)


USUAL = Making()


def build(docs: Path, /, *, output: Path, making: Making = USUAL, json: Json = False) -> int:
    """Turn a folder of documents into an assistant.

    Reads and cleans the documents, indexes them, makes training questions from them, measures the base model, adapts
    and compresses it, measures it again on documents that were set aside, and writes the assistant with its card and
    report. A build that was stopped goes on where it was when the same command is run again.

    ```
    almanac build handbook --output assistant
    almanac build handbook --output assistant --steps 200 --seed 1
    almanac build handbook --output assistant --policy redact --gguf Q8_0
    almanac build handbook --output assistant --json > build.jsonl
    ```

    Args:
        docs: A folder of documents.
        output: The folder of the assistant; made if it is not there.
    """
    from almanac.assistant.build import build as built
    from almanac.files.strict_json import read_json

    settings = making.settings()
    with resumable(), reporting(in_json=json) as report:
        built(docs, output, settings=settings, report=report)
    evaluations = read_json(output / "evaluations.json")
    figures = _figures(evaluations)
    if json:
        emit({"event": "done", "output": str(output), "settings": settings.to_dict(), "figures": figures})
        return 0
    table(("held-out questions", "before", "after"), [(name, *map(_cell, pair)) for name, pair in figures.items()])
    line()
    line(f"{output} is ready. What it is: {output / 'card.md'}; with plots: {output / 'report.html'}. Try:")
    line(f'  almanac ask {output} "..."')
    line(f"  almanac serve {output}")
    line(f"  almanac index add {output} more-documents.pdf")
    return 0


def _figures(evaluations: Any) -> dict[str, list[float | None]]:
    """Mean of each figure of what the user is shown, before and after: ``answer_f1`` -> [0.31, 0.62]."""
    parts = [evaluations[part]["assistant"] for part in ("before", "after")]
    return {name: [part[name]["mean"] if part[name] else None for part in parts] for name in parts[1]}


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
