"""Folders of encoder-decoders and of encoders that transformers saved, opened as any model: the same text and vectors."""

from __future__ import annotations

import asyncio
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from oracle import quiet, transformers
from tokenizers import models, pre_tokenizers, processors

import almanac
from almanac.adapt.lora import Lora
from almanac.compress.quantize.int8 import Int8
from almanac.core.errors import ArchitectureError, RequestError, UnsupportedError
from almanac.language_model.model import LanguageModel
from almanac.nn.encoder_decoder import EncoderDecoder
from almanac.serve.engine_thread import EngineThread
from almanac.serve.limits import Limits

WORDS = ("lamp", "ship", "stone", "river", "quiet", "seven", "the", "of", "blue", "far", "old", "sea")
SPECIALS = ("<pad>", "</s>", "<s>", "<unk>", "<mask>")
PROMPTS = ("the old ship", "lamp", "river of stone far blue the quiet sea")


def vocabulary() -> dict[str, int]:
    return {piece: index for index, piece in enumerate((*SPECIALS, *WORDS))}


def write_tokenizer(folder: Path, *, frame: str) -> None:
    """A tokenizer of whole words that frames a text as given."""
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary(), unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(list(SPECIALS))
    inside = [(name, vocabulary()[name]) for name in ("<s>", "</s>")]
    backend.post_processor = processors.TemplateProcessing(single=frame, special_tokens=inside)
    backend.save(str(folder / "tokenizer.json"))
    roles = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**roles, "model_max_length": 24}))


def write_model(folder: Path, name: str, settings: dict[str, Any]) -> Any:
    with quiet():
        cls = getattr(transformers, name)
        model = cls(cls.config_class(vocab_size=len(vocabulary()), **settings)).float().eval()
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                gain = parameter.dim() == 1 and parameter_name.endswith("weight")
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator) + (1 if gain else 0))
        model.save_pretrained(folder)
    return model


T5 = {
    "d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 4, "pad_token_id": 0, "eos_token_id": 1,
    "decoder_start_token_id": 0,
}  # fmt: skip
BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40, "decoder_ffn_dim": 40, "max_position_embeddings": 40, "pad_token_id": 0, "bos_token_id": 2,
    "eos_token_id": 1, "decoder_start_token_id": 1, "forced_eos_token_id": None,
}  # fmt: skip
FOLDERS = {"t5": ("T5ForConditionalGeneration", T5), "bart": ("BartForConditionalGeneration", BART)}


