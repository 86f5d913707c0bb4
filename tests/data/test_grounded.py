"""Grounded examples: questions that stand alone, answers copied word for word, refusals where nothing answers."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from almanac.core.errors import AlmanacError
from almanac.data.grounded import (
    REFUSAL,
    GroundedExample,
    Passage,
    make_grounded,
    split_by_document,
)
from almanac.data.sentences import sentence_spans
from almanac.retrieve.chunk.headings import chunk_document
from almanac.retrieve.lexical import LexicalIndex
from almanac.retrieve.read.folder import read_folder

FASTAPI = Path(__file__).parents[3] / "shared" / "data" / "docs" / "fastapi"


def passage(text: str, heading: str = "", document: str = "a.md", number: int = 0) -> Passage:
    path = ("Manual", heading) if heading else ()
    return Passage(f"{document}#{heading}#{number}", document, "Manual", path, text)


def asked(text: str, heading: str = "") -> dict[str, str]:
    """Question (asked as "you") -> answer without its mark, for one passage."""
    examples = make_grounded([passage(text, heading)], seed=3, per_passage=9, unanswerable=0, shown=1)
    assert all(example.answer.endswith(" [1]") for example in examples)
    return {example.question.replace(" I ", " you "): example.answer.removesuffix(" [1]") for example in examples}


def sentences(text: str) -> list[str]:
    return [text[start:end] for start, end in sentence_spans(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Use e.g. FastAPI, i.e. Starlette vs. Flask etc. and more. Done.", 2),
        ("Ask Dr. Smith or J. Doe. They know.", ["Ask Dr. Smith or J. Doe.", "They know."]),
        ("Python 3.10 and v0.115.2. Also 2.0.", ["Python 3.10 and v0.115.2.", "Also 2.0."]),
        ("Open `main.py. Then Go` in a.md now. Save.", ["Open `main.py. Then Go` in a.md now.", "Save."]),
        ('He said "stop." Then (he left.) Quiet.', ['He said "stop."', "Then (he left.)", "Quiet."]),
        ("Wait... what? Yes... No.", ["Wait... what?", "Yes...", "No."]),
        ("First line\nsecond line. Third", ["First line", "second line.", "Third"]),
        ("So do I. Next.", ["So do I.", "Next."]),
        ("Use the `x` API calls. Go.", ["Use the `x` API calls.", "Go."]),
        ("  spaced.   Out.  ", ["spaced.", "Out."]),
        ("", []),
    ],
)
def test_sentences_end_where_they_end(text: str, expected: list[str] | int) -> None:
    found = sentences(text)
    assert found == expected if isinstance(expected, list) else len(found) == expected


@given(st.text(st.sampled_from("aB .!?\n`\"'eg1-"), max_size=80))
def test_sentences_cover_all_text_in_order(text: str) -> None:
    spans = sentence_spans(text)
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())
    assert all(start < end for start, end in spans)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))


@pytest.mark.parametrize(
    ("sentence", "question"),
    [
        ("To create a new user, call the `add_user` function with a name.", "How do you create a new user?"),
        (
            "You can restart the worker process by sending it a hangup signal.",
            "How can you restart the worker process?",
        ),
        ("You can use the `Retry` class to repeat failed downloads.", "What can you use to repeat failed downloads?"),
        ("Use a proxy to hide the address of the server.", "What can you use to hide the address of the server?"),
        (
            "If you want to delete old records, run the nightly job.",
            "What can you do if you need to delete old records?",
        ),
        (
            "If a client sends an empty body, the server answers with an error.",
            "What happens if a client sends an empty body?",
        ),
        (
            "If you lose your access card, you must tell the front desk.",
            "What should you do if you lose your access card?",
        ),
        (
            "When you close the main window, the program saves all files.",
            "What happens when you close the main window?",
        ),
        ("With `Depends` you can share a connection between functions.", "What can you do with `Depends`?"),
        ("You don't have to restart the server after a change.", "Do you need to restart the server after a change?"),
        ("You can mount two static folders under the root.", "Can you mount two static folders under the root?"),
        ("Uvicorn is a fast server for asynchronous applications.", "What is Uvicorn?"),
        ("An access token is a string that proves who you are.", "What is an access token?"),
        ("Background workers are the processes that run queued jobs.", "What are background workers?"),
        ("`PATCH` is used to change part of a record.", "What is `PATCH` used for?"),
        ("The default port of the server is `8000` unless you change it.", "What is the default port of the server?"),
        ("Idempotent means that a second call changes nothing more.", "What does idempotent mean?"),
        ("The `status` parameter allows you to change the code.", "What does the `status` parameter allow you to do?"),
    ],
)
def test_the_shape_of_a_sentence_tells_its_question(sentence: str, question: str) -> None:
    context = "The manual has an idempotent access token and background workers for the default case."
    assert asked(f"{context}\n\n{sentence}").get(question) == sentence


@pytest.mark.parametrize(
    "text",
    [
        "This is a string that proves who you are today.",  # pronoun
        "It is a fast server for asynchronous applications.",
        "To do this, call the `add_user` function with a name.",
        "To delete them from the server room, call the `drop_all` function with a name.",
        "Uvicorn is a fast server, as shown in the following list.",  # points elsewhere
        "In the next chapter you can restart the worker process by sending a signal.",
        "Uvicorn is a fast server for asynchronous applications:",  # not finished
        "Uvicorn is fast.",  # too short
        "Uvicorn is a server " + "and more " * 50 + "too.",  # too long
        "- Uvicorn is a fast server for asynchronous applications.",  # list, table, code
        "| Uvicorn is a fast server for asynchronous applications. |",
        "```\nUvicorn is a fast server for asynchronous applications.\n```",
        "Uvicorn is a fast server for applications.\n```\nleft open",  # cut inside a code block
        "Uvicorn is the same server that you already know well.",
        "One nice thing is the speed of the server.",
        "Any request with an `Origin` header and no body.",  # no verb
        "See https://example.org for a server is a thing to know.",
    ],
)
def test_what_does_not_stand_alone_gives_no_question(text: str) -> None:
    assert asked(text) == {}


@pytest.mark.parametrize(
    ("heading", "question"),
    [
        ("Add a user", "How do you add a user?"),
        ("Adding a user", "How do you add a user?"),
        ("Step 3: Add a user", "How do you add a user?"),
        ("2.1. Removing a User", "What do the documents say about removing a user?"),
        ("What is a user", "What is a user?"),
        ("How does a user log in?", "How does a user log in?"),
        ("User accounts", "What do the documents say about user accounts?"),
        ("User Accounts in LDAP", "What do the documents say about user accounts in LDAP?"),
        ("The `User` class", "What do the documents say about the `User` class?"),
    ],
)
def test_headings_become_questions(heading: str, question: str) -> None:
    text = "Every user of the accounts system needs a name. You can remove the user again in a class of LDAP accounts."
    found = asked(text, heading)
    found = {
        key.replace("What should you know about", "What do the documents say about"): v for key, v in found.items()
    }
    assert question in found
    assert found[question].startswith("Every user") or found[question].startswith("You can remove")


@pytest.mark.parametrize(
    "heading",
    ["Recap", "Note", "Technical Details", "See also", "This user", "Add it", "Users / Groups", "About users", "A very "
     "long heading that goes on about users and user accounts and user names and more", "User", "User:", "User!"],
)  # fmt: skip
def test_headings_that_say_nothing_alone_are_left_out(heading: str) -> None:
    assert asked("Every user of the accounts system needs a name.", heading) == {}


def test_a_heading_is_answered_by_what_shares_its_words_or_not_at_all() -> None:
    text = "Most people start slowly. Every user account needs a name. It cannot be changed later."
    question = "What do the documents say about user accounts?"
    found = {
        q.replace("What should you know", "What do the documents say"): a
        for q, a in asked(text, "User accounts").items()
    }
    assert found == {question: "Every user account needs a name. It cannot be changed later."}
    assert asked("Most people start slowly. They take a walk in the park.", "User accounts") == {}


TOPICS = ["kettle", "lantern", "harbour", "violin", "glacier", "orchard", "compass", "turbine", "marble", "saddle"]


def library(documents: int = 10) -> list[Passage]:
    """Passages on one topic per document, so that no document can answer for another."""
    found = []
    for topic in TOPICS[:documents]:
        texts = [
            f"A {topic} is a device made in the old workshop of {topic} makers. You can clean every {topic} by "
            f"boiling {topic} parts slowly. The default {topic} weight is `{len(topic)}` stones.",
            f"To repair a broken {topic}, open the {topic} lid with care. If a {topic} falls down, the {topic} guard rings.",
        ]
        found += [passage(text, f"{topic.title()} part {n}", f"{topic}.md", n) for n, text in enumerate(texts)]
    return found


def check(examples: tuple[GroundedExample, ...], shown: int) -> None:
    for example in examples:
        identities = [one.id for one in example.passages]
        assert len(set(identities)) == len(identities) <= shown
        assert example.question.endswith("?") and example.question[0].isupper()
        if example.answerable:
            (number,) = example.citations
            gold = example.passages[number - 1]
            assert gold.id == example.gold
            body = example.answer.removesuffix(f" [{number}]")
            assert body != example.answer
            assert body in gold.text or all(sentence in gold.text for sentence in sentences(body))
            assert [one for one in example.passages if one is not gold and body in one.text] == []
        else:
            assert (example.answer, example.citations, example.gold) == (REFUSAL, (), None)
            assert example.kind == "unanswerable"


def test_examples_cite_the_passage_that_holds_their_answer() -> None:
    examples = make_grounded(library(), seed=1, per_passage=3)
    check(examples, 3)
    assert {len(example.passages) for example in examples} == {3}
    assert {example.citations for example in examples if example.answerable} == {(1,), (2,), (3,)}
    assert {example.kind for example in examples} >= {"definition", "statement", "unanswerable"}


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
def test_the_share_of_unanswerable_questions_is_kept(share: float) -> None:
    examples = make_grounded(library(), seed=1, unanswerable=share)
    refused = sum(not example.answerable for example in examples)
    assert abs(refused - share * len(examples)) <= 0.5


def test_an_unanswerable_question_comes_from_another_document_than_its_passages() -> None:
    for example in make_grounded(library(), seed=2, unanswerable=0.5):
        if not example.answerable:
            (topic,) = [topic for topic in TOPICS if topic in example.question.lower()]
            assert not any(topic in one.text for one in example.passages)


def test_what_merely_mentions_a_question_is_no_proof_that_it_cannot_be_answered() -> None:
    mentions = " ".join(
        f"People ask how to repair a broken {t}, clean the {t} part, or find its default weight." for t in TOPICS
    )
    shop = passage(f"{mentions} What falls down is a device.", document="shop.md")
    passages = [*library(), shop]
    examples = make_grounded(passages, seed=4, unanswerable=0.5, distractors=lambda question, count: [shop, *passages])
    assert any(shop in example.passages for example in examples if example.answerable)
    assert not any(shop in example.passages for example in examples if not example.answerable)


def test_one_passage_gives_at_most_so_many_questions() -> None:
    for limit in (1, 2, 4):
        examples = make_grounded(library(), seed=1, per_passage=limit, unanswerable=0)
        counts = Counter(example.gold for example in examples)
        assert max(counts.values()) == min(limit, 3)
        assert len({example.question for example in examples}) == len(examples)


def test_distractors_are_asked_for_and_never_answer_themselves() -> None:
    passages = library()
    copy = passage(passages[0].text, "Copied elsewhere", "copy.md", 7)
    calls: list[tuple[str, int]] = []

    def nearest(question: str, count: int) -> list[Passage]:
        calls.append((question, count))
        return [copy, *passages]

    examples = make_grounded(passages, seed=1, distractors=nearest)
    check(examples, 3)
    assert calls and all(count >= 3 for _, count in calls)
    answered = [example for example in examples if example.gold == passages[0].id]
    assert answered
    assert all(copy not in example.passages for example in answered)
    first_other = [example for example in examples if example.gold == passages[4].id]
    assert all(passages[1] in example.passages or copy in example.passages for example in first_other)


def test_a_question_with_two_answers_is_not_asked_and_a_repeat_is_asked_once() -> None:
    text = "To create a new user, call the `add_user` function with a name."
    other = "To create a new user, write a letter to the front desk."
    assert asked(text) != {}
    both = [passage(text, document="a.md"), passage(other, document="b.md")]
    assert make_grounded(both, seed=0, unanswerable=0) == ()
    overlapping = [passage(text, number=0), passage(f"{text} More words follow at once.", number=1)]
    (example,) = make_grounded(overlapping, seed=0, unanswerable=0)
    assert example.passages == (overlapping[0],)


def test_the_same_seed_gives_the_same_examples_in_any_process() -> None:
    assert make_grounded(library(), seed=5) == make_grounded(library(), seed=5)
    assert make_grounded(library(), seed=5) != make_grounded(library(), seed=6)
    program = (
        "import hashlib,sys\nfrom almanac.data.grounded import Passage, make_grounded, split_by_document\n"
        "text='A kettle{0} is a device for tea number {0}. To clean kettle{0} parts, use soap and hot water.'\n"
        "texts=[text.format(n) for n in range(20)]\n"
        "ps=[Passage(str(n),f'd{n%7}.md','T',('T',f'Kettle{n} care'),t) for n,t in enumerate(texts)]\n"
        "print(hashlib.sha256(repr((make_grounded(ps,seed=1),split_by_document(ps,seed=1))).encode()).hexdigest())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


@pytest.mark.parametrize("options", [{"unanswerable": 1.0}, {"unanswerable": -0.1}, {"shown": 0}, {"per_passage": 0}])
def test_impossible_wishes_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(AlmanacError, match=f"{next(iter(options))}="):
        make_grounded(library(), seed=0, **options)


def test_nothing_gives_nothing() -> None:
    assert make_grounded([], seed=0) == ()
    assert make_grounded([passage("```\ncode\n```", "Recap")], seed=0) == ()


@given(st.lists(st.integers(0, 9), min_size=2, max_size=40), st.floats(0.01, 0.99), st.integers(0, 5))
def test_a_split_never_parts_a_document(numbers: list[int], share: float, seed: int) -> None:
    passages = [passage("x", document=f"{number}.md", number=place) for place, number in enumerate(numbers)]
    documents = set(numbers)
    if len(documents) < 2:
        with pytest.raises(AlmanacError, match="from 1 documents"):
            split_by_document(passages, held_out=share, seed=seed)
        return
    train, held = split_by_document(passages, held_out=share, seed=seed)
    sides = [{one.document for one in side} for side in (train, held)]
    assert not sides[0] & sides[1] and all(sides)
    assert sorted([*train, *held], key=passages.index) == passages
    assert abs(len(sides[1]) - share * len(documents)) <= 1
    reordered = split_by_document(passages[::-1], held_out=share, seed=seed)
    assert {one.document for one in reordered[1]} == sides[1]


def test_an_impossible_share_is_refused() -> None:
    for share in (0.0, 1.0):
        with pytest.raises(AlmanacError, match="share between 0 and 1"):
            split_by_document(library(), held_out=share, seed=0)


@pytest.mark.skipif(not FASTAPI.is_dir(), reason=f"the shared documents are not at {FASTAPI}")
def test_real_documentation_gives_hundreds_of_examples() -> None:
    sources = read_folder(FASTAPI).documents
    chunks = [
        one for source in sources for one in chunk_document(source, count_tokens=lambda text: (len(text) + 3) // 4)
    ]
    index = LexicalIndex.build(chunks)
    train, held = split_by_document([chunk.as_passage() for chunk in chunks], seed=0)
    assert len({one.document for one in held}) == 29
    passages = [*train, *held]
    examples = make_grounded(
        passages, seed=0, distractors=lambda q, n: [hit.chunk.as_passage() for hit in index.search(q, n)]
    )
    check(examples, 3)
    kinds = Counter(example.kind for example in examples)
    assert len(examples) > 450
    assert abs(kinds["unanswerable"] / len(examples) - 0.25) < 0.01
    assert kinds["statement"] > 70 and kinds["definition"] > 35
    found = sum(example.gold in {hit.chunk.id for hit in index.search(example.question, 5)} for example in examples)
    assert found / (len(examples) - kinds["unanswerable"]) > 0.8
