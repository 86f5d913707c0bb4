"""GGUF files of models without attention: how their states are stored, and what a file of them cannot be; and sizes that
files of any kind may lie about.

That they read back, are computed alike by llama.cpp and named as the `gguf` package names them is with all families.
"""

from __future__ import annotations

import math
import resource
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from language_model import test_gguf_families
from language_model.test_gguf import rewritten
from language_model.test_gguf_families import TIED, logits, model, relative
from torch import Tensor

from almanac.compress.quantize.blocks import Blocks
from almanac.core.errors import AlmanacError, FileFormatError, ShapeError, UnsupportedError
from almanac.files.gguf.reader import read_gguf
from almanac.files.gguf.writer import write_gguf
from almanac.language_model.load import load
from almanac.models.tensor_layout import Decay
from almanac.nn.stored.blocks import BlockWeight

MAMBA: dict[str, Any] = {**TIED, "state_size": 16, "time_step_rank": 32, "intermediate_size": 128}
MAMBA2: dict[str, Any] = {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 2}
JAMBA: dict[str, Any] = {
    "num_hidden_layers": 5, "attn_layer_period": 3, "attn_layer_offset": 1, "num_experts": 4, "mamba_d_state": 16,
    "mamba_dt_rank": 32,
}  # fmt: skip


def test_a_decay_is_stored_as_what_it_is_the_logarithm_of() -> None:
    """A = -exp(a) is rounded once; beyond 1 its logarithm is a to the bit, below within 6e-8."""
    a = torch.linspace(-6.0, 6.0, 20_001)
    layout = Decay(shape=(20_001, 1))
    (stored,) = layout.write([a])
    assert stored.shape == (20_001, 1)
    exact = -a.double().exp()
    assert float(((stored.flatten().double() - exact) / exact).abs().max()) <= 2**-24
    (again,) = layout.read([stored], [a.shape])
    assert float((again - a).abs().max()) <= 6e-8
    assert again[a.abs() >= 1].equal(a[a.abs() >= 1])
    (twice,) = layout.write([again])
    assert float(((twice - stored) / stored).abs().max()) <= 2**-23


