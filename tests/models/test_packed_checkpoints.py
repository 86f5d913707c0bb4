"""Checkpoints whose weights are packed: read as the dense ones that transformers computes with."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import quiet, transformers
from parity import TIME, make, tokens
from torch import Tensor

from almanac.core.errors import AlmanacError, FileFormatError, UnsupportedError
from almanac.core.technique import Plan, assemble
from almanac.files.safetensors import write_safetensors
from almanac.models.encoder_folder import read_encoder_folder
from almanac.models.family import encoder_family_for
from almanac.models.hub_folder import read_hub_folder
from almanac.models.packed_bitnet import digits
from almanac.models.packed_mxfp4 import dense
from almanac.models.packing import packings
from almanac.nn.stack import Decoder

with warnings.catch_warnings():  # compiling, which that module does when it is imported, is announced by torch itself
    warnings.filterwarnings("ignore", message=r"`torch\.jit\.script_method` is deprecated", category=DeprecationWarning)
    from transformers.integrations import bitnet as their_bitnet
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

OSS = {
    "hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2,
    "sliding_window": 7,
}  # fmt: skip
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
OFFLINE = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}
DIVIDED = {"quant_method": "bitnet"}
ONLINE = {**OFFLINE, "quantization_mode": "online"}
BITNET = {"packed": OFFLINE, "packed, divided": DIVIDED, "rounded online": ONLINE}
Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def write(folder: Path, model: Any, settings: object, tensors: dict[str, Tensor]) -> Path:
    config = json.loads(model.config.to_json_string(use_diff=False))
    folder.mkdir(exist_ok=True)
    whole = config | {"architectures": [type(model).__name__], "quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(whole))
    write_safetensors(folder / "model.safetensors", {name: item.contiguous() for name, item in tensors.items()})
    return folder


def bitnet_tensors(model: Any, settings: dict[str, Any]) -> dict[str, Tensor]:
    """The model's tensors; unless they are rounded online, random digits packed by theirs and a scale for every map."""
    generator = torch.Generator().manual_seed(5)
    tensors = {name: item for name, item in model.state_dict().items() if name != "lm_head.weight"}
    for name in [name for name in tensors if name.endswith("_proj.weight") and settings != ONLINE]:
        ternary = torch.randint(-1, 2, tensors[name].shape, generator=generator)
        tensors[name] = their_bitnet.pack_weights(ternary)
        scale = torch.rand(1, generator=generator) * 0.1 + 0.1
        tensors[f"{name}_scale"] = (1 / scale if settings == DIVIDED else scale).bfloat16()
    return tensors


