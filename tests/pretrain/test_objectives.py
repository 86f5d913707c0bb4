"""Every objective from text to a model: it learns, is saved as others read it, and a stopped run ends as one in one piece."""

from __future__ import annotations

import json
import random
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import almanac
from almanac.core.errors import IntegrityError, RequestError, TrainingError
from almanac.language_model.encoder import TextEncoder
from almanac.language_model.model import LanguageModel
from almanac.models.bert import read as read_bert
from almanac.models.encoder_folder import read_task_folder
from almanac.models.family import Fields
from almanac.nn.encoder import Encoder
from almanac.nn.stack import Decoder
from almanac.nn.task_heads import MaskedHead
from almanac.pretrain.chosen import OBJECTIVES, mesh
from almanac.pretrain.measure import Measurement, Watch, best
from almanac.pretrain.objectives.marks import continuations
from almanac.pretrain.objectives.masked import Masked, with_head
from almanac.pretrain.run import pretrain
from almanac.pretrain.settings import PretrainSettings
from almanac.tokenizers.tokenizer import Tokenizer
from almanac.tokenizers.train.byte_bpe import ByteBpe
from almanac.tokenizers.train.run import train as train_tokenizer
from almanac.train.averaging.lawa import Lawa

WORDS = "lamp ship stone river quiet seven under the of blue far old sea over light and a small house by water".split()
STEPS, TIME = 12, 24
OTHERS = sorted(set(OBJECTIVES) - {"next-token"})
ARCHITECTURES = {
    "masked": "AutoModelForMaskedLM", "whole-word": "AutoModelForMaskedLM", "replaced-token": "AutoModelForPreTraining",
    "span-corruption": "AutoModelForSeq2SeqLM", "mixture-of-denoisers": "AutoModelForSeq2SeqLM",
    "denoising": "AutoModelForSeq2SeqLM", "fill-in-the-middle": "AutoModelForCausalLM", "multi-token": "AutoModelForCausalLM",
    "prefix": "",
}  # fmt: skip


def settings(name: str, **changes: Any) -> PretrainSettings:
    objective = OBJECTIVES[name]
    usual = PretrainSettings(
        vocab_size=290 + len(objective.controls.texts()), time=TIME, held_out=0.2, evaluate_every=6, windows=8,
        sample_tokens=12, objective=objective,
    )  # fmt: skip
    train = usual.train.with_(steps=STEPS, step_tokens=8 * TIME, micro_tokens=4 * TIME, save_every=3)
    return usual.with_(train=train, **changes)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    dice = random.Random(0)
    path.write_text("\n".join(" ".join(dice.choice(WORDS) for _ in range(9)) + "." for _ in range(400)))
    return path


