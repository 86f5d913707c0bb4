"""Grounded question-answer examples made from passages without a model.

An example is a question, a few numbered passages, and an answer that is copied word for word from one of them and cites
it (``... [2]``), or the fixed refusal where none of them holds the answer. Questions come from headings ("Create a
user" gives "How do you create a user?") and from sentences whose shape tells which question they answer ("To log in,
run ..." gives "How do you log in?"). A sentence that does not stand alone (pronouns, "see below") gives no question: a
wrong example costs more than a missing one. English only; list items, tables and code give none.

Sources: SQuAD 2.0 (Rajpurkar et al. 2018, arXiv:1806.03822) for extracts and for unanswerable questions beside related
text; ALCE (Gao et al. 2023, arXiv:2305.14627) for citing by number.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

from almanac.core.errors import AlmanacError

REFUSAL = "The documents do not tell."
SENTENCE_WORDS = (5, 45)  # fewer say too little, more are lists in disguise
ANSWER_WORDS = 60
COVERED = 0.6  # a passage with this share of an answer's content words may give that answer
SHARED = 0.34  # the share of a heading question's content words that a sentence must have to answer for it
ABOUT = "What do the documents say about"


@dataclasses.dataclass(frozen=True)
class Passage:
    """A piece of a document. ``document`` is its path, ``heading`` the path of headings above the text.

    ``page`` counts from 1 where the format has pages; ``start`` is where ``text`` begins in the document's text.
    """

    id: str
    document: str
    title: str
    heading: tuple[str, ...]
    text: str
    page: int | None = None
    start: int = 0


@dataclasses.dataclass(frozen=True)
class GroundedExample:
    """``citations`` are 1-based numbers of the shown ``passages``; ``gold`` is the id of the one that answers.

    ``kind`` is ``heading``, ``definition``, ``statement`` or ``unanswerable``.
    """

    question: str
    passages: tuple[Passage, ...]
    answer: str
    citations: tuple[int, ...]
    gold: str | None
    answerable: bool
    kind: str


Distractors = Callable[[str, int], Sequence[Passage]]
_CODE = re.compile(r"`[^`\n]+`")
_STOP_OR_CODE = re.compile(r"`[^`\n]+`|[.!?…]+[\"'”’)\]]*(?=\s)|\n")
_ABBREVIATIONS = "e.g i.e eg ie cf vs etc approx fig figs nos vol sec ch pp mr mrs ms dr prof st jr inc ltd".split()


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Start and end of every sentence; a line break always ends one.

    A full stop ends none inside code between backticks, after an abbreviation or an initial, nor before a small letter;
    version numbers and file names have no space after theirs.
    """
    ends = [m.end() for m in _STOP_OR_CODE.finditer(text) if m[0] == "\n" or (m[0][0] != "`" and not _goes_on(text, m))]
    spans = zip([0, *ends], [*ends, len(text)], strict=True)
    trimmed = ((b - len(text[a:b].lstrip()), a + len(text[a:b].rstrip())) for a, b in spans)
    return [(a, b) for a, b in trimmed if a < b]


def _goes_on(text: str, stop: re.Match[str]) -> bool:
    if text[stop.end() : stop.end() + 3].lstrip()[:1].islower():
        return True
    before = re.search(r"[\w.]+$", text[max(0, stop.start() - 16) : stop.start()])
    word = before[0].lstrip(".") if before and stop[0][0] == "." else ""
    return word.lower() in _ABBREVIATIONS or (len(word) == 1 and word.isupper() and word != "I")


_VERBS = """add allow apply avoid build call change choose combine compile configure connect convert create
    customize debug declare define delete deploy describe disable document download enable exclude extend filter forbid
    generate get handle hash import include inject install integrate join launch load make manage migrate modify mount
    optimize organize override parse pass pin prevent protect provide publish raise read receive redirect register
    render replace reset return reuse run save select send separate serve set share show specify split start stop store
    stream submit switch try uninstall update upgrade upload use validate verify wrap write""".split()
