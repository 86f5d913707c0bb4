"""What cannot be loaded: one typed error that names the cause and the remedy, nothing half-loaded, nothing left."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from language_model import small

from almanac.adapt.lora import Lora
from almanac.core.errors import (
    AlmanacError,
    ArchitectureError,
    FileFormatError,
    NotFoundError,
    ShapeError,
    UnsafeFileError,
    UnsupportedError,
)
from almanac.files.safetensors import open_safetensors, write_safetensors
from almanac.language_model.load import load

Change = Callable[[Path], None]


def config(**changes: Any) -> Change:
    """Fields of config.json changed; a value of ``...`` removes the field."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        values = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))

    return change


def only_config(**fields: Any) -> Change:
    def change(folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps(fields))

    return change


def without(*names: str) -> Change:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def written(name: str, content: bytes) -> Change:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return change


def cut(name: str, keep: float) -> Change:
    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * keep)])

    return change


def tensors(*, drop: str = "", add: str = "", rename: tuple[str, str] = ("", "")) -> Change:
    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        held = {name.replace(*rename): tensor.clone() for name, tensor in open_safetensors(path).items()}
        held = {name: tensor for name, tensor in held.items() if name != drop}
        if add:
            held[add] = next(iter(held.values())).clone()
        write_safetensors(path, held)

    return change


def linked(name: str, target: str) -> Change:
    def change(folder: Path) -> None:
        outside = folder.parent / "outside"
        shutil.copy(folder / name, outside)
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return change


Q = "model.layers.0.self_attn.q_proj.weight"
HUB: dict[str, tuple[Change, type[AlmanacError], str]] = {
    "weights cut in half": (cut("model.safetensors", 0.5), FileFormatError, "model.safetensors"),
    "weights cut in the header": (cut("model.safetensors", 0.001), FileFormatError, "model.safetensors"),
    "empty weights": (cut("model.safetensors", 0), FileFormatError, "empty"),
    "no weights": (without("model.safetensors"), NotFoundError, "model.safetensors"),
    "no config": (without("config.json"), NotFoundError, "config.json"),
    "no tokenizer": (without("tokenizer.json"), NotFoundError, "tokenizer.json"),
    "nothing": (
        without("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"),
        NotFoundError,
        "config.json",
    ),
    "config of a wider model": (config(hidden_size=128), ShapeError, "different models"),
    "config of a deeper model": (config(num_hidden_layers=4), FileFormatError, "missing"),
    "config of a shallower model": (config(num_hidden_layers=2), FileFormatError, "no tensor"),
    "config of another family": (config(model_type="qwen2"), FileFormatError, "missing"),
    "config with a tied head": (config(tie_word_embeddings=True), FileFormatError, "tied"),
    "config of more layers than tensors": (config(num_hidden_layers=9000), FileFormatError, "9,000 layers"),
    "config with an absurd width": (config(hidden_size=2**31, num_attention_heads=4), AlmanacError, "different models"),
    "more tokens than rows": (
        lambda folder: _narrow(folder),
        FileFormatError,
        "ids up to 379, the embedding holds 64",
    ),
    "an unknown architecture": (config(model_type="lama"), ArchitectureError, "nearest is 'llama'"),
    "an architecture like none": (config(model_type="xyzzy"), ArchitectureError, "Known are bamba, bitnet, bloom"),
    "no architecture": (config(model_type=...), ArchitectureError, "None"),
    "an architecture that is no text": (config(model_type=["llama"]), ArchitectureError, "llama"),
    "auto_map alone": (only_config(auto_map={"AutoModel": "evil.Model"}), ArchitectureError, "code of its own"),
    "gptq": (config(quantization_config={"quant_method": "gptq", "bits": 4}), FileFormatError, "gptq"),
    "quantization without a name": (config(quantization_config={"bits": 4}), FileFormatError, "quantized"),
    "quantization that is no object": (config(quantization_config="awq"), FileFormatError, "awq"),
    "compressed tensors": (config(compression_config={"format": "pack"}), FileFormatError, "quantized"),
    "config that is a list": (written("config.json", b"[]"), FileFormatError, "object"),
    "config that is no JSON": (written("config.json", b"{"), FileFormatError, "config.json"),
    "config with a key twice": (written("config.json", b'{"a":1,"a":2}'), FileFormatError, "twice"),
    "text for a number": (config(hidden_size="64"), FileFormatError, "hidden_size"),
    "no size": (config(hidden_size=...), FileFormatError, "hidden_size"),
    "heads that do not divide": (
        config(num_attention_heads=6, num_key_value_heads=6, head_dim=...),
        FileFormatError,
        "multiple",
    ),
    "key heads that do not divide": (config(num_key_value_heads=3), ShapeError, "share"),
    "rope that is a list": (config(rope_parameters=[1]), FileFormatError, "config.json"),
    "rope of a kind unknown": (config(rope_parameters={"rope_type": "spiral"}), UnsupportedError, "spiral"),
    "an unknown activation": (config(hidden_act="swoosh"), UnsupportedError, "swoosh"),
    "an activation that is a list": (config(hidden_act=["silu"]), FileFormatError, "config.json"),
    "an epsilon of zero": (config(rms_norm_eps=0), FileFormatError, "rms_norm_eps"),
    "a missing tensor": (tensors(drop=Q), FileFormatError, "layers.0.mixer.q.weight"),
    "a surplus tensor": (tensors(add="score.weight"), FileFormatError, "score.weight"),
    "tensors of a quantizer": (tensors(rename=(Q, Q.replace("weight", "qweight"))), FileFormatError, "qweight"),
    "tokenizer cut": (cut("tokenizer.json", 0.5), FileFormatError, "JSON"),
    "tokenizer without a model": (written("tokenizer.json", b"{}"), FileFormatError, "model"),
    "tokenizer roles of another": (
        written("tokenizer_config.json", b'{"eos_token": "</s>"}'),
        FileFormatError,
        "</s>",
    ),
    "config linked elsewhere": (linked("config.json", "../outside"), UnsafeFileError, "config.json"),
    "tokenizer linked elsewhere": (linked("tokenizer.json", "../outside"), UnsafeFileError, "tokenizer.json"),
    "weights linked elsewhere": (linked("model.safetensors", "../outside"), UnsafeFileError, "model.safetensors"),
    "config linked to nothing": (linked("config.json", "/nowhere/config.json"), UnsafeFileError, "config.json"),
}


