"""A model from nothing on a tiny text: it learns, is saved and read, and a killed run ends where one in one piece ends."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import almanac
from almanac.core.errors import PreflightError, RequestError, TrainingError
from almanac.data.windows import batch_of
from almanac.models.family import Fields, family_for
from almanac.nn.stack import Decoder
from almanac.pretrain.corpus import stores
from almanac.pretrain.measure import bits_per_byte, held_out_loss, known_share, words_of
from almanac.pretrain.objectives.next_token import default_spec
from almanac.pretrain.run import TOKENS, WORK, pretrain
from almanac.pretrain.settings import PretrainSettings
from almanac.tokenizers.train.byte_bpe import ByteBpe
from almanac.tokenizers.train.run import train as train_tokenizer

WORDS = "lamp ship stone river quiet seven under the of blue far old sea over light and a small house by water".split()
STEPS, TIME = 12, 24
SCRIPT = """
import json, sys
from almanac.pretrain.run import pretrain
from almanac.pretrain.settings import PretrainSettings

def report(event):
    print(event.stage, event.done, flush=True)

pretrain([sys.argv[1]], sys.argv[2], settings=PretrainSettings.from_dict(json.loads(sys.argv[3])), report=report)
print("finished", flush=True)
"""


def settings(**changes: object) -> PretrainSettings:
    usual = PretrainSettings(vocab_size=300, time=TIME, held_out=0.2, evaluate_every=5, windows=8, sample_tokens=12)
    train = usual.train.with_(steps=STEPS, step_tokens=8 * TIME, micro_tokens=4 * TIME, save_every=2, **changes)
    return usual.with_(train=train)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    dice = random.Random(0)
    path.write_text("\n".join(" ".join(dice.choice(WORDS) for _ in range(9)) + "." for _ in range(400)))
    return path


@pytest.fixture(scope="module")
def done(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run") / "out"
    pretrain([text], output, settings=settings())
    return output


def test_it_learns_and_tells_what_it_learned(done: Path) -> None:
    facts = json.loads((done / "pretraining.json").read_text())
    measured = facts["train"]["measured"]
    assert [item["step"] for item in measured] == [0, 5, 10, STEPS]
    assert measured[-1]["loss"] < measured[0]["loss"] - 1
    card, page = (done / "card.md").read_text(), (done / "report.html").read_text()
    assert (
        f"{measured[-1]['loss']:.3f} nats" in card and "<svg" in page and "http" not in page.replace("http-equiv", "")
    )


def test_the_model_is_one_that_others_read(done: Path) -> None:
    lm = almanac.load(str(done / "model"))
    assert lm.family == "llama" and lm.spec == default_spec(lm.tokenizer.vocab_size, time=TIME)
    transformers = pytest.importorskip("transformers", reason="the oracle `transformers` is not installed")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(done / "model", dtype=torch.float32).eval()
    rows = torch.randint(0, lm.network.vocab_size, (2, TIME))
    with torch.no_grad():
        torch.testing.assert_close(lm.network(rows), theirs(rows).logits, rtol=0, atol=1e-5)


def test_the_loss_is_that_of_all_held_out_windows(done: Path) -> None:
    lm, (_, held) = almanac.load(str(done / "model")), stores(done / WORK / TOKENS)
    count = (held.num_tokens - 1) // (TIME - 1)
    batch = batch_of(held, [place * (TIME - 1) for place in range(count)], TIME)
    with torch.no_grad():
        scores = lm.network(batch.tokens[:, :-1]).log_softmax(-1).gather(-1, batch.tokens[:, 1:, None])[..., 0]
    expected = -float(scores[batch.loss_mask[:, 1:]].mean())
    assert held_out_loss(lm.network, held, time=TIME, windows=10**6) == pytest.approx(expected, abs=1e-4)
    assert bits_per_byte(expected, tokens=10, nbytes=40) == pytest.approx(expected * 10 / 40 / 0.6931471805599453)


def test_started_again_it_does_nothing_twice(done: Path, text: Path) -> None:
    told: list[tuple[str, str]] = []
    pretrain([text], done, settings=settings(), report=lambda event: told.append((event.stage, event.note)))
    assert {note for _, note in told} == {"done before"}


def test_killed_again_and_again_it_ends_as_in_one_piece(done: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    command = [sys.executable, "-c", SCRIPT, str(text), str(out), json.dumps(settings().to_dict())]
    for kill_at in (("tokens", 1), ("train", 3), ("train", 7), ("report", 0), None):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                stage, _, number = line.strip().partition(" ")
                if kill_at is not None and stage == kill_at[0] and int(number) >= kill_at[1]:
                    process.kill()
                    break
    for name in ("model/model.safetensors", "tokenizer/tokenizer.json", f"{WORK}/measured.jsonl"):
        assert (out / name).read_bytes() == (done / name).read_bytes(), name
    assert not list(out.rglob("*.partial")) and not list(out.rglob("*.staging"))


def test_another_text_or_settings_do_not_go_on_with_the_run(done: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="another run"):
        pretrain([text], done, settings=settings(learning_rate=1e-4))
    longer = tmp_path / "text.txt"
    longer.write_text(text.read_text() + " and more.")
    with pytest.raises(TrainingError, match="another run"):
        pretrain([longer], done, settings=settings())


@pytest.mark.parametrize("family", ["mamba", "rwkv"])
def test_any_spec_is_trained(family: str, text: Path, tmp_path: Path) -> None:
    tokenizer = train_tokenizer([text.read_text()], ByteBpe(vocab_size=280)).tokenizer
    sizes = {
        "vocab_size": 280,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "context_length": 64,
        "attention_hidden_size": 32,
    }
    spec = family_for(family).read(Fields(sizes))
    assert isinstance(spec, Decoder.Spec)
    lm = pretrain([text], tmp_path / "out", spec=spec, tokenizer=tokenizer, settings=settings())
    measured = json.loads((tmp_path / "out" / "pretraining.json").read_text())["train"]["measured"]
    assert lm.family == family and measured[-1]["loss"] < measured[0]["loss"] - 0.3


def test_what_cannot_be_trained_is_refused_before_anything(text: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="vocabulary"):
        pretrain([text], tmp_path / "a", spec=default_spec(100, time=TIME), settings=settings())
    with pytest.raises(RequestError, match="context"):
        pretrain([text], tmp_path / "b", spec=default_spec(300, time=8), settings=settings())
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(PreflightError, match="no text"):
        pretrain([tmp_path / "empty.txt"], tmp_path / "c", settings=settings())


def test_words_are_counted_without_the_cut_ones() -> None:
    assert words_of("The sea, the Sea: x 7 naïve") == ["the", "sea", "the", "sea", "naïve"]
    assert known_share("zzz the sea blorp yyy", {"the", "sea"}) == 2 / 3
    assert known_share("", {"the"}) == 0