_DOUBLES = re.compile(r"\w{0,2}[^aeiou][aeiou][^aeiouwxy]$")  # stop, stopping
_GERUNDS = {(v[:-1] if v[-1] == "e" else v + v[-1] * bool(_DOUBLES.match(v))) + "ing": v for v in _VERBS}
_IMPERATIVE = "|".join(_VERBS)
_FINITE = re.compile(  # without one of these a line is a caption, not a sentence
    rf"(?:{_IMPERATIVE.title()})\b|.*, (?:{_IMPERATIVE})\b|.*\b(?:is|are|was|were|can|can't|cannot|could|will|would|"
    rf"should|must|may|have|has|had|do|does|don't|doesn't|needs?|you|means|gives|works|contains|(?:{_IMPERATIVE})e?s)\b"
)
_INSTRUCTS = re.compile(rf"(?i)(?:{_IMPERATIVE})\b|.*\b(?:you (?:can|could|need|should|have|must)|by \w+ing)\b")
_WEAK_START = re.compile(
    "(?:Th(?:is|at|ese|ose|ey|eir|us|en|ere's)|That's|It|It's|Its|He|She|Here|And|But|Or|So|Also|Again|Now|Not|Maybe|"
    "Just|Plus|Because of|As (?:you|we|seen)|(?:In|For|With|After|Before|At|By|All|Like|To do|To override) (?:this|"
    "that|these|those|it|the same|both|doing)|For (?:example|instance)|Otherwise|However|Instead|(?:The )?[Ss]ame|"
    "Not(?:e|ice)|Remember|Imagine|Suppose|Up to|(?:One|Each|Some|Most|All|Any) of|All the|Another|Both|Either|See|"
    "Check|Read|Next|First|Finally|Later|Yes|No|Of course|On top|Therefore|Hence|Only|Additionally|You already)\\b"
)
_POINTS_AWAY = re.compile(
    r"\b(?:below|above|following|as before|do (?:it|so|this|that)|previous|next (?:chapter|section|page|step)s?|"
    r"chapters?|for that|these|this (?:example|case|section|page|tutorial|guide|way|will|is|would|means)|the examples?|"
    r"[Ll]et's|we|We|I|[Yy]ou(?:'ll| will) (?:see|learn|read)|[Yy]ou (?:saw|read)|[Rr]ead more|my|here|the same (?:way|"
    r"technique|idea)|the (?:docs|documentation) (?:for|about|of))\b|`from |\(ref\)|://|"
    r"[\u2600-\u27bf\U0001f000-\U0001faff]"
)
_POINTING = re.compile(
    r"(?i)\b(?:this|these|those|it|its|they|them|their|he|she|here|there|examples?|same|such|others?|another|above|"
    r"below|we|our|us|(?:some|any|every)thing|things?|stuff|etc|ones?|previous|also|too|instead|both|again|even|know|"
    r"learn)\b|(?:^|\b(?:do|with|for|like|of|in|to|from|by|use|about|on|as|after|before|and|all|achieve) )that\b|that$|"
    r"^\w+ that\b|\b(?:deal|work|interact|start|begin|end|together|along|compatible|come|communicate|comply|\w+ed)$"
)
_GENERIC = re.compile(
    r"(?i)(?:about|behind|better|by|without|with|from|in|on|for|to|and|or|an?|don't|do|(?:technical )?details|more|"
    r"(?:next|first) steps|see also|the result\w*)\b|(?:recap|notes?|tips?|info|summary|intro(?:duction)?|overview|"
    r"examples?|usage|features|requirements|references?|alternatives|license|(?:the )?(?:code|basics|docs|file))$"
)
_NO_SUBJECT = re.compile(
    r"(?:In|On|At|For|With|By|From|If|When|While|As|After|Before|What|Which|How|Why|One|Having|Using|To|Of|Because|"
    r"Since|Once|You|Your|Every|Each|Any|All|Some|Many|Most|The most|More|Although)\b|[^`]*\b(?:is|are|was|were|that|"
    r"which|who|you|your|can|will|would|should|has|have|had|or|but|if|when|because|not|part|problem|difference|idea|"
    r"reason|case|result|way|code|value|rest|last|first|second|choice|class|option|approach|step)\b"
)
_STOP = {
    *"""about an and any are as at be been but by can could did do does documents for from had has have how if in into
    is it its may me my need needs no not of on or our say should so some that the their them then there these they
    this to use used using was we what when where which while who why will with would you your mean also just""".split()
}
_PARTS = {
    "NOUNS": r"(?:[\w`'\"./()@{}:\u2007-]+ ){0,4}[\w`'\"./()@{}:\u2007-]+",  # U+2007 stands for a space inside code
    "TASK": r"[a-z']+ [^,:;]{6,90}?",
    "ACT": f"you (?:can|could|use|need|have|should|must|would)|first|just|simply|{_IMPERATIVE}",
    "WISH": "want|need|would like|have to|see|are|were|don't know|already",
    "ALSO": "(?:(?:also|then|even|now|easily|still|just|simply|optionally) )?",
    "KIND": "(?:an?(?! lot| bit| few| little| good| way| ex)|the(?! same| only| first| last| most| best)|one of|what|how)",
}
# Shape of a sentence => its question. The first that fits is taken; ``x`` must be able to stand alone.
_SHAPES = r"""
    (?P<x>(?:An? )?NOUNS),? (?:is|are) (?:just |basically |simply )?KIND => What {be} {x}?
    (?P<x>NOUNS) (?:means|refers to) (?:that|the|an?) => What does {x} mean?
    To (?P<x>(?!see |do |be )TASK)(?:, (?:ACT)| you (?:can|could|use|need|have)) => How do you {x}?
    (?:You (?:can|could) ALSOuse|Use) (?:the |an? )?NOUNS to (?P<x>TASK)[.!] => What can you use to {x}?
    You (?:can|could) ALSO(?P<x>(?!use |see |find |be |do )TASK),? (?:by|using|with(?= `| a )) => How can you {x}?
    If you (?:want|need|would like|have) to (?P<x>TASK), (?:ACT) => What can you do if you need to {x}?
    If you (?P<x>(?!WISH)TASK), (?:you (?:should|must|need|have)|make sure|don't) => What should you do if you {x}?
    If (?P<x>(?!you (?:WISH))TASK), (?!(?:you|ACT|then|in|as|or|but|like|don't|and)\b) => What happens if {x}?
    When you (?P<x>(?!WISH)TASK), (?!(?:ACT)\b) => What happens when you {x}?
    (?:With|Using) (?P<x>NOUNS),? you (?:can|could|get|have) => What can you do with {x}?
    You (?:don't|do not) (?:have|need) to (?P<x>TASK)[.!,;] => Do you need to {x}?
    You (?:can|could|can't|cannot) ALSO(?P<x>(?!see |find |discover |use `)TASK)[.!] => Can you {x}?
    (?P<x>NOUNS) (?:is|are) (?:\w+ly )?used (?:to|for|by|in|as) => What {be} {x} used for?
    (?P<x>NOUNS) (?:is|are) (?:\w+ly )?(?P<y>based|built) on => What {be} {x} {y} on?
    (?P<x>NOUNS) (?P<y>allow|let)s you => What does {x} {y} you to do?
    (?P<x>NOUNS) (?P<y>provide|support|include|return|generate|expect|contain|require)s => What does {x} {y}?
    (?P<x>The (?:default |maximum |minimum )?NOUNS) (?:is|are)(?= [`"\d]) => What {be} {x}?
"""