def mxfp4_tensors(model: Any) -> dict[str, Tensor]:
    """The model's tensors, with random blocks and scales for every expert."""
    generator = torch.Generator().manual_seed(5)
    tensors = dict(model.state_dict())
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inward, outward = tensors.pop(name).shape
        shape = (experts, outward, inward // 32)
        tensors[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), generator=generator).to(torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(119, 125, shape, generator=generator).to(torch.uint8)
    return tensors


def opened(folder: Path) -> Decoder:
    found = read_hub_folder(folder)
    assert found.not_understood == {}
    made = assemble(found.spec, Plan(), {name: item.float() for name, item in found.tensors.items()})  # type: ignore[union-attr]
    assert isinstance(made, Decoder)
    return made


def theirs_from(folder: Path) -> Any:
    with quiet():
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Their maps without rounding what enters them, and nothing compiled."""

    class Unrounded:
        apply = staticmethod(lambda x: x)

    monkeypatch.setattr(their_bitnet, "ActQuant", Unrounded)
    monkeypatch.setattr(their_bitnet.BitLinear, "activation_quant", lambda self, x: (x, torch.ones(1)))
    with torch.compiler.set_stance("force_eager"):
        yield


def bitnet_folder(folder: Path, settings: dict[str, Any], **changes: Any) -> Path:
    model = make("bitnet", {"tie_word_embeddings": True, **changes})
    return write(folder, model, settings, bitnet_tensors(model, settings))


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("case", BITNET)
@pytest.mark.parametrize("bias", [False, True])
def test_bitnet_computes_what_theirs_does(case: str, bias: bool, tmp_path: Path) -> None:
    """Their own maps of each kind, but for the rounding of what enters them, and no two kinds alike."""
    folder = bitnet_folder(tmp_path, BITNET[case], attention_bias=bias)
    theirs, ours = theirs_from(folder), opened(folder)
    kind = type(theirs.model.layers[0].mlp.up_proj).__name__
    assert kind == ("BitLinear" if case == "packed, divided" else "AutoBitLinear")
    with torch.no_grad(), quiet():
        torch.testing.assert_close(ours(tokens(2, TIME)), theirs(tokens(2, TIME)).logits, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("settings", [OFFLINE, DIVIDED], ids=["times", "divided"])
def test_bitnet_weights_are_exactly_theirs(settings: dict[str, Any], tmp_path: Path) -> None:
    folder = bitnet_folder(tmp_path, settings)
    theirs, found = theirs_from(folder), read_hub_folder(folder).tensors
    for number, layer in enumerate(theirs.model.layers):
        maps = {"mixer.q": layer.self_attn.q_proj, "mixer.o.linear": layer.self_attn.o_proj,
                "channel.up": layer.mlp.up_proj, "channel.down.linear": layer.mlp.down_proj}  # fmt: skip
        for path, module in maps.items():
            if settings == DIVIDED:
                expected = their_bitnet.unpack_weights(module.weight, torch.float32) / module.weight_scale
            else:
                expected = module.weight * module.weight_scale
            got = found[f"layers.{number}.{path}.weight"]
            assert isinstance(got, Tensor)
            assert torch.equal(got.float(), expected)
            assert len(got.unique()) == 3


def test_digits_lie_a_quarter_of_the_rows_apart() -> None:
    """Worked by hand: 0b10_00_01_10 is, from the lowest pair of bits, 1, 0, -1, 1; 0b00_01_10_01 is 0, 1, 0, -1."""
    packed = torch.tensor([[0b10000110], [0b00011001]], dtype=torch.uint8)
    assert digits(packed).flatten().tolist() == [1, 0, 0, 1, -1, 0, 1, -1]
    with pytest.raises(FileFormatError, match="none of three"):
        digits(torch.tensor([[0b11]], dtype=torch.uint8))


@pytest.mark.usefixtures("plain")
def test_mxfp4_is_read_as_theirs(tmp_path: Path) -> None:
    model = make("gpt_oss", OSS)
    folder = write(tmp_path, model, MXFP4, mxfp4_tensors(model))
    theirs, ours = theirs_from(folder), opened(folder)
    assert type(theirs.model.layers[0].mlp.experts).__name__ == "GptOssExperts"  # they read it as dense
    for mine, other in zip(ours.layers, theirs.model.layers, strict=True):
        experts, fused = mine.get_submodule("channel.experts"), other.mlp.experts.gate_up_proj
        assert torch.equal(experts.get_parameter("gate.weight"), fused[..., 0::2].transpose(1, 2))
        assert torch.equal(experts.get_parameter("up.weight"), fused[..., 1::2].transpose(1, 2))
        assert torch.equal(experts.get_parameter("down.weight"), other.mlp.experts.down_proj.transpose(1, 2))
    with torch.no_grad(), quiet():
        torch.testing.assert_close(ours(tokens(2, TIME)), theirs(tokens(2, TIME)).logits, rtol=0, atol=1e-5)


def test_every_digit_and_scale_of_mxfp4_is_theirs() -> None:
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 256, 16, 16).contiguous()
    scales = torch.arange(256, dtype=torch.uint8).view(1, 256, 1).expand(1, 256, 16).contiguous()
    expected = convert_moe_packed_tensors(blocks, scales)
    got = dense(blocks[0], scales[0])
    assert got.dtype == expected.dtype == torch.bfloat16
    assert torch.equal(got.T.nan_to_num(7.25), expected[0].nan_to_num(7.25))
    one = dense(torch.tensor([[[0x21, 0xF7]]], dtype=torch.uint8), torch.tensor([[128]], dtype=torch.uint8))
    assert one.tolist() == [[1.0, 2.0, 12.0, -12.0]]  # twice 0.5, 1, 6 and -6


def without(part: str) -> Change:
    return lambda tensors: {name: item for name, item in tensors.items() if part not in name}


def changed(end: str, change: Callable[[Tensor], Tensor]) -> Change:
    return lambda tensors: {name: change(item) if name.endswith(end) else item for name, item in tensors.items()}


BROKEN: dict[str, tuple[str, dict[str, Any], Change, type[AlmanacError], str]] = {
    "no scales of blocks": ("gpt_oss", MXFP4, without("_scales"), FileFormatError, "gate_up_proj_scales"),
    "no blocks": ("gpt_oss", MXFP4, without("_blocks"), FileFormatError, "_scales"),
    "blocks of floats": ("gpt_oss", MXFP4, changed("_blocks", Tensor.float), FileFormatError, "do not fit"),
    "scales for fewer groups": (
        "gpt_oss",
        MXFP4,
        changed("_scales", lambda item: item[..., :1]),
        FileFormatError,
        "do not fit",
    ),
    "other rows": ("gpt_oss", MXFP4, changed("_blocks", lambda item: item[:, :8]), FileFormatError, "do not fit"),
    "no scale of a matrix": ("bitnet", OFFLINE, without("weight_scale"), FileFormatError, "no scale"),
    "two scales": ("bitnet", OFFLINE, changed("_scale", lambda item: item.repeat(2)), FileFormatError, "2 scales"),
    "a norm before each map": ("bitnet", {**OFFLINE, "use_rms_norm": True}, dict, UnsupportedError, "norm"),
    "another kind of map": ("bitnet", {**OFFLINE, "linear_class": "x"}, dict, UnsupportedError, "bitlinear"),
    "another mode": ("bitnet", {**OFFLINE, "quantization_mode": "x"}, dict, UnsupportedError, "online"),
    "another method": ("bitnet", {"quant_method": "awq"}, dict, FileFormatError, "'awq'"),
    "no method": ("bitnet", {"bits": 2}, dict, FileFormatError, "quantized"),
    "a method that is a list": ("bitnet", {"quant_method": ["mxfp4"]}, dict, FileFormatError, "mxfp4"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_such_file_is_refused(case: str, tmp_path: Path) -> None:
    name, settings, change, error, match = BROKEN[case]
    model = make(name, OSS if name == "gpt_oss" else {"tie_word_embeddings": True})
    tensors = mxfp4_tensors(model) if name == "gpt_oss" else bitnet_tensors(model, OFFLINE)
    folder = write(tmp_path, model, settings, change(tensors))
    with pytest.raises(error, match=match) as caught:
        read_hub_folder(folder)
    assert caught.value.remedy


def test_methods_are_found_and_told(tmp_path: Path) -> None:
    assert sorted(packings()) == ["bitnet", "mxfp4"]
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "llama", "quantization_config": {"quant_method": "gptq"}})
    )
    with pytest.raises(FileFormatError, match="gptq") as caught:
        read_hub_folder(tmp_path)
    assert "bitnet and mxfp4" in str(caught.value.remedy)


def test_packed_encoders_are_refused(tmp_path: Path) -> None:
    """Whose reader looks at tensors as they are."""
    assert encoder_family_for("bert").model_type == "bert"
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "quantization_config": OFFLINE}))
    with pytest.raises(FileFormatError, match="bitnet"):
        read_encoder_folder(tmp_path)
