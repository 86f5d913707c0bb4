"""Every objective as training sees it: the same batch wherever it is drawn, sums that do not depend on micro-batches,
learning, and a run that was stopped ending with the bits of one that was not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from almanac.core.spec import Spec
from almanac.core.technique import initialise
from almanac.data.windows import WindowBatches
from almanac.models.bart import FAMILY as BART
from almanac.models.bert import read as read_bert
from almanac.models.bert import read_masked, read_pretraining
from almanac.models.family import Fields
from almanac.models.t5 import FAMILY as T5
from almanac.models.tiny import tiny_spec
from almanac.nn.activation import Gelu
from almanac.nn.linear import Linear
from almanac.nn.task_heads import ReplacedHead, Transform
from almanac.nn.task_model import TaskModel
from almanac.objectives.denoising import bart_noises
from almanac.objectives.fill_in_the_middle import FillInTheMiddle, restored
from almanac.objectives.masked import Masking
from almanac.objectives.mixture_of_denoisers import restore_example
from almanac.objectives.span_corruption import restore_spans
from almanac.train.criteria.contrastive import Contrastive, CroppedWindows
from almanac.train.criteria.corrupted import CorruptedWindows, Corruption
from almanac.train.criteria.denoising import NoisyWindows
from almanac.train.criteria.fill_in_the_middle import FilledWindows
from almanac.train.criteria.masked import Masked, MaskedWindows
from almanac.train.criteria.mixture_of_denoisers import DenoiserWindows
from almanac.train.criteria.prefix import Prefix, PrefixWindows
from almanac.train.criteria.replaced_token import GeneratorAndJudge, JudgedWindows, ReplacedToken
from almanac.train.criteria.sentence_pairs import MaskedPairs, PairWindows
from almanac.train.criteria.span_corruption import SpanWindows
from almanac.train.criteria.text_to_text import TextToText
from almanac.train.criterion import Criterion, NextToken
from almanac.train.events.event import Event, StepDone
from almanac.train.loop import train
from almanac.train.settings import TrainSettings

VOCAB, WORDS, TIME, ROWS = 97, 60, 17, 8
PAD, START, MASK, CLS, SEP = 60, 61, 62, 63, 64
MARKS = tuple(range(70, 90))
FILL = FillInTheMiddle(prefix_id=65, middle_id=66, suffix_id=67, end_id=68)


class Counting:
    """A text that repeats itself: a token says which comes next, so that there is something to learn."""

    def __init__(self, length: int = 40 * (TIME - 1) + 1) -> None:
        self.stream = torch.arange(length) * 7 % WORDS
        self.num_tokens, self.ends, self.digest = length, torch.tensor([300, length]), "counting"

    def read(self, start: int, length: int) -> Tensor:
        return self.stream[start : start + length]


def encoder() -> Any:
    return read_bert(Fields(BERT))


BERT = {
    "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 32,
}  # fmt: skip
SEQ = {
    "bart": {
        "vocab_size": VOCAB, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 48,
        "decoder_start_token_id": START,
    },
    "t5": {
        "vocab_size": VOCAB, "d_model": 32, "d_ff": 64, "num_heads": 4, "d_kv": 8, "num_layers": 1, "n_positions": 48,
        "decoder_start_token_id": START, "tie_word_embeddings": True,
    },
}  # fmt: skip


def judge() -> GeneratorAndJudge.Spec:
    dense = Linear.Spec(in_features=32, out_features=32, bias=True)
    head = ReplacedHead.Spec(
        transform=Transform.Spec(dense=dense, activation=Gelu()),
        output=Linear.Spec(in_features=32, out_features=1, bias=True),
    )
    body = encoder()
    return GeneratorAndJudge.Spec(
        judge=TaskModel.Spec(encoder=body, head=head),
        generator=TaskModel.Spec(encoder=body, head=read_masked(Fields(BERT), body)),
    )


def with_head(read: Callable[[Fields, Any], Any]) -> TaskModel.Spec:
    return TaskModel.Spec(encoder=encoder(), head=read(Fields(BERT), encoder()))


@dataclass(frozen=True)
class Case:
    """How an objective is trained."""

    corruption: Corruption
    criterion: Criterion
    spec: Callable[[], Spec]
    adds_up: bool = True  # over micro-batches


def decoder() -> Any:
    from almanac.models.llama import FAMILY

    return tiny_spec(FAMILY, num_hidden_layers=1)


MASKS = MaskedWindows(mask_id=MASK, vocab_size=WORDS)
CASES = {
    "masked": Case(MASKS, Masked(), lambda: with_head(read_masked)),
    "static": Case(MASKS.with_(masking=Masking(copies=1)), Masked(), lambda: with_head(read_masked)),
    "whole words": Case(MASKS.with_(continues=tuple(range(0, WORDS, 2))), Masked(), lambda: with_head(read_masked)),
    "order": Case(
        PairWindows(cls_id=CLS, sep_id=SEP, mask_id=MASK, vocab_size=WORDS),
        MaskedPairs(places=0.15 * (TIME - 3)),
        lambda: with_head(read_pretraining),
    ),
    "next sentence": Case(
        PairWindows(cls_id=CLS, sep_id=SEP, mask_id=MASK, vocab_size=WORDS, task="next"),
        MaskedPairs(places=0.15 * (TIME - 3)),
        lambda: with_head(read_pretraining),
        adds_up=False,
    ),
    "replaced token": Case(JudgedWindows(mask_id=MASK, vocab_size=WORDS), ReplacedToken(), judge),
    "spans": Case(
        SpanWindows(marks=MARKS, start_id=START, pad_id=PAD), TextToText(), lambda: T5.read(Fields(SEQ["t5"]))
    ),
    "denoising": Case(
        NoisyWindows(noises=bart_noises(mask_id=MASK, ends=(3,)), start_id=START, pad_id=PAD),
        TextToText(),
        lambda: BART.read(Fields(SEQ["bart"])),
    ),
    "ul2": Case(
        DenoiserWindows(marks=MARKS, mode_ids=(90, 91, 92), start_id=START, pad_id=PAD),
        TextToText(),
        lambda: T5.read(Fields(SEQ["t5"])),
    ),
    "prefix": Case(PrefixWindows(), Prefix(), decoder),
    "fill in the middle": Case(FilledWindows(fill=FILL), NextToken(), decoder),
    "contrastive": Case(CroppedWindows(pad_id=PAD), Contrastive(), encoder, adds_up=False),
}
every = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))


def batches(case: Case, *, steps: int = 6, micro: int = 4, seed: int = 0) -> CorruptedWindows:
    windows = WindowBatches(Counting(), time=TIME, rows=ROWS, micro_rows=micro, steps=steps, seed=seed)
    return CorruptedWindows(windows, case.corruption)


def network(case: Case) -> nn.Module:
    return initialise(case.spec().build(), seed=0)


def same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(same(*pair) for pair in zip(first, second, strict=True))
    if is_dataclass(first):
        return all(same(getattr(first, item.name), getattr(second, item.name)) for item in fields(first))
    return bool(first == second)


@every
def test_batches_are_the_same_from_any_place_on(case: Case) -> None:
    whole = batches(case)
    next(whole), next(whole)
    state, rest = whole.state(), list(whole)
    torch.rand(7)  # other dice do not matter
    again = batches(case)
    again.load(state)
    assert same(list(again), rest)
    assert not same(list(batches(case, seed=1))[2:], rest)
    other = batches(CASES["static" if case is CASES["masked"] else "masked"])
    assert other.digest() != whole.digest()


def only(found: list[Any], criterion: Criterion, net: nn.Module) -> tuple[float, float, Tensor]:
    """Weight, loss and gradient of a step."""
    net.zero_grad()
    weight = sum(criterion.weight(batch) for batch in found)
    total = 0.0
    for batch in found:
        loss, _ = criterion.loss(net, batch, normaliser=weight)
        loss.backward()
        total += float(loss.detach())
    gradients = [p.grad.flatten() for p in net.parameters() if p.grad is not None]
    return weight, total, torch.cat(gradients)


@every
def test_a_step_is_the_same_however_it_is_cut(case: Case) -> None:
    if not case.adds_up:
        pytest.skip("its rows are compared with each other, as its file says")
    net = network(case).double()
    cut = [only(next(batches(case, micro=micro)), case.criterion, net) for micro in (8, 4, 1)]
    for weight, loss, gradient in cut[1:]:
        assert weight == cut[0][0]
        assert loss == pytest.approx(cut[0][1], rel=1e-6)
        torch.testing.assert_close(gradient, cut[0][2], rtol=1e-5, atol=1e-7)


@every
def test_it_learns(case: Case) -> None:
    net, losses = network(case), list[float]()

    def listener(event: Event) -> None:
        if isinstance(event, StepDone) and event.loss is not None:
            losses.append(event.loss)

    chosen = TrainSettings(learning_rate=1e-2, steps=100, warmup=0.1)
    train(net, batches(case, steps=100), settings=chosen, criterion=case.criterion, listeners=(listener,))
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])


@every
def test_a_stopped_run_ends_as_one_in_one_piece(case: Case, tmp_path: Path) -> None:
    chosen, ends = TrainSettings(learning_rate=1e-2, steps=6, save_every=2), list[dict[str, Tensor]]()
    for stops in ((), (3,)):
        folder = tmp_path / str(len(stops))
        for at in (*stops, None):
            stop, net = threading.Event(), network(case)

            def listener(event: Event, stop: threading.Event = stop, at: int | None = at) -> None:
                if isinstance(event, StepDone) and event.step == at:
                    stop.set()

            outcome = train(
                net, batches(case), settings=chosen, criterion=case.criterion, listeners=(listener,), run_folder=folder,
                stop=stop,
            )  # fmt: skip
        assert outcome.finished
        ends.append(net.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_static_masks_come_back_and_dynamic_ones_do_not() -> None:
    def chosen(name: str) -> dict[int, list[Tensor]]:
        """By window, its mask in each epoch."""
        made = batches(CASES[name], steps=10)  # two epochs of five
        found = dict[int, list[Tensor]]()
        for _ in range(10):
            numbers = made.windows.upcoming()
            masks = torch.cat([batch.chosen for batch in next(made)])
            for number, mask in zip(numbers, masks, strict=True):
                found.setdefault(number, []).append(mask)
        return found

    assert all(torch.equal(*masks) for masks in chosen("static").values())
    assert sum(not torch.equal(*masks) for masks in chosen("masked").values()) > 35


def test_what_was_moved_or_hidden_can_be_put_back() -> None:
    plain = WindowBatches(Counting(), time=TIME, rows=ROWS, micro_rows=ROWS, steps=1)
    rows = next(plain)[0].tokens
    spans, mixture, fim = (next(batches(CASES[name], micro=ROWS))[0] for name in ("spans", "ul2", "fill in the middle"))
    for index, row in enumerate(rows):
        for batch, put_back in ((spans, restore_spans), (mixture, restore_example)):
            source = batch.source[index][batch.source_segments[index] >= 0]
            target = batch.target.tokens[index][batch.target.segments[index] >= 0]
            assert target[0] == START
            assert torch.equal(put_back(source, target[1:], marks=MARKS), row)
        assert restored(fim.tokens[index][fim.segments[index] >= 0].tolist(), FILL) == row.tolist()


def test_padding_of_a_source_is_never_seen() -> None:
    batch = next(batches(CASES["denoising"], micro=ROWS))[0]
    net = network(CASES["denoising"])
    before, _ = TextToText().loss(net, batch, normaliser=1.0)
    batch.source[batch.source_segments < 0] = 5
    after, _ = TextToText().loss(net, batch, normaliser=1.0)
    assert (batch.source_segments < 0).any()
    assert before.item() == pytest.approx(after.item(), rel=1e-6)


def test_the_generator_learns_from_its_own_loss_alone() -> None:
    """Nothing of the judge's loss reaches the generator's own layers (the tables are shared)."""
    case = CASES["replaced token"]
    net, batch = network(case), next(batches(case))[0]
    gradients = []
    for judging in (0.0, 50.0):
        net.zero_grad()
        loss, _ = ReplacedToken(judging=judging).loss(net, batch, normaliser=1.0)
        loss.backward()
        gradients.append(net.generator.head.transform.dense.weight.grad.clone())
    assert torch.equal(*gradients) and gradients[0].abs().sum() > 0