@pytest.fixture(params=sorted(FOLDERS))
def both(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, LanguageModel, Path]:
    """A model of theirs, ours opened from its folder, and the folder."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    write_tokenizer(folder, frame="$A </s>")
    theirs = write_model(folder, *FOLDERS[request.param])
    return theirs, almanac.load(folder), folder


def test_the_same_text(both: tuple[Any, LanguageModel, Path]) -> None:
    theirs, lm, _ = both
    assert isinstance(lm.network, EncoderDecoder)
    assert lm.family == theirs.config.model_type
    for prompt in PROMPTS:
        ids = lm.tokenizer.encode(prompt)
        assert ids[-1] == vocabulary()["</s>"]
        with torch.no_grad(), quiet():
            found = theirs.generate(
                torch.tensor([ids]), max_new_tokens=15, do_sample=False, num_beams=1, forced_eos_token_id=None
            )[0, 1:].tolist()
        handle = lm.engine().submit(lm.request(ids, max_tokens=15))
        text = "".join(event.text for event in handle)
        assert handle.new_tokens == found
        assert lm.generate(prompt, max_tokens=15) == text
        assert text == lm.tokenizer.decode([token for token in found if token >= len(SPECIALS)])
    with pytest.raises(RequestError):
        lm.generate("ship", max_tokens=0)


def test_saved_and_opened_again(both: tuple[Any, LanguageModel, Path], tmp_path: Path) -> None:
    theirs, lm, _ = both
    again = almanac.load(lm.save(tmp_path / "ours"))
    assert again.spec == lm.spec
    source = torch.tensor([lm.tokenizer.encode(PROMPTS[2])])
    with torch.no_grad(), quiet():
        assert torch.equal(again.network(source), lm.network(source))
        mine = type(theirs).from_pretrained(tmp_path / "ours").eval()
        written = torch.tensor([[lm.network.start_id, 6, 7, 8]])  # type: ignore[union-attr]
        reference = mine(input_ids=source, decoder_input_ids=written).logits
        torch.testing.assert_close(lm.network(source, written), reference, rtol=0, atol=2e-5)


def test_it_is_exported_as_the_hub_has_it_and_as_nothing_else(
    both: tuple[Any, LanguageModel, Path], tmp_path: Path
) -> None:
    _, ours, _ = both
    again = almanac.load(str(ours.export(tmp_path / "hub", format="hf")))
    assert again.generate(PROMPTS[0], max_tokens=6) == ours.generate(PROMPTS[0], max_tokens=6)
    for format in ("gguf", "peft"):
        with pytest.raises(UnsupportedError, match="encoder-decoder"):
            ours.export(tmp_path / format, format=format)
        assert not (tmp_path / format).exists()


def test_techniques_work_on_it(both: tuple[Any, LanguageModel, Path], tmp_path: Path) -> None:
    _, lm, _ = both
    source = torch.tensor([lm.tokenizer.encode(PROMPTS[2])])
    with torch.no_grad():
        before = lm.network(source)
        lm.attach(Lora(rank=2, targets="{encoder,decoder}.layers.**"))
        torch.testing.assert_close(lm.network(source), before, rtol=0, atol=1e-5)
        trained = [name for name, item in lm.network.named_parameters() if item.requires_grad]
        assert any("decoder.layers.1.cross.v.around" in name for name in trained)
        for name, item in lm.network.named_parameters():
            if name in trained:
                item += 0.05 * torch.randn(item.shape)
        lm.quantize(Int8(targets="**.layers.**"), bound=1.0)
        found = lm.network(source)
        assert not torch.equal(found, before)
        again = almanac.load(lm.save(tmp_path / "ours"))
        assert torch.equal(again.network(source), found)
    assert again.generate(PROMPTS[0], max_tokens=6) == lm.generate(PROMPTS[0], max_tokens=6)


SMALL = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "roberta": ("RobertaModel", {**SMALL, "max_position_embeddings": 40, "pad_token_id": 0}),
    "masked": ("RobertaForMaskedLM", {**SMALL, "max_position_embeddings": 40, "pad_token_id": 0}),
    "modernbert": (
        "ModernBertModel",
        {**SMALL, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1, "cls_token_id": 2, "sep_token_id": 1,
         "local_attention": 4},
    ),
    "deberta": (
        "DebertaV2Model",
        {**SMALL, "relative_attention": True, "pos_att_type": "p2c|c2p", "position_buckets": 4, "share_att_key": True,
         "norm_rel_ebd": "layer_norm", "position_biased_input": False, "max_relative_positions": 20},
    ),
    "albert": ("AlbertModel", {**SMALL, "embedding_size": 16, "max_position_embeddings": 40, "pad_token_id": 0}),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(ENCODERS))
def test_the_same_vectors(case: str, tmp_path: Path) -> None:
    """The average of the tokens of a text, of length 1, whatever texts stand beside it."""
    write_tokenizer(tmp_path, frame="<s> $A </s>")
    theirs = write_model(tmp_path, *ENCODERS[case])
    encoder = almanac.load_encoder(tmp_path)
    got = torch.from_numpy(encoder.embed(PROMPTS))
    for index, prompt in enumerate(PROMPTS):
        ids = torch.tensor([encoder.tokenizer.encode(prompt)])
        with torch.no_grad(), quiet():
            hidden = theirs(ids, attention_mask=torch.ones_like(ids), output_hidden_states=True).hidden_states[-1]
        expected = torch.nn.functional.normalize(hidden.mean(1), dim=-1)[0]
        torch.testing.assert_close(got[index], expected, rtol=0, atol=2e-6)
    with pytest.raises(ArchitectureError, match="load_encoder"):
        almanac.load(tmp_path)


def test_served_in_company_as_alone(both: tuple[Any, LanguageModel, Path]) -> None:
    """The server's thread asks the encoder-decoder's own rules what fits, and gives each client its own continuation."""
    _, lm, _ = both
    network = lm.network
    assert isinstance(network, EncoderDecoder)
    requests = [lm.request(lm.tokenizer.encode(prompt), max_tokens=9) for prompt in PROMPTS]
    whole = lm.request([6] * network.source_length, max_tokens=network.context_length - 1)  # prompt and answer apart
    beyond = lm.request([6] * (network.source_length + 1), max_tokens=1)

    async def served() -> list[list[int]]:
        thread = EngineThread(lm.engine, limits=Limits())
        thread.start()
        try:
            with ExitStack() as stack:
                runs = [thread.submit([each], stack) for each in (*requests, whole)]
                with pytest.raises(RequestError):
                    thread.submit([beyond], stack)
                return [[event.token async for _, event in run.events() if event.token is not None] for run in runs]
        finally:
            thread.stop()

    found = asyncio.run(served())
    for tokens, request in zip(found, (*requests, whole), strict=True):
        handle = lm.engine().submit(request)
        assert tokens == [event.token for event in handle if event.token is not None]