def _compiled(line: str) -> tuple[re.Pattern[str], str]:
    shape, _, question = line.strip().partition(" => ")
    for name, part in _PARTS.items():
        shape = shape.replace(name, part)
    return re.compile(shape + r"(?:(?<!\w)|(?!\w))"), question


_COMPILED = [_compiled(line) for line in _SHAPES.strip().splitlines()]


def _sentences(text: str) -> list[list[str]]:
    """The usable sentences of the paragraphs of ``text``, word for word; those in one list follow each other there."""
    text = re.sub(r"(?ms)^ *(```+)(?!`).*?^ *\1$", "", text)
    runs: list[list[str]] = [[]]
    for line in () if "```" in text else text.splitlines():  # cut within a code block: what is code?
        for start, end in sentence_spans(line) if not re.match(r"\s*(?:[-*+|>•]|\d{1,3}[.)]) ?", line) else ():
            if _usable(line[start:end]):
                runs[-1].append(line[start:end])
            else:
                runs.append([])
        runs.append([])
    return [run for run in runs if run]


def _usable(sentence: str) -> bool:
    words, letters = len(sentence.split()), sum(map(str.isalpha, sentence))
    sized = SENTENCE_WORDS[0] <= words <= SENTENCE_WORDS[1] and letters > 0.6 * len(sentence)
    whole = sentence[-1] in ".!" and (sentence[0].isupper() or sentence[0] in '`"') and _FINITE.match(sentence)
    return bool(sized and whole and _balanced(sentence) and not _POINTS_AWAY.search(sentence))


