"""The matrix in the documentation is what trying every pair gives today."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch import Tensor, nn

from almanac.compress.quantize.blocks import Blocks
from almanac.core.catalog import techniques
from almanac.core.errors import UnsupportedError
from almanac.core.site import select
from almanac.core.technique import Attachment
from almanac.files.gguf.formats import FORMATS
from almanac.models.family import families, family_for
from almanac.models.tiny import tiny_spec
from almanac.nn.linear import Linear
from almanac.verify import matrix

DOCUMENT = Path(__file__).parents[2] / "docs" / "matrix.md"


def test_the_document_is_up_to_date() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == matrix.render(), "run python -m almanac.verify.matrix"


def test_it_holds_every_technique_family_and_format() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for name in techniques():
        assert f"## {name}\n" in text
    for family in families():
        lines = re.findall(rf"^\| (?:.*, )?{family.model_type}(?:, .*)? \| ", text, flags=re.MULTILINE)
        assert len(lines) == len(matrix.all_techniques())
    packed = {entry.name for entry in FORMATS.values() if entry.block_size > 1}
    assert set(matrix.weight_formats()) == {"dense", "int8", "ternary"} | packed


@dataclass(frozen=True, kw_only=True)
class Fussy(Attachment):
    """Refuses stored weights; breaks mistral; claims to train and does not."""

    identity_at_start = True
    folds = False
    trains = True

    def attach(self, model: nn.Module, calibration: Iterable[Tensor] | None = None) -> None:
        for site in select(model, "layers.*.mixer.q", of=Linear).values():
            if not isinstance(site.weight, nn.Parameter):
                raise UnsupportedError("Only dense weights are to my taste", remedy="Expand them.")


def test_refusals_and_broken_promises_show(monkeypatch: pytest.MonkeyPatch) -> None:
    formats = matrix.weight_formats()
    chosen = {name: formats[name] for name in ("dense", "Q8_0")}
    monkeypatch.setattr(matrix, "weight_formats", lambda: chosen)
    monkeypatch.setattr(matrix, "all_techniques", lambda: [Fussy(), Blocks(format="F32")])
    monkeypatch.setattr(matrix, "_specs", lambda: {matrix.WIDEST: tiny_spec(family_for("llama"), **matrix.WIDE)})
    text = matrix.render()
    assert f"| {matrix.WIDEST} | no (2) | no (1) |" in text
    assert "1. Only dense weights are to my taste" in text
    assert "trains nothing here" in text
    assert f"| {matrix.WIDEST} | yes | yes |" in text


def test_the_command_writes_and_checks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(matrix, "render", lambda: "the matrix\n")
    monkeypatch.setattr(matrix, "_documents", lambda: tmp_path)
    assert matrix.main(["--check"]) == 1
    assert "stale" in capsys.readouterr().out
    assert matrix.main([]) == 0
    assert (tmp_path / "matrix.md").read_text() == "the matrix\n"
    assert matrix.main(["--check"]) == 0
    assert matrix.main(["--chekc"]) == 2
    assert "usage" in capsys.readouterr().out