@pytest.fixture(scope="module", params=OTHERS)
def done(request: pytest.FixtureRequest, text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    out = tmp_path_factory.mktemp(request.param)
    return request.param, out, pretrain([text], out, settings=settings(request.param))


def test_it_learns_and_is_what_the_report_says(done: tuple[str, Path, Any]) -> None:
    name, out, model = done
    facts = json.loads((out / "pretraining.json").read_text())
    measured = facts["train"]["measured"]
    assert [item["step"] for item in measured] == [0, 6, 12]
    assert measured[-1]["loss"] < measured[0]["loss"] - (0.02 if name == "replaced-token" else 0.2)
    assert all(item["sample"].strip() for item in measured[1:])
    covers_text = OBJECTIVES[name].covers_text
    assert (measured[-1]["bits_per_byte"] is not None) == covers_text == ("known_words" in measured[-1])
    assert facts["train"]["kept"] == STEPS and facts["train"]["preflight"]["gradients"]["ok"]
    card, page = (out / "card.md").read_text(), (out / "report.html").read_text()
    assert f"{measured[-1]['loss']:.3f} nats" in card and "<svg" in page
    assert isinstance(
        model, TextEncoder if ARCHITECTURES[name].endswith(("MaskedLM", "PreTraining")) else LanguageModel
    )


def test_it_is_used_as_any_other_model(done: tuple[str, Path, Any]) -> None:
    name, out, _ = done
    if ARCHITECTURES[name].endswith(("MaskedLM", "PreTraining")):
        vectors = almanac.load_encoder(out / "model").embed(["the quiet river", "seven lamps"])
        assert vectors.shape == (2, 192)
        return
    lm = almanac.load(out / "model")
    assert isinstance(lm.generate("the quiet", max_tokens=4), str)
    assert almanac.verify_model(out / "model")  # raises where the folder is not what its certificate says


def test_transformers_reads_it(done: tuple[str, Path, Any]) -> None:
    name, out, model = done
    transformers = pytest.importorskip("transformers", reason="the oracle `transformers` is not installed")
    if name == "prefix":
        pytest.skip("no other library has the mask of prefixes")
    theirs = getattr(transformers, ARCHITECTURES[name]).from_pretrained(out / "model", dtype=torch.float32).eval()
    rows = torch.randint(0, 290, (2, TIME), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if isinstance(model, TextEncoder):
            given = read_task_folder(out / "model")
            from almanac.core.technique import Plan, assemble

            ours = assemble(given.spec, Plan(), given.tensors)(rows)
            expected = theirs(rows).logits
        elif isinstance(model.network, Decoder):
            ours, expected = model.network(rows), theirs(rows).logits
        else:
            start = torch.full_like(rows[:, :1], model.network.start_id)
            written = torch.cat([start, rows[:, :5]], dim=1)
            ours, expected = model.network(rows, written), theirs(rows, decoder_input_ids=written).logits
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["replaced-token", "denoising"])
def test_a_stopped_run_ends_with_the_bits_of_one_in_one_piece(name: str, text: Path, tmp_path: Path) -> None:
    stop = threading.Event()
    steps = 0

    def report(event: Any) -> None:
        nonlocal steps
        if event.stage == "train" and event.done == 5:
            stop.set()

    with pytest.raises(TrainingError, match="stopped after step"):
        pretrain([text], tmp_path / "two", settings=settings(name), report=report, stop=stop)
    pretrain([text], tmp_path / "two", settings=settings(name))
    pretrain([text], tmp_path / "one", settings=settings(name))
    for file in ("model/model.safetensors", ".pretrain/measured.jsonl"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_without_patience_left_the_best_weights_are_kept(text: Path, tmp_path: Path) -> None:
    usual = settings("next-token", patience=2, evaluate_every=2)
    usual = usual.with_(train=usual.train.with_(steps=40, learning_rate=0.5, warmup=0.0, save_every=2))
    lm = pretrain([text], tmp_path, settings=usual)
    facts = json.loads((tmp_path / "pretraining.json").read_text())["train"]
    losses = [item["loss"] for item in facts["measured"]]
    kept = facts["measured"][losses.index(min(losses))]
    assert facts["steps"] < 40 and facts["kept"] == kept["step"] < facts["steps"]
    assert len(losses) - 1 - losses.index(min(losses)) == 2
    from almanac.pretrain.corpus import stores
    from almanac.pretrain.measure import held_out_loss

    assert isinstance(lm, LanguageModel)
    held = stores(tmp_path / ".pretrain" / "tokens")[1]
    assert held_out_loss(lm.network, held, time=TIME, windows=8) == pytest.approx(kept["loss"], abs=1e-6)
    assert f"kept are those of step {kept['step']}" in (tmp_path / "card.md").read_text()
    again = pretrain([text], tmp_path, settings=usual)
    assert isinstance(again, LanguageModel)


def test_of_equal_losses_the_first_is_kept_and_weights_that_are_gone_are_told(text: Path, tmp_path: Path) -> None:
    usual = settings("next-token", patience=2, evaluate_every=2)
    still = usual.with_(train=usual.train.with_(steps=30, learning_rate=1e-30, warmup=0.0, clip_norm=None))
    pretrain([text], tmp_path / "still", settings=still)  # nothing is learned: every loss is the first one
    facts = json.loads((tmp_path / "still" / "pretraining.json").read_text())["train"]
    assert len({item["loss"] for item in facts["measured"]}) == 1 and facts["kept"] == 0 and facts["steps"] == 4
    pretrain([text], tmp_path / "late", settings=settings("next-token"))
    with pytest.raises(IntegrityError, match="Leave out patience"):  # measured before patience was asked for
        pretrain([text], tmp_path / "late", settings=settings("next-token", patience=3))


def test_patience_is_counted_from_the_best(tmp_path: Path) -> None:
    watch = Watch(tmp_path / "measured.jsonl", lambda step: Measurement(step, 9.0, None, ""), every=1, patience=2)
    exhausted = []
    for step, loss in enumerate([3.0, 2.0, 2.5, 1.9, 2.0, 2.0]):
        watch.take(Measurement(step, loss, None, ""))
        exhausted.append(watch.exhausted)
    assert exhausted == [False] * 5 + [True] and best(watch.found).step == 3


def test_an_average_is_what_is_kept_when_it_is_best(text: Path, tmp_path: Path) -> None:
    usual = settings("next-token", patience=50, average=Lawa(every=2))
    pretrain([text], tmp_path, settings=usual)
    facts = json.loads((tmp_path / "pretraining.json").read_text())["train"]
    assert facts["steps"] == STEPS and facts["kept"] == STEPS


def test_an_encoder_without_a_head_is_given_one(text: Path, tmp_path: Path) -> None:
    tokenizer = train_tokenizer([text.read_text()], ByteBpe(vocab_size=300), controls=Masked().controls).tokenizer
    config = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
              "intermediate_size": 64, "max_position_embeddings": TIME}  # fmt: skip
    encoder = read_bert(Fields(config))
    assert isinstance(encoder, Encoder.Spec)
    pretrain([text], tmp_path, spec=encoder, tokenizer=tokenizer, settings=settings("masked"))
    assert json.loads((tmp_path / "model" / "config.json").read_text())["hidden_size"] == 32
    assert with_head(encoder, MaskedHead.Spec).encoder == encoder
    with pytest.raises(RequestError, match="is no encoder that is known with a"):
        with_head(encoder, Encoder.Spec)


def test_what_an_objective_cannot_do_is_said(text: Path, tmp_path: Path) -> None:
    plain = train_tokenizer([text.read_text()], ByteBpe(vocab_size=300)).tokenizer
    with pytest.raises(RequestError, match=r"no token '\[MASK\]'"):
        pretrain([text], tmp_path / "a", tokenizer=plain, settings=settings("masked"))
    with pytest.raises(RequestError, match="no decoder"):
        spec = Masked().spec(plain, time=TIME)
        pretrain([text], tmp_path / "b", spec=spec, tokenizer=plain, settings=settings("next-token"))
    long = settings("mixture-of-denoisers", time=700)
    with pytest.raises(RequestError, match="shorter windows"):
        pretrain([text], tmp_path / "c", settings=long)
    for wrong in ("data", "data=x", "data=2,data=2", "depth=2", ""):
        with pytest.raises(RequestError, match="is no mesh"):
            mesh(wrong)


def test_tokens_that_go_on_a_word_are_known(text: Path) -> None:
    tokenizer = train_tokenizer([text.read_text()], ByteBpe(vocab_size=300), controls=Masked().controls).tokenizer
    own = set(continuations(tokenizer))
    for sentence in ("quiet rivers, 7 lamps.", "über Straße"):
        ids = tokenizer.encode(sentence, add_special_tokens=False)
        words = sum(id not in own for id in ids)
        assert 0 < words < len(ids)
    ids = tokenizer.encode(" zebra", add_special_tokens=False)
    assert len(ids) > 1 and ids[0] not in own and all(id in own for id in ids[1:])
    control = {item.id for item in tokenizer.control_tokens().values()}
    assert not own & control
    marked = Tokenizer.from_json(tokenizer.to_json())
    assert set(continuations(marked)) == own
