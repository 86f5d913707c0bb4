"""Saving: what comes back is the model to the bit, and a save that fails leaves the disk as it found it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from language_model import small

from almanac.adapt.lora import Lora
from almanac.compress.quantize.blocks import Blocks
from almanac.compress.quantize.int8 import Int8
from almanac.core.errors import AlmanacError, FileFormatError, ParityError, RequestError, UnsupportedError
from almanac.core.technique import Plan, Technique
from almanac.files import staging
from almanac.language_model import export as exporting
from almanac.language_model import save as saving
from almanac.language_model.load import load, load_folder, read_manifest
from almanac.language_model.model import LanguageModel
from almanac.verify import certificate as certificates

PLANS: dict[str, tuple[Technique, ...]] = {
    "nothing": (),
    "lora": (Lora(rank=3, alpha=7.0, seed=4),),
    "two loras": (Lora(rank=2), Lora(rank=4, name="second", targets="layers.*.mixer.{q,v}")),
    "int8": (Int8(),),
    "blocks": (Blocks(format="Q4_1"),),
    "blocks of several formats": (Blocks(format="Q8_0", targets="embed"), Blocks(format="Q5_0")),
    "lora over int8": (Int8(targets="layers.**"), Lora(rank=2)),
    "lora over blocks": (Blocks(format="Q4_0"), Lora(rank=2)),
}
every_plan = pytest.mark.parametrize("plan", list(PLANS))
IDS = torch.randint(0, small.VOCAB, (2, 20), generator=torch.Generator().manual_seed(3))


def assert_same(ours: LanguageModel, again: LanguageModel) -> None:
    """Equal in every part, weights to the bit."""
    for part in ("spec", "plan", "family", "provenance"):
        assert getattr(again, part) == getattr(ours, part), part
    assert again.tokenizer.digest() == ours.tokenizer.digest()
    assert again.template is not None
    assert ours.template is not None
    assert again.template.digest() == ours.template.digest()
    before, after = dict(ours.network.named_parameters()), dict(again.network.named_parameters())
    assert after.keys() == before.keys()
    for name, parameter in before.items():
        assert after[name].dtype == parameter.dtype
        assert after[name].equal(parameter), name
    with torch.no_grad():
        assert again.network(IDS).equal(ours.network(IDS))


@every_plan
@pytest.mark.parametrize("variant", ["llama tied", "qwen2 windows"])
def test_saved_and_loaded_is_the_same_to_the_bit(plan: str, variant: str, tmp_path: Path) -> None:
    lm = small.language_model(variant, *PLANS[plan])
    folder = lm.save(tmp_path / "one")
    again = load(folder)
    assert_same(lm, again)
    twice = again.save(tmp_path / "two")
    assert small.files_in(twice) == small.files_in(folder), "saving again must change no byte"
    assert read_manifest(folder)["layout"] == ("almanac" if PLANS[plan] else "hf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    assert (folder / certificates.NAME).is_file()


@pytest.mark.parametrize("variant", list(small.VARIANTS))
def test_every_variant_comes_back(variant: str, tmp_path: Path) -> None:
    lm = small.language_model(variant)
    assert_same(lm, load(lm.save(tmp_path / "m")))


def test_a_spec_that_no_family_expresses_comes_back_too(tmp_path: Path) -> None:
    """Layers that differ have no config.json of the hub's; the folder must say so instead of looking like one."""
    lm = small.language_model("llama")
    lm.spec = lm.spec.replace("layers.1.mixer_norm", epsilon=0.5)
    lm.network.layers[1].mixer_norm.epsilon = 0.5
    again = load(lm.save(tmp_path / "m"))
    assert_same(lm, again)
    assert read_manifest(tmp_path / "m")["layout"] == "almanac"
    (tmp_path / "m" / "almanac.json").unlink()
    with pytest.raises(FileFormatError, match="quantized by 'almanac'"):
        load(tmp_path / "m")


@pytest.mark.parametrize("plan", ["lora", "lora over int8", "lora over blocks", "two loras"])
def test_fold_computes_what_the_adapters_did(plan: str) -> None:
    lm = small.language_model("llama", *PLANS[plan])
    bare = small.language_model("llama")
    with torch.no_grad():
        before = lm.network(IDS)
        lm.fold()
        after, without = lm.network(IDS), bare.network(IDS)
    assert float((after - before).abs().max() / before.abs().max()) <= 1e-5
    assert float((without - before).abs().max() / before.abs().max()) > 0.05, "the adapters did something"
    assert lm.plan == Plan()
    assert lm.provenance["parity"][-1]["step"] == "fold"
    assert list(dict(lm.network.named_parameters())) == list(dict(bare.network.named_parameters()))


def test_dtype_is_obeyed_or_refused(tmp_path: Path) -> None:
    lm = small.language_model("llama", Lora(rank=2))
    folder = lm.save(tmp_path / "m")
    half = load(folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.network.parameters()} == {torch.bfloat16}
    again = load(half.save(tmp_path / "half"))
    assert {parameter.dtype for parameter in again.network.parameters()} == {torch.bfloat16}, "as stored"
    assert_same(half, again)
    path = small.language_model("llama").export(tmp_path / "m.gguf", format="gguf", quantization="Q8_0")
    with pytest.raises(RequestError, match="float32"):
        load(path, dtype=torch.bfloat16)
    dense = load(path, dtype=torch.bfloat16, packed=False)
    assert {parameter.dtype for parameter in dense.network.parameters()} == {torch.bfloat16}