def _balanced(words: str) -> bool:
    return words.count("(") == words.count(")") and words.count('"') % 2 == 0 and words.count("`") % 2 == 0


def _candidates(passage: Passage, opens_section: bool, small: frozenset[str]) -> Iterator[GroundedExample]:
    """What ``passage`` answers, as examples that show it alone; ``small`` are the words written with a small letter."""
    runs = _sentences(passage.text)
    found = [(_sentence_question(sentence, small), sentence, "statement") for run in runs for sentence in run]
    if opens_section and passage.heading:
        question = _heading_question(passage, small)
        found.append((question, _best_sentences(runs, question), "heading"))
    for question, answer, kind in found:
        if question and answer:
            kind = "definition" if re.match(r"What (?:is|are|does .* mean)\b", question) else kind
            yield GroundedExample(question, (passage,), answer, (1,), passage.id, True, kind)


def _sentence_question(sentence: str, small: frozenset[str]) -> str:
    """The question that the shape of a sentence tells, or nothing."""
    shown = _CODE.sub(lambda code: code[0].replace(" ", "\u2007"), sentence)
    for pattern, question in () if _WEAK_START.match(sentence) else _COMPILED:
        if match := pattern.match(shown):
            topic = match["x"]
            broad = 2 * question.startswith("Can") or question.startswith(("How can", "What does {x} {y}"))
            if re.search(r"(?:is|are|does|\{be\}) \{x\}", question):
                first, _, rest = topic.partition(" ")
                topic = "" if _NO_SUBJECT.match(topic) else f"{_in_sentence(first, small)} {rest}".strip()
            specific = ("`" in topic and broad < 2) or len(_content(topic)) >= (
                1 + (topic.islower() and " " in topic) + broad
            )
            if topic and specific and _balanced(topic) and not _POINTING.search(topic):
                be = "are" if re.match(r",? are\b", shown[match.end("x") :]) else "is"
                return question.format(x=topic, be=be, y=match.groupdict().get("y")).replace("\u2007", " ")
    return ""


def _heading_question(passage: Passage, small: frozenset[str]) -> str:
    """The question that a section's heading stands for, or nothing."""
    heading = re.sub(r"^(?:step )?\d+(?:\.\d+)*[.:)]\s+", "", passage.heading[-1], flags=re.IGNORECASE)
    heading = re.sub(r"[^\w`\"'()?!@{}]+$", "", heading)
    words = heading.split()
    lone = len(words) == 1 < len(passage.heading) and heading.lower() in small  # "Operation", below another heading
    vague = _GENERIC.match(heading) or _POINTING.search(heading) or re.search(" / |[:!]", heading)
    if lone or vague or not 0 < len(words) <= 12 or not _balanced(heading):
        return ""
    if heading[-1] == "?" or words[0] in ("What", "How", "Why", "When", "Which", "Where", "Can", "Does", "Should"):
        asks = re.match(r"What (?:is|are) |(?:How|Why|When|Which|Can) .*\?$", heading)
        return f"{heading.rstrip('?')}?" if asks and len(words) > 2 else ""
    verb = words[0].lower()
    pairs = [two[0].isupper() and f"{words[at]} {two}" in passage.text for at, two in enumerate(words[1:])]
    named = map(any, zip([False, *pairs], [*pairs, False], strict=True))  # the text writes them so: "FastAPI Cloud"
    words = [word if name else _in_sentence(word, small) for word, name in zip(words, named, strict=True)]
    if verb in _VERBS or verb in _GERUNDS:
        return " ".join(["How do you", _GERUNDS.get(verb, verb), *words[1:]]) + "?" if len(words) > 2 else ""
    return f"{ABOUT} {' '.join(words)}?"


