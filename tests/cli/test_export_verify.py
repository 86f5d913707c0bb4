"""``almanac export`` never replaces what is no export; ``almanac verify`` notices every change."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from almanac.adapt.lora import Lora
from almanac.language_model.load import load
from almanac.language_model.model import LanguageModel

IDS = torch.tensor([[5, 9, 300, 12, 7]])


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    """The toy's folder, to break."""
    return Path(shutil.copytree(model, tmp_path / "copy"))


def test_an_hf_export_answers_as_the_model(
    almanac: Callable[..., Any], model: Path, lm: LanguageModel, tmp_path: Path
) -> None:
    result = almanac("export", model, tmp_path / "out", "--format", "hf", "--json")
    found = json.loads(result.out)
    files = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert found == {
        "output": str(tmp_path / "out"), "format": "hf", "quantization": None,
        "bytes": sum(file.stat().st_size for file in files),
    }  # fmt: skip
    again = load(tmp_path / "out")
    assert torch.allclose(again.network(IDS), lm.network(IDS), atol=1e-5)


def test_a_gguf_export_is_quantized_as_asked(almanac: Callable[..., Any], blunt_model: Path, tmp_path: Path) -> None:
    result = almanac("export", blunt_model, tmp_path / "toy.gguf", "--format", "gguf", "--quantization", "Q8_0")
    assert result.code == 0 and "read back" in result.out
    formats = {technique.to_dict()["format"] for technique in load(tmp_path / "toy.gguf").plan.techniques}
    assert formats == {"Q8_0"}


def test_a_peft_export_claims_no_check_that_was_not_made(
    almanac: Callable[..., Any], model: Path, tmp_path: Path
) -> None:
    adapted = load(model).attach(Lora(rank=2)).save(tmp_path / "adapted")
    result = almanac("export", adapted, tmp_path / "adapter", "--format", "peft")
    assert result.code == 0 and "read back" not in result.out
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_an_earlier_export_is_replaced_only_when_asked(almanac: Callable[..., Any], model: Path, copy: Path) -> None:
    (copy / "mine.txt").write_text("old")
    refused = almanac("export", model, copy, "--format", "hf")
    assert refused.code == 2 and "--overwrite" in refused.err and (copy / "mine.txt").exists()
    assert almanac("export", model, copy, "--format", "hf", "--overwrite").code == 0
    assert not (copy / "mine.txt").exists()


@pytest.mark.parametrize("format", ["hf", "peft", "gguf"])
def test_a_folder_that_is_no_export_is_never_replaced(
    almanac: Callable[..., Any], model: Path, tmp_path: Path, format: str
) -> None:
    folder = tmp_path / "letters"
    folder.mkdir()
    (folder / "will.txt").write_text("mine")
    result = almanac("export", model, folder, "--format", format, "--overwrite")
    assert result.code == 2 and (folder / "will.txt").read_text() == "mine"


def test_a_file_is_no_place_for_a_folder(almanac: Callable[..., Any], model: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    assert almanac("export", model, tmp_path / "notes", "--format", "hf", "--overwrite").code == 2
    assert (tmp_path / "notes").read_text() == "mine"


def test_an_interrupted_export_says_what_may_lie_there(
    almanac: Callable[..., Any], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: LanguageModel, *words: Any, **options: Any) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(LanguageModel, "export", interrupted)
    result = almanac("export", model, tmp_path / "out", "--format", "hf")
    assert result.code == 130 and "not checked" in result.err


def test_a_certified_model_holds(almanac: Callable[..., Any], model: Path) -> None:
    result = almanac("verify", model)
    assert result.code == 0 and result.out.endswith("certificate.json holds\n")
    assert [line.split()[:2] for line in result.out.splitlines()[1:5]] == [
        ["files", "ok"], ["tokenizer", "ok"], ["template", "ok"], ["network", "ok"],
    ]  # fmt: skip
    found = json.loads(almanac("verify", model, "--json").out)
    assert found["holds"] is True and found["new"] is False and found["relative"] <= found["bound"]


def test_steps_of_the_plan_are_shown_with_their_bounds(
    almanac: Callable[..., Any], model: Path, tmp_path: Path
) -> None:
    folded = load(model).attach(Lora(rank=2)).fold().save(tmp_path / "folded")
    lines = almanac("verify", folded).out.splitlines()
    assert any(line.split()[0] == "fold" and "100.0%" in line for line in lines if line)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_changed_file_fails_with_exit_code_one(almanac: Callable[..., Any], copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[-3] ^= 1
    (copy / name).write_bytes(data)
    result = almanac("verify", copy)
    assert result.code == 1 and "FAILED" in result.out and name in result.out
    found = json.loads(almanac("verify", copy, "--json").out)
    assert (found["holds"], found["failed"]) == (False, "files") and name in found["cause"]


def test_answers_that_changed_fail_though_the_files_are_certified(almanac: Callable[..., Any], copy: Path) -> None:
    place = copy / "certificate.json"
    certificate = json.loads(place.read_text())
    certificate["network"][0]["top_logits"][0] += 1.0
    place.write_text(json.dumps(certificate))
    result = almanac("verify", copy)
    assert result.code == 1
    assert [line.split()[:2] for line in result.out.splitlines()[1:3]] == [["files", "ok"], ["answers", "FAILED"]]


def test_a_model_without_a_certificate_gets_its_first(almanac: Callable[..., Any], copy: Path) -> None:
    (copy / "certificate.json").unlink()
    result = almanac("verify", copy)
    assert result.code == 0 and "first certificate" in result.out and (copy / "certificate.json").is_file()
    assert "holds" in almanac("verify", copy).out


def test_no_model_is_the_users_error(almanac: Callable[..., Any], tmp_path: Path) -> None:
    assert almanac("verify", tmp_path / "nothing").code == 2