def tensors_of(case: str, tmp_path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Ours by our names, and the file's by theirs."""
    lm = model(case)
    path = lm.export(tmp_path / "m.gguf", format="gguf", quantization="F32")
    stored = {name: item.dense() for name, item in read_gguf(path).tensors.items()}
    return toys.tensors_of(lm.network), stored


def test_mamba_is_laid_out_as_its_readers_expect(tmp_path: Path) -> None:
    ours, theirs = tensors_of("mamba", tmp_path)
    mixer = {name.removeprefix("layers.1.mixer."): item for name, item in ours.items() if ".1.mixer." in name}
    layer = {name.removeprefix("blk.1."): item for name, item in theirs.items() if name.startswith("blk.1.")}
    assert layer["ssm_a"].allclose(-mixer["log_decay.weight"][0].exp(), rtol=1e-6, atol=0)
    assert layer["ssm_conv1d.weight"].equal(mixer["conv.weight"][:, 0])
    assert layer["ssm_in.weight"].equal(torch.cat([mixer["inward.weight"], mixer["gate.weight"]]))
    assert layer["ssm_dt.bias"].equal(mixer["step_bias.weight"])
    assert layer["ssm_d"].equal(mixer["skip.weight"])
    metadata = read_gguf(tmp_path / "m.gguf").metadata
    assert [metadata[f"mamba.{name}"] for name in ("attention.head_count", "feed_forward_length")] == [0, 0]
    assert metadata["mamba.ssm.dt_b_c_rms"] is False


def test_mamba2_has_a_row_of_its_norm_for_each_group(tmp_path: Path) -> None:
    ours, theirs = tensors_of("mamba2, groups, tied", tmp_path)
    assert theirs["blk.2.ssm_norm.weight"].equal(ours["layers.2.mixer.norm.weight"].view(4, 32))
    assert theirs["blk.2.ssm_d"].equal(ours["layers.2.mixer.skip.weight"][:, None])
    assert theirs["blk.2.ssm_a"].shape == (8, 1)


def test_jamba_tells_its_layers_by_their_key_value_heads_and_routers(tmp_path: Path) -> None:
    path = model("jamba").export(tmp_path / "m.gguf", format="gguf", quantization="F32")
    file = read_gguf(path)
    assert list(file.metadata["jamba.attention.head_count_kv"]) == [0, 2, 0, 0, 2]
    assert {name for name in file.tensors if "ffn_gate_inp" in name} == {f"blk.{n}.ffn_gate_inp.weight" for n in (1, 3)}


def test_an_unnamed_length_is_that_of_other_files(tmp_path: Path) -> None:
    lm = model("mamba")
    lm.spec = lm.spec.with_(context_length=1 << 20)
    path = lm.export(tmp_path / "m.gguf", format="gguf", quantization="F32")
    assert read_gguf(path).metadata["mamba.context_length"] == 1 << 20
    assert load(path).spec.context_length == 1 << 20


@pytest.mark.parametrize("case", ["mamba", "mamba2", "jamba"])
def test_what_is_small_stays_whole_where_matrices_are_packed(case: str, tmp_path: Path) -> None:
    """llama.cpp computes convolutions and decays in float32 alone."""
    lm = model(case)
    path = lm.export(tmp_path / "m.gguf", format="gguf", quantization="Q8_0")
    types = {name: item.type for name, item in read_gguf(path).tensors.items()}
    assert {types[f"blk.0.{name}"] for name in ("ssm_a", "ssm_d", "ssm_conv1d.weight", "ssm_dt.bias")} == {"F32"}
    assert types["blk.0.ssm_in.weight"] == types["blk.0.ssm_out.weight"] == "Q8_0"
    inward = toys.leaves(load(path).network)["layers.0.mixer.inward"]
    assert isinstance(inward.weight, BlockWeight)


def test_a_mamba_packed_by_us_keeps_its_codes(tmp_path: Path, llama_cpp: Any) -> None:
    lm = model("mamba")
    lm.quantize(Blocks(format="Q8_0", targets="layers.**"), bound=1.0)
    path = lm.export(tmp_path / "m.gguf", format="gguf")
    again = load(path)
    for name in ("inward", "gate", "out", "selection.project"):
        mine, read = (toys.leaves(item.network)[f"layers.1.mixer.{name}"] for item in (lm, again))
        assert read.dense_weight().equal(mine.dense_weight())
    theirs = test_gguf_families.witnessed(llama_cpp, path, test_gguf_families.IDS)
    assert relative(logits(again), theirs) <= 5e-2, "it rounds what it multiplies to 8 bits as well"


UNTOLD: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "biases of the maps": ("mamba", {**MAMBA, "use_bias": True}, None),
    "no bias of the convolution": ("mamba", {**MAMBA, "use_conv_bias": False}, None),
    "another expansion": ("mamba", {**MAMBA, "intermediate_size": 192}, "192 inner channels"),
    "another activation": ("mamba", {**MAMBA, "hidden_act": "gelu"}, None),
    "two epsilons": ("falcon_mamba", {**MAMBA, "layer_norm_epsilon": 1e-5, "mixer_rms_eps": 1e-3}, None),
    "biases of a Mamba-2": ("mamba2", {**MAMBA2, "use_bias": True}, None),
    "limits of the step": ("mamba2", {**MAMBA2, "time_step_limit": [0.01, 1.0]}, None),
    "biases in a Jamba": ("jamba", {**JAMBA, "mamba_proj_bias": True}, None),
    "another expansion in a Jamba": ("jamba", {**JAMBA, "mamba_expand": 3}, "192 inner channels"),
    "an RWKV of the fourth version": ("rwkv", {"attention_hidden_size": 64}, None),
}  # fmt: skip