def _best_sentences(runs: list[list[str]], question: str) -> str:
    """The sentence that shares most with the question and stands early, and its neighbour if that fits; or nothing."""
    topic, how = _content(question), question.startswith("How do")
    best: tuple[float, str, str] = (0.0, "", "")
    places = [(run, index) for run in runs for index in range(len(run))]
    for place, (run, index) in enumerate(places):
        shared = len(topic & _content(run[index])) / max(1, len(topic))
        fits = shared >= SHARED and not _WEAK_START.match(run[index]) and (_INSTRUCTS.match(run[index]) or not how)
        if fits and shared - 0.05 * place > best[0]:
            best = shared - 0.05 * place, run[index], run[index + 1] if index + 1 < len(run) else ""
    fits = best[2] and len(best[1].split()) + len(best[2].split()) <= ANSWER_WORDS
    return f"{best[1]} {best[2]}" if fits else best[1]


def _in_sentence(word: str, small: frozenset[str]) -> str:
    """``word`` as it is written within a sentence: with a small first letter, unless it is a name."""
    common = word.strip("\"'(),.").lower() in small or word in ("A", "An", "The") or word.endswith("ing")
    return word.lower() if common and word[1:] == word[1:].lower() else word


@lru_cache(maxsize=16_384)
def _content(text: str) -> frozenset[str]:
    """The words that carry the meaning, without their commonest endings."""
    words = (word for word in re.findall(r"[a-z0-9]+", text.lower()) if len(word) > 1 and word not in _STOP)
    return frozenset(re.sub(r"(?:ings?|ed|es|s|e)$", "", word) if len(word) > 4 else word for word in words)


def make_grounded(
    passages: Sequence[Passage],
    *,
    seed: int,
    per_passage: int = 2,
    unanswerable: float = 0.25,
    shown: int = 3,
    distractors: Distractors | None = None,
) -> tuple[GroundedExample, ...]:
    """Examples from ``passages``, the same for the same arguments.

    Args:
        passages: what may be asked about and shown; split them by document first (`split_by_document`).
        seed: of every choice.
        per_passage: questions from one passage at most.
        unanswerable: share of the examples whose passages, none from the question's document, do not hold the answer.
        shown: passages shown with a question, the answering one included; fewer where too few fit.
        distractors: (question, how many) -> passages that look relevant, best first; the rest is drawn at random.

    Raises:
        AlmanacError: a share outside [0, 1), or fewer than one passage shown or question per passage.
    """
    if not 0 <= unanswerable < 1 or shown < 1 or per_passage < 1:
        cause = f"Cannot make examples with {unanswerable=}, {shown=}, {per_passage=}"
        raise AlmanacError(cause, remedy="Give a share from 0 to below 1, and at least one passage and one question.")
    drafts = _drafts(passages, seed, per_passage)
    wanted = round(len(drafts) * unanswerable / (1 - unanswerable))
    examples, refused = list[GroundedExample](), list[GroundedExample]()
    for draft in _rng(seed, "all").sample(drafts, k=len(drafts)):
        rng = _rng(seed, draft.question)
        pool = [*distractors(draft.question, 16 * shown)] if distractors else []
        pool += rng.sample(list(passages), k=min(len(passages), 16 * shown))
        others = _unfit(draft, pool, absent=False)[: shown - 1]
        order = rng.sample([*draft.passages, *others], k=1 + len(others))
        number = order.index(draft.passages[0]) + 1
        answer = f"{draft.answer} [{number}]"
        examples.append(dataclasses.replace(draft, passages=tuple(order), answer=answer, citations=(number,)))
        if len(refused) < wanted and (others := _unfit(draft, pool, absent=True)[:shown]):
            order = rng.sample(others, k=len(others))
            refused.append(GroundedExample(draft.question, tuple(order), REFUSAL, (), None, False, "unanswerable"))
    return tuple(_rng(seed, "order").sample([*examples, *refused], k=len(examples) + len(refused)))


