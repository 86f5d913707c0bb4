"""Answers held to passages: whatever the model wants, it writes words of a passage, the right number, or the refusal."""

from __future__ import annotations

import re

import pytest
import torch
from language_model.small import language_model

from almanac.assistant.extraction import answers, with_article
from almanac.core.errors import RequestError
from almanac.data.grounded import REFUSAL, Passage
from almanac.generate.processors.prefix_tree import Node, PrefixTree, chain
from almanac.generate.sampling import Sampling, sampling

LM = language_model("llama", max_position_embeddings=1024)
TEXTS = (
    "The pump, built in 1867, lifts water (about 24 litres) a minute. It runs well.",
    'Call `start_pump("x")` first. The pump starts; then wait. Überall läuft Wasser.',
    "The pump The pump The pump The pump",
)
PASSAGES = tuple(Passage(str(n), f"{n}.md", "", (), text) for n, text in enumerate(TEXTS))
STOP = LM.tokenizer.special.stop


def written(seed: int, limit: int = 40) -> tuple[str, str | None]:
    """What a model of random weights writes when it is held to the passages, drawn at high temperature."""
    prompt = LM.tokenizer.encode("a question")
    tree = PrefixTree(root=answers(PASSAGES, LM.tokenizer), prompt_tokens=len(prompt))
    drawn = Sampling(processors=(tree, *sampling(temperature=3.0).processors), greedy=False, seed=seed)
    handle = LM.engine().submit(LM.request(prompt, max_tokens=limit, sampling=drawn))
    text = "".join(event.text for event in handle)
    return text, handle.finish


def test_nothing_but_extracts_with_their_number_or_the_refusal_is_written() -> None:
    kinds = set()
    for seed in range(60):
        text, finish = written(seed)
        if text == REFUSAL:
            kinds.add("refusal")
        elif finish == "stop":
            match = re.fullmatch(r"(.+) \[([123])\]", text, re.DOTALL)
            assert match, text
            assert match[1] in TEXTS[int(match[2]) - 1], text
            kinds.add("extract")
        else:
            assert any(text.strip() in whole for whole in TEXTS) or REFUSAL.startswith(text), text
            kinds.add("cut")
    assert "extract" in kinds


def test_words_are_never_cut_and_answers_start_at_words() -> None:
    root = answers(PASSAGES[:1], LM.tokenizer)

    def allowed(text: str) -> bool:
        node = root
        for token in LM.tokenizer.encode(text, add_special_tokens=False, allow_special=False):
            if token not in node.children:
                return False
            node = node.children[token]
        return any(token in STOP for token in node.children)

    for good in ("1867 [1]", "24 litres [1]", "pump [1]", "The pump, built in 1867 [1]", "It runs well. [1]", REFUSAL):
        assert allowed(good), good
    for wrong in ("ump [1]", "pum [1]", "1867 [2]", "1867", "lifts oil [1]", "The pump, [1]", "minute. It", "186 [1]"):
        assert not allowed(wrong), wrong


def test_a_text_that_repeats_itself_costs_no_recursion() -> None:
    flood = Passage("x", "x.md", "", (), "pump " * 3000)
    node = answers((flood,), LM.tokenizer)
    for token in LM.tokenizer.encode("pump pump pump pump", add_special_tokens=False):
        node = node.children[token]
    assert node.children


def test_who_may_not_decline_answers_and_gets_its_article_back() -> None:
    first = LM.tokenizer.encode(REFUSAL, add_special_tokens=False, allow_special=False)[0]
    root = answers(PASSAGES, LM.tokenizer, may_decline=False)
    assert first not in root.children and root.children
    assert first in answers(PASSAGES, LM.tokenizer).children
    assert with_article("pump, built in 1867 [1]", PASSAGES) == "The pump, built in 1867 [1]"
    assert with_article("pump starts [2]", PASSAGES) == "The pump starts [2]"
    assert with_article("litres [1]", PASSAGES) == "litres [1]" and with_article("", PASSAGES) == ""


@pytest.mark.parametrize("text", ["It holds two things:", "the (", "a -", "one -- \n\n", "wait…"])
def test_an_answer_can_always_end(text: str) -> None:
    """A passage may be cut anywhere; no walk down the tree comes to a dead end before a stop token."""
    waiting = [(answers((Passage("x", "x.md", "", (), text),), LM.tokenizer), 0)]
    while waiting:
        node, depth = waiting.pop()
        assert node.children
        waiting += [(child, depth + 1) for token, child in node.children.items() if token not in STOP]
        assert depth < 60


def test_a_prefix_tree_keeps_the_models_choice_among_what_is_allowed() -> None:
    tree = PrefixTree(root=Node({3: chain([5], Node({7: Node()})), 4: Node({6: Node()})}), prompt_tokens=2)
    logits = torch.arange(10.0)
    assert tree(logits.clone(), [1, 1]).isfinite().nonzero().flatten().tolist() == [3, 4]
    assert tree(logits.clone(), [1, 1, 3]).argmax() == 5 and tree(logits.clone(), [1, 1, 3, 5]).argmax() == 7
    assert torch.equal(tree(logits.clone(), [1, 1])[[3, 4]], logits[[3, 4]])
    with pytest.raises(RequestError, match="has ended"):
        tree(logits.clone(), [1, 1, 3, 5, 7])
    with pytest.raises(RequestError, match="without a sequence"):
        PrefixTree(root=Node(), prompt_tokens=0)