# --- failing


def faulty(folder: Path, **options: Any) -> LanguageModel:
    """Reads back a model that is not the one written."""
    lm = load_folder(folder, **options)
    with torch.no_grad():
        next(iter(lm.network.parameters())).mul_(1.01)
    return lm


def test_a_save_that_reads_back_otherwise_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "load_folder", faulty)
    with pytest.raises(ParityError, match="After saving"):
        small.language_model("llama").save(tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_a_save_that_fails_leaves_the_older_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small.language_model("llama").save(tmp_path / "m")
    before = small.files_in(tmp_path)
    monkeypatch.setattr(saving, "load_folder", faulty)
    with pytest.raises(ParityError):
        small.language_model("llama", seed=9).save(tmp_path / "m")
    assert small.files_in(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_save_that_works_replaces_the_older_folder_whole(tmp_path: Path) -> None:
    small.language_model("llama", Lora()).save(tmp_path / "m")
    (tmp_path / "m" / "leftover.txt").write_text("of the older model")
    newer = small.language_model("qwen2", seed=9)
    newer.save(tmp_path / "m")
    assert_same(newer, load(tmp_path / "m"))
    assert not (tmp_path / "m" / "leftover.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("older", [False, True])
def test_every_write_and_rename_of_a_save_may_fail(
    older: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The nth file-system call fails, for every n until the save goes through: each time nothing changes."""
    if older:
        small.language_model("llama").save(tmp_path / "m")
    before = small.files_in(tmp_path)
    lm = small.language_model("llama", seed=9)
    calls, fail_at = 0, 0

    def wrap(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def failing(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == fail_at:
                raise OSError(28, "no space left on device")
            return original(*arguments)

        monkeypatch.setattr(owner, name, failing)

    wrap(Path, "replace")  # every atomic write ends in one
    wrap(Path, "rename")  # of the folder to an empty place
    wrap(staging, "_exchanged")  # of the folder with the older one
    while fail_at < 40:
        calls, fail_at = 0, fail_at + 1
        try:
            lm.save(tmp_path / "m")
            break
        except OSError:
            assert small.files_in(tmp_path) == before
            assert [path.name for path in tmp_path.iterdir()] == (["m"] if older else [])
    assert fail_at - 1 == 8, "each of the calls was made to fail once"
    assert_same(lm, load(tmp_path / "m"))


EXPORTS = {"hf": "m", "gguf": "m.gguf", "peft": "m"}


@pytest.mark.parametrize("format", list(EXPORTS))
def test_an_export_that_fails_leaves_what_was_there(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = small.language_model("llama", Lora(rank=2))
    target = tmp_path / EXPORTS[format]
    lm.export(target, format=format)
    before = small.files_in(tmp_path)

    def broken(*arguments: Any, **options: Any) -> Any:
        raise ParityError("It is another model", remedy="None.")

    monkeypatch.setattr(saving, "load_folder", broken)
    monkeypatch.setattr(exporting, "load_gguf", broken)
    monkeypatch.setattr(exporting, "open_safetensors", broken)
    other = small.language_model("llama", Lora(rank=2), seed=9)
    for place in (target, tmp_path / f"new-{EXPORTS[format]}"):
        with pytest.raises(ParityError):
            other.export(place, format=format)
        assert small.files_in(tmp_path) == before
        assert len(list(tmp_path.iterdir())) == (2 if format == "gguf" else 1), "the model, and a GGUF's certificate"


REFUSED: dict[str, tuple[str, dict[str, Any], type[AlmanacError], str]] = {
    "no such format": ("llama", {"format": "onnx"}, UnsupportedError, "onnx"),
    "quantization outside gguf": ("llama", {"format": "hf", "quantization": "Q8_0"}, UnsupportedError, "hf"),
    "no such quantization": ("llama", {"format": "gguf", "quantization": "Q3_XXL"}, UnsupportedError, "Q3_XXL"),
    "no adapter": ("llama", {"format": "peft"}, UnsupportedError, "0 LoRAs"),
    "mistral's windows": ("mistral window", {"format": "gguf"}, UnsupportedError, "windows"),
    "qwen2's windows": ("qwen2 windows", {"format": "gguf"}, UnsupportedError, "windows"),
    "smollm3's layers without positions": ("smollm3", {"format": "gguf"}, UnsupportedError, "without positions"),
    "smollm3's windows": ("smollm3 windows", {"format": "gguf"}, UnsupportedError, "windows"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_a_format_cannot_say_is_refused_and_leaves_nothing(case: str, tmp_path: Path) -> None:
    variant, options, kind, word = REFUSED[case]
    with pytest.raises(kind, match=word):
        small.language_model(variant).export(tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("variant", "changes", "word"),
    [
        ("llama", {"hidden_act": "gelu"}, "no architecture for this llama"),
        ("qwen2", {"partial_rotary_factor": 0.5}, "part of each head"),
    ],
)
def test_what_gguf_has_no_field_for_is_refused(
    variant: str, changes: dict[str, Any], word: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError, match=word):
        small.language_model(variant, **changes).export(tmp_path / "m.gguf", format="gguf")
    assert list(tmp_path.iterdir()) == []