@pytest.mark.parametrize("case", list(UNTOLD))
def test_what_a_file_cannot_tell_is_refused(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, changes, word = UNTOLD[case]
    monkeypatch.setitem(test_gguf_families.MODELS, "untold", (name, changes))
    with pytest.raises(UnsupportedError, match=word):
        model("untold").export(tmp_path / "m.gguf", format="gguf", quantization="F32")
    assert list(tmp_path.iterdir()) == []


HUGE = 2**31 - 1
ODD: dict[str, tuple[str, dict[str, Any], type[AlmanacError], str | None]] = {
    "more layers than it holds": ("mamba", {"block_count": 9000}, FileFormatError, "9,000 layers"),
    "layers beyond any model": ("mamba2", {"block_count": HUGE}, FileFormatError, "block_count"),
    "no states": ("mamba", {"ssm.state_size": 0}, FileFormatError, "state_size"),
    "states beyond memory": ("mamba", {"ssm.state_size": HUGE}, AlmanacError, None),
    "a convolution beyond memory": ("mamba2", {"ssm.conv_kernel": HUGE}, AlmanacError, None),
    "channels beyond memory": ("mamba", {"ssm.inner_size": HUGE}, UnsupportedError, "inner channels"),
    "a width beyond memory": ("mamba", {"embedding_length": HUGE, "ssm.inner_size": 2 * HUGE}, AlmanacError, None),
    "no rank": ("mamba", {"ssm.time_step_rank": None}, FileFormatError, "time_step_rank"),
    "text for the rank": ("mamba", {"ssm.time_step_rank": "32"}, FileFormatError, "time_step_rank"),
    "heads that do not divide": ("mamba2", {"ssm.time_step_rank": 7}, FileFormatError, "7 heads"),
    "groups that do not divide": ("mamba2", {"ssm.group_count": 3}, ShapeError, "3 groups"),
    "groups beyond memory": ("mamba2", {"ssm.group_count": HUGE}, AlmanacError, None),
    "an expansion that llama.cpp has not": ("mamba", {"ssm.inner_size": 64}, UnsupportedError, "64 inner channels"),
    "norms that the file has not": ("jamba", {"ssm.time_step_rank": 16}, AlmanacError, None),
    "heads of too few layers": ("jamba", {"attention.head_count_kv": [0, 2]}, FileFormatError, "5 entries"),
    "one number of heads": ("jamba", {"attention.head_count_kv": 2}, FileFormatError, "5 entries"),
    "no attention": ("jamba", {"attention.head_count_kv": [0] * 5}, UnsupportedError, "no regular layers"),
    "attention here and there": ("jamba", {"attention.head_count_kv": [2, 2, 0, 0, 2]}, UnsupportedError, "regular"),
    "attention where there is none": ("jamba", {"attention.head_count_kv": [2, 0, 0, 2, 0]}, AlmanacError, None),
    "text for heads": ("jamba", {"attention.head_count_kv": ["x"] * 5}, FileFormatError, "head_count_kv"),
    "heads of two sizes": ("jamba", {"attention.head_count_kv": [0, 2, 0, 0, 4]}, UnsupportedError, "regular"),
    "experts beyond memory": ("jamba", {"expert_count": HUGE}, AlmanacError, None),
    "a rank beyond memory": (
        "deepseek v3",
        {"attention.kv_lora_rank": HUGE - 16, "attention.key_length": HUGE, "attention.value_length": HUGE - 16},
        AlmanacError,
        None,
    ),
    "a wide head that is none": ("deepseek v3", {"attention.key_length": 40}, UnsupportedError, "one wide head"),
    "two wide heads": ("deepseek v3", {"attention.head_count_kv": 2}, UnsupportedError, "one wide head"),
    "queries of no low rank": ("deepseek v3", {"attention.q_lora_rank": None}, UnsupportedError, "rank None"),
    "more groups than experts": ("deepseek v3", {"expert_group_count": 3}, AlmanacError, None),
    "no experts": ("llama4", {"expert_count": 0}, FileFormatError, "expert_count"),
    "steps of no layers": ("llama4", {"interleave_moe_layer_step": 0}, FileFormatError, "moe_layer_step"),
    "no window": ("gpt-oss", {"attention.sliding_window": None}, FileFormatError, "sliding_window"),
    "another order of rows": ("falcon, two norms", {"tensor_data_layout": "other"}, UnsupportedError, "other"),
    "an MPT without ALiBi": ("mpt", {"attention.max_alibi_bias": 0.0}, UnsupportedError, "ALiBi"),
    "a BLOOM of another width": ("bloom", {"feed_forward_length": 64}, UnsupportedError, "channels of 64"),
}


@pytest.mark.parametrize("case", list(ODD))
def test_metadata_that_cannot_be_honoured_are_refused_at_once(case: str, tmp_path: Path) -> None:
    name, changes, kind, word = ODD[case]
    path = model(name).export(tmp_path / "m.gguf", format="gguf", quantization="F32")
    prefix = read_gguf(path).metadata["general.architecture"]
    odd = rewritten(path, tmp_path / "odd.gguf", metadata={f"{prefix}.{key}": value for key, value in changes.items()})
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(kind, match=word):
        load(odd)
    assert time.process_time() - began < 10, "no time for sizes that are not there"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10, "and no memory (in KiB)"


def test_half_of_what_belongs_together_is_no_weight(tmp_path: Path) -> None:
    path = model("deepseek v3").export(tmp_path / "m.gguf", format="gguf", quantization="F32")
    file = read_gguf(path)
    entries = {
        name: (item.type, item.blocks().clone(), item.shape)
        for name, item in file.tensors.items()
        if name != "blk.1.attn_v_b.weight"
    }
    write_gguf(tmp_path / "half.gguf", file.metadata, entries, types=file.types)
    with pytest.raises(FileFormatError, match="attn_k_b"):
        load(tmp_path / "half.gguf")


@pytest.mark.parametrize("value", [0.0, 1.0, math.nan, -math.inf])
def test_a_state_that_does_not_fade_is_refused(value: float, tmp_path: Path) -> None:
    path = model("mamba2").export(tmp_path / "m.gguf", format="gguf", quantization="F32")
    with pytest.raises(FileFormatError, match="does not fade"):
        load(rewritten(path, tmp_path / "odd.gguf", blk__1__ssm_a=torch.full((8, 1), value)))


def test_a_falcon_mamba_is_told_by_a_flag(tmp_path: Path) -> None:
    path = model("falcon mamba").export(tmp_path / "m.gguf", format="gguf", quantization="F32")
    assert load(path).family == "falcon_mamba"
    plain = load(rewritten(path, tmp_path / "plain.gguf", metadata={"mamba.ssm.dt_b_c_rms": False}))
    assert plain.family == "mamba"
    assert relative(logits(plain), logits(load(path))) > 1e-3, "the norms matter here"
