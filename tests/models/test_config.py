"""Configurations as they come: both spellings, damaged ones, and fields that nobody understood."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import toys

from almanac.core.errors import AlmanacError, ArchitectureError, FileFormatError, ShapeError, UnsupportedError
from almanac.models.family import Fields, families, family_for, family_for_gguf
from almanac.models.hub_folder import family_of
from almanac.nn.activation import GeluTanh
from almanac.nn.attention.full import Attention
from almanac.nn.attention.masks import Causal, SlidingWindow
from almanac.nn.channel.moe.mixture import Mixture
from almanac.nn.linear import Linear
from almanac.nn.norm import LayerNorm, RMSNorm
from almanac.nn.positions import rope as rotary
from almanac.nn.positions.rope import Factors, Llama3, Rope, frequencies
from almanac.nn.stack import Decoder

FAMILIES = [family.model_type for family in families()]
every_family = pytest.mark.parametrize("name", FAMILIES)


def spec_of(name: str, **changes: Any) -> Decoder.Spec:
    return toys.toy_of(family_for(name), **changes)


def positions_of(spec: Decoder.Spec) -> set[Rope.Spec]:
    return {item for _, item in spec.walk() if isinstance(item, Rope.Spec)}


KIN = pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "smollm3"])


@KIN
def test_rope_in_both_spellings(name: str) -> None:
    new = {"rope_theta": 77.0, "rope_type": "linear", "factor": 3.0}
    expected = {Rope.Spec(rotary_dim=16, theta=77.0, scaling=rotary.Linear(factor=3.0))}
    assert positions_of(spec_of(name, rope_theta=None, rope_parameters=new)) == expected
    assert positions_of(spec_of(name, rope_theta=77.0, rope_scaling={"type": "linear", "factor": 3.0})) == expected
    llama3 = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }  # fmt: skip
    scaling = Llama3(factor=8.0, low=1.0, high=4.0, original=16)
    expected = {Rope.Spec(rotary_dim=16, theta=500.0, scaling=scaling)}
    assert positions_of(spec_of(name, rope_scaling=llama3)) == expected


@KIN
def test_what_would_change_the_result_is_refused(name: str) -> None:
    for kind in ("proportional", "nonsense"):
        with pytest.raises(UnsupportedError, match=kind):
            spec_of(name, rope_scaling={"rope_type": kind, "factor": 2.0})
    with pytest.raises(UnsupportedError, match="swish9"):
        spec_of(name, hidden_act="swish9")
    assert spec_of(name, hidden_act="gelu_new").layers[0].channel.activation == GeluTanh()


def test_interleaved_rope_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="rope_interleaved"):
        spec_of("llama", rope_interleaved=True)


@every_family
def test_fields_nobody_read_are_told(name: str) -> None:
    family = family_for(name)
    more = {"model_type": name, "flux_capacity": 30.0, "empty": None, "off": False, "bos_token_id": 5}
    fields = Fields({**toys.CONFIG, **family.tiny, **more})
    family.read(fields)
    told = fields.not_understood()
    assert told.pop("flux_capacity") == 30.0
    assert set(told) <= set(toys.CONFIG)  # the toys' mixture of all families
    assert not set(told) & set(family.tiny)


def test_windows_by_layer() -> None:
    def masks(name: str, **changes: Any) -> list[Any]:
        return [layer.mixer.mask for layer in spec_of(name, **changes).layers]

    window, full = SlidingWindow(size=7), Causal()
    assert masks("mistral") == [window] * 3
    assert masks("mistral", sliding_window=None) == [full] * 3
    assert masks("qwen2") == [full, window, window]
    assert masks("qwen2", max_window_layers=2) == [full, full, window]
    assert masks("qwen2", use_sliding_window=False) == [full] * 3
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    assert masks("qwen2", layer_types=kinds) == [window, full, window]
    assert masks("smollm3", layer_types=kinds) == [window, full, window]
    assert masks("llama") == [full] * 3


def test_layers_without_positions() -> None:
    def rotary(**changes: Any) -> list[bool]:
        return [layer.mixer.position is not None for layer in spec_of("smollm3", **changes).layers]

    assert rotary(no_rope_layer_interval=2) == [True, False, True]
    assert rotary(no_rope_layer_interval=None, num_hidden_layers=5) == [True, True, True, False, True]
    assert rotary(no_rope_layers=[0, 1, 0]) == [False, True, False]


def test_layers_with_experts_are_numbers_of_layers() -> None:
    def sparse(**changes: Any) -> list[bool]:
        return [isinstance(layer.channel, Mixture.Spec) for layer in spec_of("llama4_text", **changes).layers]

    assert sparse() == sparse(moe_layers=None) == [False, True, False]  # every second
    assert sparse(moe_layers=[]) == [False] * 3
    assert sparse(moe_layers=[0, 2]) == [True, False, True]
    for damaged in ("ab", 1, ["1"], [True], [-1], [3], [[0]], {"0": 1}):
        with pytest.raises(FileFormatError, match="moe_layers"):
            sparse(moe_layers=damaged)


def test_biases_by_family() -> None:
    def biases(name: str, **changes: Any) -> tuple[bool, bool, bool]:
        layer = spec_of(name, **changes).layers[0]
        return layer.mixer.q.bias, layer.mixer.o.bias, layer.channel.gate.bias

    assert biases("llama", attention_bias=True) == (True, True, False)
    assert biases("llama", attention_bias=False, mlp_bias=True) == (False, False, True)
    assert biases("qwen2") == (True, False, False)
    assert biases("mistral") == (False, False, False)


def test_unknown_names_suggest_known_ones() -> None:
    with pytest.raises(ArchitectureError, match="mistral"):
        family_for("mistrale")
    with pytest.raises(ArchitectureError, match="Known are"):
        family_for("zzzz")
    with pytest.raises(ArchitectureError, match="llama"):
        family_for_gguf("rwkv7")


@every_family
def test_a_family_never_writes_what_it_would_read_otherwise(name: str) -> None:
    """What no family can express is not written at all: a saved model must be the model."""
    spec = spec_of(name)
    positions = sorted(path for path, item in spec.walk() if isinstance(item, Rope.Spec))
    norms = [path for path, item in spec.walk() if isinstance(item, RMSNorm.Spec | LayerNorm.Spec)]
    maps = [path for path, item in spec.walk() if isinstance(item, Linear.Spec)]
    masked = [path for path, item in spec.walk() if isinstance(item, Attention.Spec)]
    changes: list[tuple[str, dict[str, Any]]] = [
        *((path, {"mask": SlidingWindow(size=3)}) for path in masked[:2]),
        *((path, {"theta": 3.0}) for path in positions[:2]),
        *((path, {"scaling": Factors(factors=(1.0,) * 8)}) for path in positions[:1]),
        *((path, {"bias": True}) for path in [*maps[:4], maps[-1]]),
        *((path, {"epsilon": 0.1}) for path in [*norms[:2], *norms[-1:]]),
        ("embed", {"scale": 0.123}),
        ("", {"context_length": spec.context_length - 1}),
    ]
    for pattern, change in changes:
        try:
            other = spec.replace(pattern, **change) if pattern else spec.with_(**change)
        except ShapeError:
            continue
        found = family_of(other, preferred=name)
        if found is not None:
            assert found[0].read(Fields(found[1])) == other


JUNK = [
    None, True, False, 0, -1, 1, 3, 7, 64, 2**40, 0.0, -0.5, 0.3, 1.7, 1e300, float("nan"), float("inf"), "", "x",
    [], [1], ["x"] * 3, [None] * 3, {}, {"rope_type": "linear"}, {"factor": "x"}, {"rope_theta": -1},
    {"rope_type": ["x"]}, {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0,
    "original_max_position_embeddings": 8}, {"type": 5}, {"partial_rotary_factor": "x"},
]  # fmt: skip
SHARED = [
    *toys.CONFIG, "head_dim", "rope_scaling", "rope_parameters", "partial_rotary_factor", "layer_types",
    "no_rope_layers", "mlp_bias", "rope_interleaved",
]  # fmt: skip


@every_family
def test_damaged_configurations_never_crash(name: str) -> None:
    """Whatever a field holds, the answer is a model that runs or one of our errors."""
    rng = random.Random(name)
    family = family_for(name)
    fields = sorted({*SHARED, *family.tiny})
    cases = [{field: junk} for field in fields for junk in JUNK]
    cases = cases if name in ("llama", "qwen2") else rng.sample(cases, 250)  # all of them for two, a share for each
    cases += [{rng.choice(fields): rng.choice(JUNK) for _ in range(3)} for _ in range(50)]
    cases += [{}]
    outcomes, known = {"ran": 0, "refused": 0}, set[Decoder.Spec]()
    for case in cases:
        config = {**toys.CONFIG, **family.tiny, "model_type": name, **case}
        try:
            spec = family.read(Fields(config))
            if spec in known:
                continue
            known.add(spec)
            with torch.device("meta"):
                model = spec.build()
                logits = model(torch.zeros(1, 2, dtype=torch.int64, device="meta"))
            assert all(torch.isfinite(frequencies(position)).all() for position in positions_of(spec))
        except AlmanacError as error:
            assert error.cause
            assert error.remedy
            outcomes["refused"] += 1
        except Exception as error:
            pytest.fail(f"{case}: {type(error).__name__}: {error}")
        else:
            assert logits.shape == (1, 2, spec.embed.vocab_size)
            outcomes["ran"] += 1
    assert outcomes["ran"] > 3
    assert outcomes["refused"] > 25


def test_missing_sizes_are_named() -> None:
    for field in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        config = {key: value for key, value in toys.CONFIG.items() if key != field}
        with pytest.raises(FileFormatError, match=field):
            family_for("llama").read(Fields(config))
