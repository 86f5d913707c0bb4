"""Shared lines: found by how many documents hold them, cut without tearing a sentence or losing the last copy."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from almanac.data.dedup.exact import text_digest
from almanac.data.filters.boilerplate import BoilerplateRule, removal, shared_lines

RULE = BoilerplateRule()


def cut(text: str, lines: list[str], rule: BoilerplateRule = RULE) -> str:
    found = removal(text, frozenset(map(text_digest, lines)), rule=rule)
    kept, end = [], 0
    for start, stop in found.spans:
        kept.append(text[end:start])
        end = stop
    return "".join([*kept, text[end:]])


def test_a_footer_is_found_by_document_frequency_and_facts_are_not() -> None:
    rng = random.Random(1)
    footer, menu = "Copyright the maintainers, all rights reserved.", "- Home"
    texts = []
    for number in range(20):
        facts = f"Price: {number}\n\nThe part number {rng.randrange(10**6)} weighs {number} kg."
        facts += f" It goes with lid {number}, not with lid {number + 1}."
        texts.append(f"{menu}\n- Contact\n\n{facts}\n\n{footer}" if number < 8 else facts)
    lines = shared_lines(texts, rule=RULE)
    assert [(line.line, line.documents, line.first) for line in lines] == [
        (menu, 8, 0), ("- Contact", 8, 0), (footer, 8, 0),
    ]  # fmt: skip
    assert shared_lines(texts[4:], rule=RULE) == ()  # 4 of 16 documents: fewer than five
    others = [f"Other {number}." for number in range(10)]
    assert shared_lines(texts + others, rule=RULE) == ()  # 8 of 30: less than the share asked for
    for text in texts[1:8]:
        left = cut(text, [line.line for line in lines])
        assert left == text.removeprefix(f"{menu}\n- Contact\n\n").removesuffix(f"\n\n{footer}")


def test_a_line_twice_in_one_document_counts_once() -> None:
    assert shared_lines(["Again and again.\n\nAgain and again."] * 4 + ["x"] * 3, rule=RULE) == ()


def test_code_tables_and_marks_without_words_stay() -> None:
    text = "```python\nimport os\n```\n\n| Name | Type |\n\n---\n\n42\n\nProse that stays here, long enough."
    assert shared_lines([text.replace("stays", f"stays {n}") for n in range(9)], rule=RULE) == ()
    assert cut(text, ["import os", "| Name | Type |", "---", "42"]) == text


def test_a_sentence_is_not_torn() -> None:
    text = "The value is read from\nthe first line of\nthe file at start.\n\nSecond paragraph, which is long."
    assert cut(text, ["the first line of"]) == text
    assert cut(text, ["The value is read from"]) == text.removeprefix("The value is read from\n")
    listed = "- one item\n- shared item\n- two items"
    assert cut(listed, ["- shared item"]) == "- one item\n- two items"


def test_no_document_loses_more_than_its_share() -> None:
    text = "Shared line number one.\n\nOwn."
    found = removal(text, frozenset([text_digest("Shared line number one.")]), rule=RULE)
    assert (found.spans, found.lines) == ((), ())
    assert found.refused > 0.8
    assert cut(text, ["Shared line number one."], RULE.with_(max_removed=1.0)) == "Own."


BLOCKS = st.lists(st.sampled_from(["gone line", "also gone", "kept text", "- kept item", "x\ny z w"]), max_size=8)


@given(BLOCKS)
def test_what_stays_are_the_kept_paragraphs_one_blank_line_apart(blocks: list[str]) -> None:
    text = "\n\n".join(blocks)
    left = cut(text, ["gone line", "also gone"], RULE.with_(max_removed=1.0))
    assert left == "\n\n".join(block for block in blocks if "gone" not in block)
