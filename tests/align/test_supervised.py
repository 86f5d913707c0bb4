"""Fine-tuning: the right tokens are targets, the model learns its answers and to stop, and faults leave no trace."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from docs.toy_model import language_model

from almanac.adapt.lora import Lora
from almanac.align.supervised import encode_pair, finetune, tokenise
from almanac.compress.quantize.blocks import Blocks
from almanac.compress.quantize.int8 import Int8
from almanac.core.errors import (
    PreflightError,
    RequestError,
    SelectionError,
    TemplateError,
    TrainingError,
    UnsupportedError,
)
from almanac.core.technique import Technique
from almanac.language_model.model import LanguageModel
from almanac.train.events.event import Event, StepDone
from almanac.train.run_folder import read_run
from almanac.train.settings import TrainSettings

QUESTIONS = ("What is the pump for?", "Who signs?", "Which rooms are closed?", "When is noon?")
ANSWERS = ("cooling water", "the head", "the archive", "at 12")
PAIRS = list(zip(QUESTIONS, ANSWERS, strict=True))


def settings(**changes: Any) -> TrainSettings:
    given = {"learning_rate": 2e-2, "steps": 40, "step_tokens": 256, "micro_tokens": 256, "save_every": 10, **changes}
    return TrainSettings(**given)


def conversation(*turns: str, system: str | None = None) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    messages = [{"role": roles[at % 2], "content": text} for at, text in enumerate(turns)]
    return [{"role": "system", "content": system}, *messages] if system else messages


def targets_of(lm: LanguageModel, example: Any) -> list[str]:
    """The stretches of targets as text, control tokens written out."""
    (row,) = tokenise(lm, [example], max_tokens=500).rows
    stretches: list[list[int]] = []
    previous = False
    for token, is_target in zip(row.tokens, row.mask, strict=True):
        if is_target:
            stretches = stretches if previous else [*stretches, []]
            stretches[-1].append(token)
        previous = is_target
    return [lm.tokenizer.decode(ids, skip_special_tokens=False) for ids in stretches]


def test_targets_are_the_answers_and_the_end_of_the_turn() -> None:
    lm = language_model()
    example = conversation("Hi?", "cooling water", "And now?", "12 é 🎉", system="Be short.")
    assert targets_of(lm, example) == ["cooling water<|im_end|>", "12 é 🎉<|im_end|>"]
    assert targets_of(lm, ("Hi?", "the head")) == ["the head<|im_end|>"]
    assert targets_of(lm, conversation("Hi?", "", "So?", "yes")) == ["<|im_end|>", "yes<|im_end|>"]


def test_what_is_trained_is_what_is_asked() -> None:
    """The ids in front of the answer are those of the prompt that chat sends."""
    lm = language_model()
    messages = conversation("Hi?", "the head", "Who signs the order of the pump?", "the director", system="Be short.")
    (row,) = tokenise(lm, [messages], max_tokens=500).rows
    prompt = lm.chat_tokens(messages[:-1])
    assert list(row.tokens[: len(prompt)]) == prompt and row.mask[len(prompt)] and not row.mask[len(prompt) - 1]


def test_control_tokens_in_an_example_stay_text() -> None:
    lm = language_model()
    (row,) = tokenise(lm, [("Hi?", "a <|im_end|> b")], max_tokens=500).rows
    stop = lm.tokenizer.token_to_id("<|im_end|>")
    learned = [token for token, is_target in zip(row.tokens, row.mask, strict=True) if is_target]
    assert learned.count(stop) == 1 and learned[-1] == stop
    assert targets_of(lm, ("Hi?", "a <|im_end|> b")) == ["a <|im_end|> b<|im_end|>"]


@pytest.mark.parametrize(
    ("prompt", "answer"), [("Who signs", " the order"), ("Who sig", "ns"), ("", "yes"), ("é", "é")]
)
def test_pairs_for_a_base_model(prompt: str, answer: str) -> None:
    """The row begins with the ids that the prompt alone has, whatever merges across the seam."""
    tokenizer = language_model().tokenizer
    row = encode_pair(tokenizer, prompt, answer=answer)
    alone = tokenizer.encode(prompt, allow_special=False)
    assert list(row.tokens[: len(alone)]) == alone
    assert row.mask == (False,) * len(alone) + (True,) * (len(row) - len(alone))
    assert row.tokens[-1] == tokenizer.special.eos
    assert tokenizer.decode(row.tokens[len(alone) :]) == answer


@pytest.mark.parametrize("base", [None, Int8(), Blocks(format="Q4_1")], ids=["dense", "int8", "q4_1"])
def test_learns_the_answers_and_to_stop(base: Technique | None) -> None:
    lm = language_model()
    if base is not None:
        lm.attach(base)
    plan, losses = lm.plan, []

    def listener(event: Event) -> None:
        if isinstance(event, StepDone):
            losses.append(event.loss)

    tuned = finetune(lm, PAIRS, settings=settings(steps=60), on_event=listener)
    assert tuned is lm and lm.plan == plan.then(Lora(rank=8)) and not lm.network.training
    assert losses[-1] < 0.5 * losses[0]
    for question, answer in PAIRS:
        assert lm.chat([{"role": "user", "content": question}], max_tokens=20) == answer  # and no token more
    assert lm.provenance["steps"][-1]["step"] == "align.supervised"


def test_a_base_model_learns_to_continue() -> None:
    lm = language_model()
    lm.template = None
    finetune(lm, PAIRS, settings=settings(steps=60))
    assert [lm.generate(question, max_tokens=20) for question in QUESTIONS] == list(ANSWERS)
    with pytest.raises(UnsupportedError, match="no chat template"):
        finetune(lm, [conversation("Hi?", "yes")], plan=())


def test_the_plan_may_quantize_first_and_a_second_run_may_go_on() -> None:
    lm = language_model()
    finetune(lm, PAIRS, plan=(Int8(), Lora(rank=4)), settings=settings(steps=2))
    before = toys.tensors_of(lm.network)
    finetune(lm, PAIRS, plan=(), settings=settings(steps=2))
    assert lm.plan.techniques == (Int8(), Lora(rank=4))
    moved = [name for name, tensor in toys.tensors_of(lm.network).items() if not torch.equal(tensor, before[name])]
    assert moved and all(".around.lora." in name for name in moved)


FAULTS: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "no examples": (RequestError, "no examples", {"examples": []}),
    "no answer": (PreflightError, "targets: 1 of 5", {"examples": [*PAIRS, conversation("Hi?")]}),
    "answers cut off": (PreflightError, "every answer lies beyond", {"settings": settings(max_tokens=5)}),
    "rate of zero": (PreflightError, "learning_rate", {"settings": settings(learning_rate=0.0)}),
    "no such site": (SelectionError, "selects no Leaf", {"plan": (Lora(targets="encoder.**"),)}),
    "nothing trainable": (PreflightError, "no adapter is attached", {"plan": (Int8(targets="**"),), "freeze": True}),
    "bad message": (RequestError, "Example 4: A message", {"examples": [*PAIRS, ["hello"]]}),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_told_and_leave_no_adapter(name: str) -> None:
    kind, words, given = FAULTS[name]
    lm = language_model()
    if given.get("freeze"):
        lm.network.requires_grad_(False)
    options = {
        "settings": settings(),
        **{key: value for key, value in given.items() if key not in ("examples", "freeze")},
    }
    with pytest.raises(kind, match=words):
        finetune(lm, given.get("examples", PAIRS), **options)
    assert not [step for step in lm.plan.techniques if type(step).trains]
    assert not [name for name, _ in lm.network.named_parameters() if ".around." in name]


def test_a_template_that_hides_its_answers_is_an_error() -> None:
    lm = language_model()
    lm.template = type(lm.template)("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(TemplateError, match="cannot be told"):
        finetune(lm, [conversation("a", "b", "c", "d")], settings=settings())


def test_examples_whose_answer_is_cut_off_are_left_out_and_told(tmp_path: Path) -> None:
    lm = language_model()
    finetune(lm, [*PAIRS, ("why? " * 60, "so")], settings=settings(steps=2, max_tokens=60), run_folder=tmp_path)
    found = read_run(tmp_path)["preflight"]
    assert found["examples"]["ok"] and "1 of 5 examples were left out" in found["examples"]["detail"]
    assert "0 examples (0.0%) lost their end" in found["targets"]["detail"]
    assert set(found) >= {"adapters", "gradients", "packed", "padded", "stop"}


def test_stopped_and_taken_up_again(tmp_path: Path) -> None:
    """A run that is stopped raises, leaves the model without adapters, and ends as if it had never been stopped."""
    chosen, stop = settings(steps=12, save_every=5), threading.Event()
    whole = finetune(language_model(), PAIRS, settings=chosen, run_folder=tmp_path / "whole")

    def listener(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 7:
            stop.set()

    lm = language_model()
    with pytest.raises(TrainingError, match="after step 7 of 12"):
        finetune(lm, PAIRS, settings=chosen, run_folder=tmp_path / "cut", on_event=listener, stop=stop)
    assert lm.plan == language_model().plan
    finetune(lm, PAIRS, settings=chosen, run_folder=tmp_path / "cut")
    expected = toys.tensors_of(whole.network)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in toys.tensors_of(lm.network).items())
    content = read_run(tmp_path / "cut")
    assert content["measured"]["steps"] == 5 and {"forecast", "preflight", "identity"} <= set(content)
    lines = (tmp_path / "cut/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 13))
