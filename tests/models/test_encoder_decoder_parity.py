"""Random tiny encoder-decoders of transformers, read by us: the same encoder, the same logits, the same greedy tokens, and
what we write back gives them the same again."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import largest_difference, quiet, transformers, watched
from torch import Tensor

from almanac.core.errors import ArchitectureError, FileFormatError, RequestError, ShapeError
from almanac.core.technique import Plan, assemble
from almanac.files.safetensors import read_sharded, write_safetensors
from almanac.generate.encoded_prompt import EncodedPrompt
from almanac.generate.engine import Engine, Request, run_all
from almanac.models.encoder_decoder_family import (
    encoder_decoder_families,
    encoder_decoder_family_for,
    read_encoder_decoder_folder,
    write_encoder_decoder_folder,
)
from almanac.models.family import Fields
from almanac.nn.encoder_decoder import EncoderDecoder

VOCAB, SOURCE, TIME = 61, 21, 13
T5 = {
    "vocab_size": VOCAB, "d_model": 36, "d_kv": 8, "d_ff": 50, "num_layers": 3, "num_heads": 4, "pad_token_id": 0,
    "eos_token_id": 1, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12,
    "decoder_start_token_id": 0,
}  # fmt: skip
BART = {
    "vocab_size": VOCAB, "d_model": 36, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 6, "encoder_ffn_dim": 50, "decoder_ffn_dim": 44, "max_position_embeddings": 48,
    "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": None,
}  # fmt: skip
GATED = {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("T5ForConditionalGeneration", T5),
    "t5, 1.1": ("T5ForConditionalGeneration", GATED),
    "t5, ul2": ("T5ForConditionalGeneration", {**GATED, "feed_forward_proj": "gated-silu", "num_decoder_layers": 2}),
    "t5, one head": ("T5ForConditionalGeneration", {**T5, "num_heads": 1, "num_layers": 1, "d_kv": 16}),
    "t5, wide": (
        "T5ForConditionalGeneration",
        {**T5, "num_decoder_layers": 4, "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128,
         "feed_forward_proj": "gelu_new", "layer_norm_epsilon": 1e-3, "decoder_start_token_id": 5},
    ),
    "mt5": ("MT5ForConditionalGeneration", {**T5, "num_decoder_layers": 2}),
    "umt5": ("UMT5ForConditionalGeneration", T5),
    "bart": ("BartForConditionalGeneration", BART),
    "bart, scaled": (
        "BartForConditionalGeneration",
        {**BART, "scale_embedding": True, "activation_function": "relu", "decoder_start_token_id": 0},
    ),
    "bart, untied": ("BartForConditionalGeneration", {**BART, "tie_word_embeddings": False, "decoder_layers": 3}),
    "mbart": ("MBartForConditionalGeneration", {**BART, "scale_embedding": True}),
}  # fmt: skip
BLOCKS = {
    "T5Block", "MT5Block", "UMT5Block", "BartEncoderLayer", "BartDecoderLayer", "MBartEncoderLayer", "MBartDecoderLayer",
}  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """One model in both implementations, and the folder that theirs was saved to."""

    theirs: Any
    ours: EncoderDecoder
    folder: Path


def make(case: str) -> Any:
    """A transformers model whose every parameter is random, norms, biases and the shift of the logits included."""
    name, settings = CASES[case]
    with quiet():
        cls = getattr(transformers, name)
        model = cls(cls.config_class(**settings)).float().eval()
    generator = torch.Generator().manual_seed(len(case))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            gain = parameter.dim() == 1 and name.endswith("weight")
            parameter.copy_(noise * (0.5 if "bart" in case else 0.1) + (1 if gain else 0))
        for buffer_name, buffer in model.named_buffers():
            if buffer_name == "final_logits_bias":
                buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.1)
    return model


def read(folder: Path) -> EncoderDecoder:
    found = read_encoder_decoder_folder(folder)
    assert found.not_understood == {}
    made = assemble(found.spec, Plan(), found.tensors)
    assert isinstance(made, EncoderDecoder)
    return made


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def pair(case: str) -> Pair:
        theirs, folder = make(case), tmp_path_factory.mktemp("theirs")
        with quiet():
            theirs.save_pretrained(folder)
        return Pair(theirs, read(folder), folder)

    return pair


@pytest.fixture(params=sorted(CASES))
def pair(request: pytest.FixtureRequest, pairs: Any) -> Pair:
    return pairs(request.param)


def tokens(rows: int, time: int, *, seed: int = 0) -> Tensor:
    """Ids that are neither padding nor the end."""
    return torch.randint(3, VOCAB, (rows, time), generator=torch.Generator().manual_seed(seed))


def difference(theirs: Any, ours: EncoderDecoder, own: Tensor | None = None) -> float:
    """The largest difference of what every layer gives, of the encoded source and of the logits."""
    source, written = tokens(3, SOURCE), tokens(3, TIME, seed=1)
    written[:, 0] = ours.start_id
    mask = torch.ones_like(source, dtype=torch.bool) if own is None else own
    blocks = [module for module in theirs.modules() if type(module).__name__ in BLOCKS]
    layers = [*ours.encoder.layers, *ours.decoder.layers]
    given = {"input_ids": source, "attention_mask": mask.long(), "decoder_input_ids": written}
    reference, their_states = watched(blocks, lambda: theirs(**given))
    segments = None if own is None else mask.long() - 1
    logits, our_states = watched(layers, lambda: ours(source, written, segments))
    assert len(blocks) == len(layers) == len(our_states) == len(their_states)
    everywhere = torch.ones_like(written, dtype=torch.bool)
    known = [mask if state.shape[1] == SOURCE else everywhere for state in our_states]
    with torch.no_grad():
        encoded = ours.encode(source, segments)
    assert reference.logits.std() > 0.05
    mine = [state[rows] for state, rows in zip(our_states, known, strict=True)]
    other = [state[rows] for state, rows in zip(their_states, known, strict=True)]
    return largest_difference(
        [*mine, encoded[mask], logits], [*other, reference.encoder_last_hidden_state[mask], reference.logits]
    )


def test_encoder_and_logits_agree(pair: Pair) -> None:
    assert difference(pair.theirs, pair.ours) <= 1e-5


def test_padded_sources_agree(pair: Pair) -> None:
    lengths = torch.tensor([SOURCE, 8, 1])
    assert difference(pair.theirs, pair.ours, torch.arange(SOURCE) < lengths[:, None]) <= 1e-5


def rms_norm(weight: Tensor, epsilon: float, x: Tensor) -> Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt()


def test_they_agree_in_double_precision(pair: Pair) -> None:
    theirs, ours = copy.deepcopy(pair.theirs).double(), copy.deepcopy(pair.ours).double()
    for module in theirs.modules():
        if type(module).__name__.endswith("T5LayerNorm"):
            module.forward = partial(rms_norm, module.weight, module.variance_epsilon)  # theirs rounds to float32
    assert difference(theirs, ours) <= 1e-10


def test_greedy_tokens_agree(pair: Pair) -> None:
    """Several sources of different lengths decoded together, each as theirs alone."""
    sources, new = [tokens(1, size, seed=size) for size in (SOURCE, 4, 1, 13)], 24
    expected = []
    for source in sources:
        with torch.no_grad(), quiet():
            reference = pair.theirs.generate(
                source,
                attention_mask=torch.ones_like(source),
                max_new_tokens=new,
                do_sample=False,
                num_beams=1,
                eos_token_id=None,
                forced_eos_token_id=None,
                use_cache=False,  # theirs holds no more layers than the encoder has
            )
        expected.append(reference[0, 1:].tolist())
    engine = Engine(pair.ours, prefill_chunk=5, opening=EncodedPrompt(pair.ours))
    got = run_all(engine, [Request(tokens=tuple(source[0].tolist()), max_tokens=new) for source in sources])
    assert got == expected
    if pair.theirs.config.model_type != "bart":  # whose random models say one word over and over
        assert len({tuple(row) for row in got}) > 1 or len(set(got[0])) > 1


def test_what_we_write_they_read_as_the_same(pair: Pair, tmp_path: Path) -> None:
    found = read_encoder_decoder_folder(pair.folder)
    special = {"pad_token_id": pair.theirs.config.pad_token_id, "eos_token_id": pair.theirs.config.eos_token_id}
    tensors = {name: item.detach() for name, item in pair.ours.named_parameters()}
    write_encoder_decoder_folder(tmp_path, found.spec, tensors, special=special, preferred=found.family.model_type)
    with quiet():
        again, info = type(pair.theirs).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    assert set(info["missing_keys"]) <= {"model.shared.weight"}  # which nobody reads where both stacks have their own
    assert difference(again.eval(), pair.ours) <= 1e-5
    back = read_encoder_decoder_folder(tmp_path)
    assert back.spec == found.spec
    assert back.family == found.family
    assert back.not_understood == {}


def test_silent_fields_mean_what_they_mean_to_them() -> None:
    for family in encoder_decoder_families():
        silent = {"vocab_size": VOCAB, "d_model": 32, "num_heads": 4, "d_ff": 40, "num_layers": 2}
        if "bart" in family.model_type:
            silent = {"vocab_size": VOCAB}
        with quiet():
            spoken = transformers.AutoConfig.for_model(family.model_type, **silent).to_json_string(use_diff=False)
        assert family.read(Fields(silent)) == family.read(Fields(json.loads(spoken))), family.model_type


def test_every_family_has_an_oracle() -> None:
    covered = {name for name, _ in CASES.values()}
    assert {family.architecture for family in encoder_decoder_families()} == covered
    with pytest.raises(ArchitectureError, match="mbart"):
        encoder_decoder_family_for("pegasus")


# --- a head of its own, as T5 1.1 and FLAN have on disk


def test_a_head_of_its_own_is_what_the_file_says(pairs: Any, tmp_path: Path) -> None:
    pair = pairs("t5, 1.1")
    tensors = {name: item.clone() for name, item in read_sharded(pair.folder).items()}
    generator = torch.Generator().manual_seed(9)
    tensors["lm_head.weight"] = torch.randn(VOCAB, 36, generator=generator) * 0.3
    write_safetensors(tmp_path / "model.safetensors", tensors)
    for tied in (False, True):  # theirs writes true since version 5, whatever the model is
        config = json.loads((pair.folder / "config.json").read_text()) | {"tie_word_embeddings": tied}
        (tmp_path / "config.json").write_text(json.dumps(config))
        ours = read(tmp_path)
        with quiet():
            theirs = type(pair.theirs).from_pretrained(tmp_path).eval()
        assert not torch.equal(theirs.lm_head.weight, theirs.shared.weight)
        assert difference(theirs, ours) <= 1e-5
    found = read_encoder_decoder_folder(tmp_path)
    write_encoder_decoder_folder(tmp_path / "again", found.spec, found.tensors)
    with quiet():
        theirs = type(pair.theirs).from_pretrained(tmp_path / "again").eval()
    assert difference(theirs, ours) <= 1e-5


def test_copies_of_the_shared_table_are_checked(pairs: Any, tmp_path: Path) -> None:
    pair = pairs("t5")
    tensors = {name: item.clone() for name, item in read_sharded(pair.folder).items()}
    (tmp_path / "config.json").write_text((pair.folder / "config.json").read_text())
    table = tensors["shared.weight"]
    copies = {f"{side}.embed_tokens.weight": table.clone() for side in ("encoder", "decoder")}
    write_safetensors(tmp_path / "model.safetensors", tensors | copies | {"lm_head.weight": table.clone()})
    source, written = tokens(1, 5), tokens(1, 3)
    with torch.no_grad():
        assert torch.equal(read(tmp_path)(source, written), pair.ours(source, written))
    write_safetensors(tmp_path / "model.safetensors", tensors | {"decoder.embed_tokens.weight": table + 1})
    with pytest.raises(FileFormatError, match="another table"):
        read(tmp_path)
    write_safetensors(tmp_path / "model.safetensors", tensors | {"decoder.block.0.layer.9.x.weight": table.clone()})
    with pytest.raises(FileFormatError, match="is no tensor of a t5"):
        read(tmp_path)


# --- states


def stepwise(model: EncoderDecoder, state: Any, written: Tensor, chunk: int) -> tuple[Tensor, Any]:
    """Logits of ``written`` in pieces, and the state after them."""
    pieces = []
    with torch.no_grad():
        for piece in written.split(chunk, dim=1):
            hidden, state = model.hidden(piece, state)
            pieces.append(model.logits(hidden))
    return torch.cat(pieces, dim=1), state


@pytest.mark.parametrize("case", ["t5", "umt5", "bart", "mbart"])
def test_cached_writing_equals_the_full_forward(case: str, pairs: Any) -> None:
    ours = pairs(case).ours
    source, written = tokens(3, SOURCE), tokens(3, TIME, seed=1)
    segments = (torch.arange(SOURCE) < torch.tensor([SOURCE, 6, 1])[:, None]).long() - 1
    with torch.no_grad():
        full = ours(source, written, segments)
        for chunk in (1, 4):
            got, state = stepwise(ours, ours.begin(source, 4, segments), written, chunk)
            assert state.lengths == [TIME] * 3
            torch.testing.assert_close(got, full, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", ["t5", "bart"])
def test_rows_fork_trim_select_and_join(case: str, pairs: Any) -> None:
    """Rows with sources and texts of different lengths go on, after every treatment, as if each were alone."""
    ours = pairs(case).ours
    sources = [tokens(1, size, seed=size) for size in (SOURCE, 3, 9)]
    pasts = [tokens(1, size, seed=10 + size) for size in (5, 8, 2)]
    states = [stepwise(ours, ours.begin(source, 4), past, 3)[1] for source, past in zip(sources, pasts, strict=True)]
    joined = states[0].join(states[1:])
    assert joined.lengths == [5, 8, 2]
    fork = joined.fork()
    fork.trim([4, 3, 2])
    chosen = fork.select([2, 0, 1, 0])
    order, lengths = [2, 0, 1, 0], [4, 3, 2]
    assert chosen.lengths == [2, 4, 3, 4]
    assert chosen.nbytes > 0
    tail = tokens(4, 6, seed=3)
    for state, rows, kept in ((chosen, order, lengths), (joined, [0, 1, 2], [5, 8, 2])):
        got, _ = stepwise(ours, state, tail[: len(rows)], 4)
        for place, row in enumerate(rows):
            whole = torch.cat([pasts[row][:, : kept[row]], tail[place : place + 1]], dim=1)
            with torch.no_grad():
                expected = ours(sources[row], whole)[0, kept[row] :]
            torch.testing.assert_close(got[place], expected, rtol=0, atol=1e-5)


def test_the_source_is_encoded_once(pairs: Any) -> None:
    ours = pairs("t5").ours
    calls: list[int] = []
    hook = ours.encoder.register_forward_hook(lambda *given: calls.append(1))
    engine = Engine(ours, opening=EncodedPrompt(ours))
    run_all(engine, [Request(tokens=(5, 6, 7), max_tokens=9), Request(tokens=(8,), max_tokens=4)])
    hook.remove()
    assert len(calls) == 2


def test_no_token_sees_the_future_but_all_see_the_source(pairs: Any) -> None:
    ours = pairs("bart").ours
    source, written = tokens(1, SOURCE), tokens(1, TIME, seed=1)
    with torch.no_grad():
        before = ours(source, written)
        changed = written.clone()
        changed[0, 6] = (changed[0, 6] + 1) % VOCAB
        after = ours(source, changed)
        other = source.clone()
        other[0, -1] = (other[0, -1] + 1) % VOCAB
        elsewhere = ours(other, written)
    assert torch.equal(after[:, :6], before[:, :6])
    assert not torch.equal(after[:, 6], before[:, 6])
    assert ((elsewhere - before).abs().amax(-1) > 1e-6).all()


def test_bad_requests_are_refused(pairs: Any) -> None:
    ours = pairs("bart").ours
    engine = Engine(ours, opening=EncodedPrompt(ours))
    for request in (
        Request(tokens=(), max_tokens=3),
        Request(tokens=(VOCAB,), max_tokens=3),
        Request(tokens=(5,) * 49, max_tokens=3),
        Request(tokens=(5,), max_tokens=48),
        Request(tokens=(5,), max_tokens=0),
    ):
        with pytest.raises(RequestError):
            engine.submit(request)
    with pytest.raises(RequestError, match="nothing to look at"):
        ours.hidden(tokens(1, 2), ours.init_state(1, 4))
    with pytest.raises(RequestError, match="outside the vocabulary"):
        ours(torch.tensor([[VOCAB]]), tokens(1, 2))
    with pytest.raises(ShapeError, match="begin with token"):
        read_encoder_decoder_folder(pairs("bart").folder).spec.with_(start_id=VOCAB)


def test_spec_path_is_module_path_and_json_keeps_it(pair: Pair) -> None:
    spec = read_encoder_decoder_folder(pair.folder).spec
    modules = dict(pair.ours.named_modules())
    assert all(type(item.build()) is type(modules[path]) for path, item in spec.walk())
    assert {key.rpartition(".")[0] for key in pair.ours.state_dict()} <= {path for path, _ in spec.walk()}
    assert EncoderDecoder.Spec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize("case", ["t5", "bart"])
def test_the_whole_compiles_as_one_graph(case: str, pairs: Any) -> None:
    ours = pairs(case).ours
    source, written = tokens(2, 9), tokens(2, 5, seed=1)
    torch._dynamo.reset()
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(source, written), ours(source, written), rtol=0, atol=1e-5)
