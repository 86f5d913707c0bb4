"""A name is a path: resolved by import, found by walking, and never anything but what it should be."""

from __future__ import annotations

import sys
import textwrap
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from almanac.adapt.lora import Lora
from almanac.compress.quantize.int8 import Int8
from almanac.core import catalog
from almanac.core.catalog import resolve, technique_classes, techniques
from almanac.core.errors import NotFoundError
from almanac.core.technique import Technique
from almanac.core.value import Value
from almanac.nn.stack import Decoder


def test_names_resolve_to_classes() -> None:
    assert resolve("adapt.lora.Lora", of=Technique) is Lora
    assert resolve("nn.stack.Decoder", of=Value) is Decoder.Spec
    assert resolve(Int8.kind(), of=Value) is Int8


def test_only_the_asked_kind_is_returned() -> None:
    with pytest.raises(NotFoundError):
        resolve("nn.stack.Decoder", of=Technique)
    with pytest.raises(NotFoundError):
        resolve("adapt.lora.Attachment", of=Technique)  # imported there, not defined there


def test_a_near_miss_is_named() -> None:
    with pytest.raises(NotFoundError, match=r"adapt\.lora"):
        resolve("adapts.lora", of=Technique)


def test_resolving_imports_nothing_foreign() -> None:
    before = set(sys.modules)
    for kind in ("antigravity.x", "this", "os.path.join", "nn.antigravity"):
        with pytest.raises(NotFoundError):
            resolve(kind, of=Value)
    assert not {name for name in set(sys.modules) - before if not name.startswith("almanac")}


def test_every_technique_file_is_found_by_walking() -> None:
    import almanac

    found = techniques()
    assert {"adapt.lora", "compress.quantize.int8", "compress.quantize.blocks"} <= set(found)
    assert list(found) == sorted(found)
    for name, module in found.items():
        assert module.__name__ == f"almanac.{name}"
        for cls in technique_classes(module):
            assert resolve(cls.kind(), of=Technique) is cls
    assert set(techniques("adapt")) == {name for name in found if name.startswith("adapt.")}
    root = Path(str(almanac.__file__)).parent
    files = {path for room in ("adapt", "compress") for path in (root / room).rglob("*.py")}
    declaring = {path for path in files if "(Attachment)" in path.read_text() or "(Rewrite)" in path.read_text()}
    assert {Path(str(module.__file__)) for module in found.values()} == declaring


def test_other_packages_join_by_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "foreign_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    text = """
        from dataclasses import dataclass
        from almanac.core.value import Value

        @dataclass(frozen=True, kw_only=True)
        class Thing(Value):
            size: int = 1
    """
    (package / "things.py").write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(NotFoundError):
        resolve("foreign.things.Thing", of=Value)
    point = EntryPoint(name="foreign", value="foreign_package", group=catalog.GROUP)
    monkeypatch.setattr(catalog, "entry_points", lambda group: [point] if group == catalog.GROUP else [])
    assert resolve("foreign.things.Thing", of=Value)().to_dict()["kind"] == "foreign_package.things.Thing"
    assert resolve("adapt.lora.Lora", of=Value) is Lora