def _narrow(folder: Path) -> None:
    config(vocab_size=64)(folder)
    path = folder / "model.safetensors"
    held = {name: tensor.clone() for name, tensor in open_safetensors(path).items()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        held[name] = held[name][:64].clone()
    write_safetensors(path, held)


def assert_refused(path: Path, kind: type[AlmanacError], word: str) -> None:
    root = path.parent
    before = small.files_in(root)
    with pytest.raises(kind) as caught:
        load(path)
    assert word in str(caught.value)
    assert caught.value.cause
    assert caught.value.remedy
    assert small.files_in(root) == before


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound folder as a publisher would leave it."""
    root = tmp_path_factory.mktemp("published")
    saved = small.language_model("llama").save(root / "saved")
    folder = root / "m"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(saved / name, folder / name)
    assert load(folder).family == "llama"
    return folder


@pytest.mark.parametrize("case", list(HUB))
def test_a_folder_of_the_hub(case: str, published: Path, tmp_path: Path) -> None:
    change, kind, word = HUB[case]
    folder = Path(shutil.copytree(published, tmp_path / "m"))
    change(folder)
    assert_refused(folder, kind, word)


# --- folders of our own


def manifest(edit: Callable[[dict[str, Any]], Any]) -> Change:
    def change(folder: Path) -> None:
        path = folder / "almanac.json"
        values = json.loads(path.read_text())
        edit(values)
        path.write_text(json.dumps(values))

    return change


def _layers(values: dict[str, Any], count: int) -> None:
    values["spec"]["layers"][0]["repeat"] = count


OWN: dict[str, tuple[Change, type[AlmanacError], str]] = {
    "weights cut": (cut("model.safetensors", 0.9), FileFormatError, "model.safetensors"),
    "manifest cut": (cut("almanac.json", 0.5), FileFormatError, "almanac.json"),
    "manifest gone": (without("almanac.json"), FileFormatError, "quantized by 'almanac'"),
    "a later version": (manifest(lambda m: m.update(version=2)), FileFormatError, "version 1"),
    "no spec": (manifest(lambda m: m.pop("spec")), FileFormatError, "no valid spec"),
    "a plan that is a list": (manifest(lambda m: m.update(plan=[])), FileFormatError, "no valid plan"),
    "provenance that is text": (manifest(lambda m: m.update(provenance="x")), FileFormatError, "provenance"),
    "a layout of tomorrow": (manifest(lambda m: m.update(layout="pickle")), FileFormatError, "layout"),
    "an unknown kind": (manifest(lambda m: m["spec"].update(kind="os.system")), AlmanacError, "os.system"),
    "a kind that is no spec": (manifest(lambda m: m["spec"].update(kind="adapt.lora.Lora")), FileFormatError, "Lora"),
    "an unknown field": (manifest(lambda m: m["spec"].update(hook="x")), FileFormatError, "hook"),
    "text for the layers": (manifest(lambda m: m["spec"].update(layers="xx")), FileFormatError, "describes no model"),
    "text for a size": (
        manifest(lambda m: m["spec"]["embed"].update(hidden="64")),
        FileFormatError,
        "describes no model",
    ),
    "a norm for an embedding": (
        manifest(lambda m: m["spec"].update(embed=m["spec"]["norm"])),
        FileFormatError,
        "describes no model",
    ),
    "a million layers": (manifest(lambda m: _layers(m, 1_000_000)), FileFormatError, "repeat count"),
    "many layers": (manifest(lambda m: _layers(m, 100_000)), FileFormatError, "100,000 layers"),
    "a rank below zero": (
        manifest(lambda m: m["plan"]["techniques"][0].update(rank=-1)),
        AlmanacError,
        "-1",
    ),
    "a rank of text": (
        manifest(lambda m: m["plan"]["techniques"][0].update(rank="8")),
        FileFormatError,
        "str",
    ),
    "another rank": (manifest(lambda m: m["plan"]["techniques"][0].update(rank=3)), ShapeError, "lora"),
    "no adapter": (manifest(lambda m: m["plan"].pop("techniques")), FileFormatError, "not part of this model"),
    "a second adapter": (
        manifest(lambda m: m["plan"]["techniques"].append({"kind": "adapt.lora.Lora", "name": "b"})),
        FileFormatError,
        "missing",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.language_model("llama", Lora(rank=2)).save(tmp_path_factory.mktemp("own") / "m")


@pytest.mark.parametrize("case", list(OWN))
def test_a_folder_of_ours(case: str, adapted: Path, tmp_path: Path) -> None:
    change, kind, word = OWN[case]
    folder = Path(shutil.copytree(adapted, tmp_path / "m"))
    change(folder)
    assert_refused(folder, kind, word)


@pytest.mark.parametrize("edit", [config(rope_parameters={"rope_theta": 7.0}), config(rms_norm_eps=0.1)])
def test_two_files_that_describe_different_models(edit: Change, tmp_path: Path) -> None:
    """Ours would follow almanac.json and transformers config.json: two parsers, two models."""
    folder = small.language_model("llama").save(tmp_path / "m")
    edit(folder)
    assert_refused(folder, FileFormatError, "different models")


# --- what is no model at all


@pytest.mark.parametrize(
    "source",
    ["nowhere", "", "no/such/folder", "missing.gguf", "a/b.gguf", "~nobody-of-this-name/m", "x" * 5000, "nul\0byte"],
)
def test_a_name_of_nothing(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AlmanacError) as caught:
        load(source)
    assert isinstance(caught.value, NotFoundError)
    assert len(str(caught.value)) < 600


def test_a_hub_id_needs_its_revision_even_with_a_dot_in_its_name() -> None:
    for name in ("owner/model", "owner/model-2.5-0.5B"):
        with pytest.raises(NotFoundError, match="pinned revision"):
            load(name)
        with pytest.raises(NotFoundError, match="pinned revision"):
            load(name, revision="main", download=True)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    for name in ("pipe", "pipe.gguf"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(FileFormatError, match="not a regular file"):
            load(tmp_path / name)


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    for name in ("model.safetensors", "README.md", "config.json"):
        (tmp_path / name).write_bytes(b"{}" * 40)
        with pytest.raises(UnsafeFileError, match=r"no model file"):
            load(tmp_path / name)
