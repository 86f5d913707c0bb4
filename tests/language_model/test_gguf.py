"""GGUF files: ours read by us, by the `gguf` package and by llama.cpp, which share no code with each other."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from language_model import small
from torch import Tensor

from almanac.compress.quantize.blocks import LOSS_BOUNDS, Blocks
from almanac.core.errors import AlmanacError, FileFormatError, ParityError, UnsupportedError
from almanac.files.gguf.reader import read_gguf
from almanac.files.gguf.writer import write_gguf
from almanac.language_model.load import load
from almanac.language_model.model import LanguageModel
from almanac.models.gguf_file import deinterleave, interleave
from almanac.nn.positions.rope import Factors
from almanac.nn.stored.blocks import BlockWeight
from almanac.verify.probes import divergence, probe_ids, probe_logits

WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2}  # whole blocks of 256, for K formats
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied": ("llama tied", {}),
    "llama, a key-value head each": ("llama", {"num_key_value_heads": 4}),
    "llama, attention biases": ("llama", {"attention_bias": True}),
    "llama, wide heads": ("llama", {"head_dim": 32}),
    "llama, llama3 scaling": ("llama3 scaling", {}),
    "llama, linear scaling": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0}}),
    "mistral without windows": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen2, own head": ("qwen2", {"tie_word_embeddings": False}),
    "smollm3 with positions everywhere": ("smollm3", {"no_rope_layers": [1, 1, 1]}),
}  # fmt: skip
every_model = pytest.mark.parametrize("case", list(MODELS))
EXACT = 2e-6
IDS = torch.randint(0, small.VOCAB, (1, 40), generator=torch.Generator().manual_seed(3))


def model(case: str, **changes: Any) -> LanguageModel:
    variant, own = MODELS[case]
    return small.language_model(variant, **{**own, **changes})


def logits(lm: LanguageModel) -> Tensor:
    with torch.no_grad():
        return lm.network(IDS)[0]


def relative(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


def tensors_in(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {
        name: (tensor.type, tensor.shape, tensor.blocks().numpy().tobytes())
        for name, tensor in read_gguf(path).tensors.items()
    }


@every_model
def test_full_precision_reads_back_the_same(case: str, tmp_path: Path) -> None:
    lm = model(case)
    path = lm.export(tmp_path / "m.gguf", format="gguf", quantization="F32")
    again = load(path)
    assert relative(logits(again), logits(lm)) <= EXACT
    assert not again.plan.techniques
    assert again.tokenizer.special == lm.tokenizer.special
    assert again.template is not None
    assert lm.template is not None
    conversation = small.CONVERSATION
    assert again.template.render(conversation) == lm.template.render(conversation)
    assert [again.tokenizer.encode(text) for text in small.TEXTS] == [lm.tokenizer.encode(text) for text in small.TEXTS]
    assert "not_understood" not in again.provenance
    twice = again.export(tmp_path / "twice.gguf", format="gguf", quantization="F32")
    assert tensors_in(twice) == tensors_in(path)


@pytest.mark.parametrize("variant", ["llama tied", "qwen2"])
@pytest.mark.parametrize("format", ["F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0"])
def test_every_format_stays_within_its_bound(format: str, variant: str, tmp_path: Path) -> None:
    lm = small.language_model(variant, **WIDE)
    path = lm.export(tmp_path / "m.gguf", format="gguf", quantization=format)
    stored = {tensor.type for tensor in read_gguf(path).tensors.values() if len(tensor.shape) == 2}
    assert stored == ({format, "Q8_0"} if format.startswith(("Q4", "Q5")) else {format})
    packed, dense = load(path), load(path, packed=False)
    assert relative(logits(packed), logits(dense)) <= 1e-5
    rows = probe_ids(lm)
    found = divergence(probe_logits(lm, rows), probe_logits(packed, rows))
    assert 0 < found.mean_kl <= LOSS_BOUNDS[format]
    is_packed = [isinstance(item.weight, BlockWeight) for item in toys.leaves(packed.network).values()]
    assert all(is_packed) == any(is_packed) == (format not in ("F16", "BF16"))
    again = packed.export(tmp_path / "again.gguf", format="gguf")
    if format == "BF16":  # expanded when read, and dense weights go out as F16
        return
    assert tensors_in(again) == tensors_in(path), "packed weights go out as they came in"
    folder = packed.save(tmp_path / "folder")
    assert logits(load(folder)).equal(logits(packed))
    back = load(folder).export(tmp_path / "back.gguf", format="gguf")
    assert tensors_in(back) == tensors_in(path)


def test_a_model_quantized_by_us_keeps_its_codes(tmp_path: Path) -> None:
    lm = small.language_model("llama")
    lm.quantize(Blocks(format="Q5_1"), bound=1.0)
    path = lm.export(tmp_path / "m.gguf", format="gguf")
    types = {name: tensor.type for name, tensor in read_gguf(path).tensors.items()}
    assert types["blk.0.attn_q.weight"] == "Q5_1"
    assert types["token_embd.weight"] == "F16"
    assert types["blk.0.attn_norm.weight"] == "F32"
    again = load(path)
    for name in ("layers.0.mixer.q", "layers.2.channel.down"):
        assert torch.equal(
            toys.leaves(again.network)[name].dense_weight(), toys.leaves(lm.network)[name].dense_weight()
        )


def test_a_row_that_does_not_divide_gets_a_finer_format_not_a_coarser(tmp_path: Path) -> None:
    path = small.language_model("llama").export(tmp_path / "m.gguf", format="gguf", quantization="Q4_K")
    types = {tensor.type for tensor in read_gguf(path).tensors.values()}
    assert types == {"Q8_0", "F32"}


def test_every_row_of_the_embedding_has_a_name(tmp_path: Path) -> None:
    """llama.cpp counts rows by the tokens; embeddings are often padded beyond them."""
    lm = small.language_model("llama")
    assert lm.tokenizer.vocab_size < small.VOCAB
    again = load(lm.export(tmp_path / "m.gguf", format="gguf", quantization="F32"))
    assert again.tokenizer.vocab_size == small.VOCAB
    assert again.tokenizer.control_tokens() == lm.tokenizer.control_tokens()
    text = "[PAD380] [PAD381]"
    assert again.tokenizer.encode(text) == lm.tokenizer.encode(text)


def test_llama3_scaling_travels_as_factors(tmp_path: Path) -> None:
    lm = model("llama, llama3 scaling")
    path = lm.export(tmp_path / "m.gguf", format="gguf", quantization="F32")
    factors = read_gguf(path).tensors["rope_freqs.weight"].dense()
    assert factors.shape == (8,)
    assert float(factors.max()) == pytest.approx(8.0, rel=1e-6)
    assert float(factors.min()) == 1.0
    again = load(path)
    scaling = again.spec.layers[0].mixer.position.scaling
    assert isinstance(scaling, Factors)
    plain = model("llama, llama3 scaling", rope_parameters={"rope_type": "default", "rope_theta": 1000.0})
    assert relative(logits(plain), logits(lm)) > 1e-3, "the scaling matters here"


def test_interleaving_is_a_permutation_within_each_head() -> None:
    rows = torch.arange(2 * 8).view(16, 1)
    turned = interleave(rows, 8).flatten().tolist()
    assert turned[:8] == [0, 4, 1, 5, 2, 6, 3, 7]
    assert turned[8:] == [8, 12, 9, 13, 10, 14, 11, 15]
    assert deinterleave(interleave(rows, 8), 8).equal(rows)
    assert interleave(deinterleave(rows[:, 0], 8), 8).equal(rows[:, 0])


@pytest.mark.parametrize("case", ["llama, attention biases", "llama, llama3 scaling", "qwen2"])
def test_the_gguf_package_reads_what_we_write(case: str, gguf: Any, tmp_path: Path) -> None:
    lm = model(case)
    path = lm.export(tmp_path / "m.gguf", format="gguf", quantization="F32")
    reader = gguf.GGUFReader(path)
    found = {tensor.name: tensor for tensor in reader.tensors}
    architecture = "qwen2" if case == "qwen2" else "llama"
    assert bytes(reader.fields["general.architecture"].parts[-1]).decode() == architecture
    assert int(reader.fields[f"{architecture}.block_count"].parts[-1][0]) == 3
    embedding = toys.leaves(lm.network)["embed"].dense_weight().detach().numpy()
    assert np.array_equal(found["token_embd.weight"].data, embedding)
    q = toys.leaves(lm.network)["layers.1.mixer.q"]
    expected = q.dense_weight() if architecture == "qwen2" else interleave(q.dense_weight(), 16)
    assert np.array_equal(found["blk.1.attn_q.weight"].data, expected.detach().numpy())
    if q.bias is not None:
        bias = q.bias if architecture == "qwen2" else interleave(q.bias, 16)
        assert np.array_equal(found["blk.1.attn_q.bias"].data, bias.detach().numpy())
    names = set(gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 3).mapping)
    assert names, "the package's own table of names"
    assert {name.removesuffix(".weight").removesuffix(".bias") for name in found} <= names | {"rope_freqs"}


@pytest.mark.parametrize("format", ["Q8_0", "Q4_K", "Q4_1", "Q6_K"])
def test_the_gguf_package_expands_our_blocks_to_the_same_numbers(format: str, gguf: Any, tmp_path: Path) -> None:
    path = small.language_model("llama tied", **WIDE).export(tmp_path / "m.gguf", format="gguf", quantization=format)
    ours = read_gguf(path).tensors
    for tensor in gguf.GGUFReader(path).tensors:
        theirs = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(ours[tensor.name].shape)
        assert np.array_equal(theirs, ours[tensor.name].dense().numpy()), tensor.name


@every_model
def test_llama_cpp_computes_what_we_do(case: str, llama_cpp: Any, tmp_path: Path) -> None:
    """The third witness for names, biases, rotary order, partial rotation and scaling; its cache kept in float32."""
    lm = model(case)
    path = lm.export(tmp_path / "m.gguf", format="gguf", quantization="F32")
    kind = llama_cpp.GGML_TYPE_F32
    witness = llama_cpp.Llama(
        str(path), n_ctx=64, n_batch=64, n_threads=1, logits_all=True, verbose=False, type_k=kind, type_v=kind,
        flash_attn=False,
    )  # fmt: skip
    try:
        for text in small.TEXTS:
            ids = witness.tokenize(text.encode(), add_bos=False, special=False)
            assert ids == lm.tokenizer.encode(text, allow_special=False)
        assert witness.token_eos() == lm.tokenizer.special.eos
        witness.eval(IDS[0].tolist())
        theirs = torch.from_numpy(witness.scores[: IDS.shape[1]].copy())
    finally:
        witness.close()
    assert relative(logits(lm), theirs) <= 1e-3
    assert logits(lm).argmax(-1).equal(theirs.argmax(-1))


# --- files that say something else


def rewritten(path: Path, target: Path, *, metadata: dict[str, Any] | None = None, **tensors: Tensor) -> Path:
    """A copy of a GGUF file with some metadata or F32 tensors (``.`` spelled ``__``) changed."""
    file = read_gguf(path)
    values = {**file.metadata, **(metadata or {})}
    values = {key: value for key, value in values.items() if value is not None}
    types = {key: kind for key, kind in file.types.items() if key in values and key not in (metadata or {})}
    entries = {name: (item.type, item.blocks().clone(), item.shape) for name, item in file.tensors.items()}
    for name, tensor in tensors.items():
        entries[name.replace("__", ".")] = ("F32", tensor, tuple(tensor.shape))
    write_gguf(target, values, entries, types=types)
    return target


ODD: dict[str, tuple[dict[str, Any], type[AlmanacError], str]] = {
    "a sliding window": ({"llama.attention.sliding_window": 9}, UnsupportedError, "sliding window"),
    "yarn": ({"llama.rope.scaling.type": "yarn"}, UnsupportedError, "yarn"),
    "values of another length": ({"llama.attention.value_length": 8}, UnsupportedError, "another length"),
    "half of each head rotated": ({"llama.rope.dimension_count": 8}, UnsupportedError, "part of each head"),
    "odd rotary dimensions": ({"llama.rope.dimension_count": 5}, UnsupportedError, "rotary"),
    "no epsilon": ({"llama.attention.layer_norm_rms_epsilon": None}, FileFormatError, "epsilon"),
    "no layers": ({"llama.block_count": None}, FileFormatError, "block_count"),
    "text for heads": ({"llama.attention.head_count": "four"}, FileFormatError, "head_count"),
    "no heads": ({"llama.attention.head_count": 0}, FileFormatError, "head_count"),
    "text for the rotary dimensions": ({"llama.rope.dimension_count": "16"}, FileFormatError, "dimension_count"),
    "a key of no length": ({"llama.attention.key_length": 0}, FileFormatError, "key_length"),
    "more layers than it holds": ({"llama.block_count": 9000}, FileFormatError, "9,000 layers"),
    "another architecture": ({"general.architecture": "rwkv7"}, UnsupportedError, "rwkv7"),
}


@pytest.mark.parametrize("case", list(ODD))
def test_metadata_that_cannot_be_honoured_are_refused(case: str, tmp_path: Path) -> None:
    metadata, kind, word = ODD[case]
    path = model("llama").export(tmp_path / "m.gguf", format="gguf", quantization="F32")
    with pytest.raises(kind, match=word):
        load(rewritten(path, tmp_path / "odd.gguf", metadata=metadata))


def test_a_window_wider_than_the_context_is_none(tmp_path: Path) -> None:
    path = model("llama").export(tmp_path / "m.gguf", format="gguf", quantization="F32")
    wide = {"llama.attention.sliding_window": small.CONTEXT}
    assert relative(logits(load(rewritten(path, tmp_path / "w.gguf", metadata=wide))), logits(load(path))) == 0.0


def test_what_is_not_read_is_told(tmp_path: Path) -> None:
    path = model("llama").export(tmp_path / "m.gguf", format="gguf", quantization="F32")
    lm = load(rewritten(path, tmp_path / "m2.gguf", metadata={"llama.attention.scale": 0.5}))
    assert lm.provenance["not_understood"] == {"attention.scale": "0.5"}


@pytest.mark.parametrize("factors", [torch.ones(7), torch.zeros(8), torch.full((8,), float("nan"))])
def test_factors_that_do_not_fit_are_refused(factors: Tensor, tmp_path: Path) -> None:
    path = model("llama").export(tmp_path / "m.gguf", format="gguf", quantization="F32")
    with pytest.raises(FileFormatError, match="factors"):
        load(rewritten(path, tmp_path / "odd.gguf", rope_freqs__weight=factors))


def test_a_file_that_reads_back_otherwise_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the rotary order while writing: the export's own parity check must notice."""
    module = sys.modules["almanac.language_model.export"]
    original = module.gguf_order
    monkeypatch.setattr(
        module, "gguf_order", lambda name, tensor, *rest: [(original(name, tensor, *rest)[0][0], tensor)]
    )
    with pytest.raises(ParityError, match="exporting"):
        model("llama").export(tmp_path / "m.gguf", format="gguf", quantization="F32")
    assert list(tmp_path.iterdir()) == []
