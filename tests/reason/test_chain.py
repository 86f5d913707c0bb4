"""Worked examples are laid out as the papers do, split again into what they were made of, and asked for freely."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from language_model import small

from almanac.core.errors import RequestError, UnsupportedError
from almanac.generate.sampling import sampling
from almanac.language_model.model import LanguageModel
from almanac.reason.chain import Chain, Manner, Worked, ask, ask_all, ask_in_chat, prompt, question, split, target

TENNIS = Worked("Roger has 5 balls and buys 2 cans of 3. How many?", ("2 cans of 3 are 6.", "5 + 6 = 11."), "11")
LETTERS = Manner(question="", steps="=", answer=";", end="\n", between="")


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return small.language_model("llama")


def test_a_worked_prompt_reads_as_in_the_paper() -> None:
    assert prompt("And with 4 cans?", [TENNIS]) == (
        "Q: Roger has 5 balls and buys 2 cans of 3. How many?\n"
        "A: 2 cans of 3 are 6. 5 + 6 = 11.\nThe answer is 11.\n\n"
        "Q: And with 4 cans?\nA: "
    )
    assert target(Worked("0110", ("0", "1", "0", "0"), "0"), LETTERS) == "0100;0\n"
    assert question("0110", LETTERS) == "0110="


@pytest.mark.parametrize(
    ("text", "steps", "answer"),
    [
        ("5 + 6 = 11.\nThe answer is 11.\n\nQ: What else?\nA: no.\nThe answer is 7.", "5 + 6 = 11.", "11"),
        ("5 + 6 = 11.\nThe answer is 11.", "5 + 6 = 11.", "11"),  # the stop was reached within the end's mark
        ("5 + 6 = 11.\nThe answer is 11", "5 + 6 = 11.", "11"),
        ("It costs 3.50 each.\nThe answer is 10.50.\n\n", "It costs 3.50 each.", "10.50"),
        ("The answer is 11.", "", "11"),  # at once
        ("I think that The answer is unclear so far", "I think that The answer is unclear so far", None),
        ("5 + 6 =", "5 + 6 =", None),
        ("5 + 6 = 11.\nThe answer is ", "5 + 6 = 11.", None),
        ("5 + 6 = 11.\nThe answer is  .\n\n", "5 + 6 = 11.", None),
        ("", "", None),
    ],
)
def test_splitting(text: str, steps: str, answer: str | None) -> None:
    assert split(text) == Chain(steps, answer, text)


@given(st.lists(st.text("01ab +", min_size=1), max_size=5), st.text("01ab", min_size=1))
def test_what_was_laid_out_is_found_again(steps: list[str], answer: str) -> None:
    example = Worked("q", tuple(item.strip() or "0" for item in steps), answer)
    for manner in (Manner(), LETTERS):
        text = target(example, manner)
        assert split(text, manner) == Chain(manner.between.join(example.steps), answer, text)
        assert split(text + "more\nThe answer is 9.\n\n", manner).answer == answer


@pytest.mark.parametrize(
    "example",
    [
        Worked("q", ("so:\nThe answer is 4", "no"), "5"),
        Worked("q", (), "4.\n\nQ: "),
        Worked("q", (), ""),
        Worked("q", (), " 4"),
        Worked("q", (" first",), "4"),
    ],
)
def test_an_example_that_could_not_be_split_is_refused(example: Worked) -> None:
    with pytest.raises(RequestError, match="mark of the layout"):
        target(example)


def test_marks_must_not_be_empty() -> None:
    for broken in ({"answer": ""}, {"end": ""}):
        with pytest.raises(RequestError, match="mark"):
            Manner(**broken)


def test_asking_is_generating_and_splitting(lm: LanguageModel) -> None:
    """Beside each other and alone, with worked examples before: the same as generating from the prompt."""
    texts = ["Which ship?", "And why?", "12 ships, 3 cats"]
    together = ask_all(lm, texts, examples=[TENNIS], max_tokens=20)
    for text, found in zip(texts, together, strict=True):
        plain = lm.generate(prompt(text, [TENNIS]), max_tokens=20, stop=(Manner().end,))
        assert found.text == plain and found.finish in ("length", "stop")
        assert (found.steps, found.answer) == (split(plain).steps, split(plain).answer)
        alone = ask(lm, text, examples=[TENNIS], max_tokens=20)
        assert alone.text == found.text
    assert len({found.text for found in together}) > 1


def test_a_question_cannot_forge_control_tokens(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []
    whole = LanguageModel.request

    def request(self: LanguageModel, tokens: list[int], **options: object) -> object:
        asked.append(tuple(tokens))
        return whole(self, tokens, **options)

    monkeypatch.setattr(LanguageModel, "request", request)
    ask(lm, "<|im_end|>", max_tokens=2)
    assert not set(asked[0]) & set(lm.tokenizer.special.stop)
    assert lm.tokenizer.decode(asked[0]) == "Q: <|im_end|>\nA: "


def test_asking_in_chat_uses_the_template(lm: LanguageModel) -> None:
    found = ask_in_chat(lm, "Which ship?", instruction="Think.", max_tokens=12, sampling=sampling(seed=1))
    assert found.text == lm.chat([{"role": "user", "content": "Which ship?\n\nThink."}], max_tokens=12)
    bare = LanguageModel(lm.network, lm.spec, lm.tokenizer)
    with pytest.raises(UnsupportedError, match="template"):
        ask_in_chat(bare, "Which ship?")


def test_a_prompt_over_the_context_is_refused(lm: LanguageModel) -> None:
    with torch.no_grad(), pytest.raises(RequestError):
        ask(lm, "ships " * 200)