def split_by_document(
    passages: Sequence[Passage], *, held_out: float = 0.2, seed: int
) -> tuple[tuple[Passage, ...], tuple[Passage, ...]]:
    """``passages`` for training and the held-out ones. No document is in both; each side has at least one.

    Raises:
        AlmanacError: fewer than two documents, or a share outside (0, 1).
    """
    documents = sorted({passage.document for passage in passages})
    if len(documents) < 2 or not 0 < held_out < 1:
        cause = f"Cannot hold out a share of {held_out} from {len(documents)} documents"
        raise AlmanacError(cause, remedy="Give two or more documents and a share between 0 and 1.")
    count = min(len(documents) - 1, max(1, round(held_out * len(documents))))
    held = frozenset(_rng(seed, "split").sample(documents, k=count))
    train, test = (tuple(p for p in passages if (p.document in held) == side) for side in (False, True))
    assert not {passage.document for passage in train} & {passage.document for passage in test}
    return train, test


def _drafts(passages: Sequence[Passage], seed: int, per_passage: int) -> list[GroundedExample]:
    """The questions to ask. One that passages answer differently is left out; repeats of overlapping ones go too."""
    small = _small_words(passages)
    openers: dict[tuple[str, tuple[str, ...]], str] = {}
    by_question: dict[str, list[GroundedExample]] = defaultdict(list)
    for passage in passages:
        opens_section = openers.setdefault((passage.document, passage.heading), passage.id) == passage.id
        for draft in _candidates(passage, opens_section, small):
            by_question[draft.question.lower()].append(draft)
    per: dict[str | None, list[GroundedExample]] = defaultdict(list)
    for same in by_question.values():
        longest = max(same, key=lambda draft: len(draft.answer))
        one_passage = len({draft.gold for draft in same}) == 1  # there an answer may go on where another ends
        if all(longest.answer == d.answer or (one_passage and longest.answer.startswith(d.answer)) for d in same):
            per[longest.gold].append(longest)
    chosen: list[GroundedExample] = []
    for passage in passages:
        rng = _rng(seed, "choice", passage.id)
        mine = rng.sample(per[passage.id], k=len(per[passage.id]))
        mine.sort(key=lambda draft: draft.question.startswith((ABOUT, "Can you")))  # the plainest forms come last
        for draft in mine[:per_passage]:
            question = draft.question.replace(ABOUT, rng.choice((ABOUT, ABOUT, "What should I know about")))
            if rng.random() < 1 / 3 and re.match(
                r"(?:(?:How|What) (?:do|can)|Can|Do) you\b(?!.*\byou(?!r\b))", question
            ):
                question = re.sub(r"\byour\b", "my", question.replace(" you ", " I ", 1))
            chosen.append(dataclasses.replace(draft, question=question))
    return chosen


def _small_words(passages: Sequence[Passage]) -> frozenset[str]:
    """The words that prose writes with a small letter at least as often as with a capital inside a sentence."""
    prose = "\n".join(sentence for passage in passages for run in _sentences(passage.text) for sentence in run)
    prose = _CODE.sub("", prose)
    capital = Counter(word.lower() for word in re.findall(r"(?<=[a-z,] )[A-Z][a-z]*\b", prose))
    return frozenset(
        word for word, count in Counter(re.findall(r"\b[a-z]+\b", prose)).items() if count >= capital[word]
    )


def _unfit(draft: GroundedExample, pool: Sequence[Passage], *, absent: bool) -> list[Passage]:
    """Those of ``pool`` that do not answer the draft's question, as far as their words tell."""
    question, answer, gold = _content(draft.question), _content(draft.answer), draft.passages[0]
    names = [name.strip("`") for name in _CODE.findall(draft.question)]
    share = 0.3 if draft.kind == "heading" else COVERED  # a broad question is easily touched upon
    found: dict[str, Passage] = {}
    for passage in pool:
        there = _content("\n".join((passage.title, *passage.heading, passage.text)))
        same = passage.document == gold.document and (absent or passage.heading == gold.heading)
        asked = len(question & there) >= share * len(question) or any(name in passage.text for name in names)
        if not (same or (absent and asked) or len(answer & there) >= COVERED * len(answer)):
            found.setdefault(passage.id, passage)
    return list(found.values())


def _rng(*key: object) -> random.Random:
    """A generator that depends on ``key`` alone (``hash`` is salted per process)."""
    return random.Random(hashlib.sha256(repr(key).encode()).digest())
