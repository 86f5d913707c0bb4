"""Values survive JSON, hash alike when equal, and refuse what is not theirs."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

import pytest

from almanac.adapt.lora import Lora
from almanac.core.errors import AlmanacError, FileFormatError, NotFoundError
from almanac.core.spec import Constant, Normal
from almanac.core.technique import Plan
from almanac.core.value import MAX_REPEAT, Value
from almanac.nn.activation import Relu, Silu
from almanac.nn.channel.gated import Gated, gated
from almanac.nn.linear import Linear
from almanac.nn.norm import RMSNorm


def test_defaults_are_left_out_and_come_back() -> None:
    assert RMSNorm.Spec(hidden=8).to_dict() == {"kind": "nn.norm.RMSNorm", "hidden": 8}
    assert RMSNorm.Spec.from_dict({"kind": "nn.norm.RMSNorm", "hidden": 8}) == RMSNorm.Spec(hidden=8)
    assert Lora().to_dict() == {"kind": "adapt.lora.Lora"}


def test_nested_values_keep_their_kinds() -> None:
    spec = gated(4, 6, activation=Relu())
    data = json.loads(json.dumps(spec.to_dict()))
    assert data["activation"] == {"kind": "nn.activation.Relu"}
    assert data["gate"]["kind"] == "nn.linear.Linear"
    assert Gated.Spec.from_dict(data) == spec
    assert "activation" not in gated(4, 6, activation=Silu()).to_dict()


def test_equal_neighbours_are_written_once() -> None:
    one, two = Lora(rank=2), Lora(rank=3)
    plan = Plan(techniques=(one, one, one, two, one))
    data = plan.to_dict()
    assert [item.get("repeat") for item in data["techniques"]] == [3, None, None]
    assert Plan.from_dict(json.loads(json.dumps(data))) == plan


@pytest.mark.parametrize("count", [0, -1, MAX_REPEAT + 1, 2.0, True, "3", None])
def test_a_wild_repeat_count_is_refused_before_it_allocates(count: Any) -> None:
    with pytest.raises(FileFormatError):
        Plan.from_dict({"kind": "core.technique.Plan", "techniques": [{"repeat": count, "of": Lora().to_dict()}]})


def test_equal_values_have_equal_digests() -> None:
    assert Lora(alpha=8) == Lora(alpha=8.0)
    assert Lora(alpha=8).digest() == Lora(alpha=8.0).digest()
    assert Lora(alpha=16).digest() == Lora().digest()
    assert Lora(alpha=8).digest() != Lora(alpha=8.5).digest()
    assert Lora(seed=1).digest() != Lora(seed=True).digest()  # they compare equal in Python only


def test_values_that_differ_differ_in_digest() -> None:
    values = [
        Lora(), Lora(rank=9), Lora(name="x"), Lora(targets="x"), Normal(), Normal(std=0.5), Constant(), Silu(), Relu(),
        Plan(), Plan(techniques=(Lora(),)), Plan(techniques=(Lora(), Lora())),
        Linear.Spec(in_features=2, out_features=3), Linear.Spec(in_features=3, out_features=2),
    ]  # fmt: skip
    digests = {value.digest() for value in values}
    assert len(digests) == len(values)
    assert all(len(digest) == 64 for digest in digests)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"hidden": 8},
        {"kind": 3},
        {"kind": "nn.norm.RMSNorm"},
        {"kind": "nn.norm.RMSNorm", "hidden": 8, "surplus": 1},
        {"kind": "nn.linear.Linear", "in_features": 2, "out_features": 2},
        {"kind": "adapt.lora.Lora"},
    ],
)
def test_foreign_data_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(FileFormatError):
        RMSNorm.Spec.from_dict(data)


@pytest.mark.parametrize(
    "kind",
    [
        "",
        ".",
        "nn",
        "nn.norm",
        "nn.norm.Nothing",
        "nn.norm._private",
        "os.system",
        "builtins.eval",
        "core.value.Value.__init__",
        "core.errors.AlmanacError",
        "adapt.lora.LowRank",
        "adapt.lora.Attachment",
        "nn.norm.RMSNorm.Spec.build",
        "../nn.norm.RMSNorm",
        "nn..norm",
        "__main__",
    ],
)
def test_a_saved_kind_reaches_nothing_but_values(kind: str) -> None:
    with pytest.raises((NotFoundError, FileFormatError)):
        Value.from_dict({"kind": kind})


def test_refusals_during_construction_are_typed() -> None:
    with pytest.raises(AlmanacError):
        Lora.from_dict({"kind": "adapt.lora.Lora", "rank": 0})
    with pytest.raises(FileFormatError):
        Lora.from_dict({"kind": "adapt.lora.Lora", "rank": "many"})


def test_values_are_frozen_and_refuse_unknown_fields() -> None:
    value = RMSNorm.Spec(hidden=8)
    with pytest.raises(dataclasses.FrozenInstanceError):
        value.hidden = 9  # type: ignore[misc]
    with pytest.raises(TypeError):
        value.with_(width=9)
    assert value.with_(hidden=9) == RMSNorm.Spec(hidden=9)
    assert value.hidden == 8


def test_only_json_types_and_values_may_be_fields() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Odd(Value):
        field: Any

    for bad in ([1], {"a": 1}, {1}, b"x", object(), (1, [2])):
        with pytest.raises(TypeError):
            Odd(field=bad).to_dict()
    assert Odd(field=(1, "a", None, True, 2.5, (3,))).to_dict()["field"] == [1, "a", None, True, 2.5, [3]]
    with pytest.raises(TypeError, match="slots"):

        @dataclass(frozen=True, kw_only=True, slots=True)
        class Slotted(Value):
            field: int


def test_numbers_survive_exactly() -> None:
    for std in (0.1, 1e-300, 1 / 3, math.pi):
        assert Normal.from_dict(json.loads(json.dumps(Normal(std=std).to_dict()))).std == std
