"""Questions whose answer is a name, a date, a number or a place, made from one sentence without a model.

The answer is taken out of the sentence and asked for, at the front where the sentence begins with it ("Who led the team
in sacks?"), else as a cleft ("When was it that Tesla moved to Colorado Springs?") or in place ("The team won how many
matches?"): all three are grammatical whatever the verb, so no parser is needed. After the cloze questions of Lewis et
al. 2019 (arXiv:1906.04980), whose answers are named entities too; we ask in whole words instead of translating.
English only. A sentence with a pronoun or a second clause of its own gives none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

MIN_WORDS = 5  # of a question, its question words left out: fewer name too little to find the passage by
MAX_WORDS = 26

_NAME = r"[A-Z][\w'’-]*(?:\.(?=\s[A-Z]))?"
_NAMES = rf"{_NAME}(?: (?:(?:of|de|von|van|the|and|for) )?{_NAME}){{0,4}}"
_VERB = (
    "was|were|is|has|had|became|made|led|won|lost|wrote|said|took|gave|built|held|began|found|met|sent|left|brought|"
    "kept|grew|came|went|fell|rose|drew|ran|spoke|taught|sold|bought|married|died|lives|lived|contains|provides|"
    r"covers|includes|means|produces|uses|serves|\w{3,}ed"
)
_SUBJECT = re.compile(rf"(?P<answer>(?:The )?{_NAMES}) (?P<rest>(?:also |first |later )?(?:{_VERB})\b.+)$")
_MONTH = "January|February|March|April|May|June|July|August|September|October|November|December"
_DATE = rf"(?:\d{{1,2}} (?:{_MONTH})|(?:{_MONTH}) \d{{1,2}})(?:,? \d{{4}})?|(?:{_MONTH}) \d{{4}}"
_ON_DATE = re.compile(rf"(?:^| )[Oo]n (?P<answer>{_DATE})\b,?")
_IN_YEAR = re.compile(r"(?:^| )[Ii]n (?P<answer>1[0-9]{3}|20[0-9]{2})(?=[ ,.]),?(?! (?:and|to|or)\b)")
_WORDS = "two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|fifteen|twenty|thirty|forty|fifty|sixty|hundred"
_COUNT = re.compile(
    rf"(?<![\w.,$£€-])(?<!the )(?<!The )(?P<answer>\d{{1,3}}(?:,\d{{3}})+|\d+(?:\.\d+)?|{_WORDS})"
    r" (?P<unit>(?:[a-z]{3,} )?[a-z]{3,}s)\b(?! (?:ago|old))"
)
_SHARE = re.compile(r"(?<![\w.,–-])(?P<answer>\d+(?:\.\d+)?(?: ?%| percent| per cent))(?= of)")
_MONEY = re.compile(r"(?<![\w–-])(?P<answer>[$£€]\d[\d,.]*(?<![,.])(?:\s?(?:million|billion|thousand))?)(?![\w–])")
_PLACE = re.compile(rf" (?:in|at|near) (?P<answer>(?:the )?{_NAMES})(?=\.$)")
_UNCLEAR = re.compile(  # words whose meaning lies in another sentence, and signs that a question cannot carry
    r"(?i)\b(?:this|these|those|it|they|them|he|him|she|we|our|us|you|your|i|my|such|former|latter|however|same|so)\b|"
    r"[;:\[\]\"“”`|{}]|^\W|\w\.[A-Z]\w"
)
_NOW = re.compile(r" (?:is|are|has|have) ")  # a cleft in the past tense would not fit
_BELONGS = re.compile(r"\b(?:its|his|her|their|hers)\b")  # clear only behind the name that it belongs to
_PERSONAL = re.compile(
    r"(?:also |first |later )?(?:argued|believed|wrote|said|married|died|taught|spoke|thought|was born)\b"
)
_THING = re.compile(
    r"\b(?:The|University|College|School|Company|Corporation|Church|Party|League|River|Lake|Island|Mountain|City|County|"
    r"Street|Road|Bridge|Museum|Theatre|Act|War|Battle|Treaty|Empire|Union|Kingdom|Republic|Court|Council|Government|"
    r"Congress|Parliament|Army|Navy|Bank|Center|Centre|Institute|Society|Association|Committee|Department|Office|"
    r"Festival|Prize|Award|Cup|Bowl|Games|Street|House|Park|Palace|Cathedral|Language|Sea|Ocean|Valley|Bay|of|and)\b"
)
_OPENERS = frozenset(
    """a an the in on at by for from with without as after before during since until while when where if although though
    because so but and or yet nor not no many most some several few all both each every another other there here then
    thus hence once below above only even much more less such what how why who whose your our my its his her their according
    despite
    among between under over within through throughout unlike like because using used based today later
    early late
    finally first second third next two three four five six seven eight nine ten
    was were is are has had did does do can could will would should""".split()
)


def short_questions(sentence: str) -> Iterator[tuple[str, str]]:
    """(question, answer) pairs that ``sentence`` answers; ``answer`` stands in it word for word."""
    text = sentence.strip()
    if not text.endswith(".") or _UNCLEAR.search(text[:-1]) or text.count("(") != text.count(")"):
        return
    for question, answer in _asked(text):
        words = len(question.split())
        if MIN_WORDS + 2 <= words <= MAX_WORDS and answer.lower() not in question.lower():
            yield question, answer


def _asked(text: str) -> Iterator[tuple[str, str]]:
    body = text[:-1]
    if (found := _SUBJECT.match(body)) and found["answer"].split()[0].lower() not in _OPENERS - {"the"}:
        yield f"{_who(found['answer'], found['rest'])} {_first_clause(found['rest'])}?", found["answer"]
    if _BELONGS.search(body):
        return
    for pattern, opening in ((_ON_DATE, "On what date"), (_IN_YEAR, "In what year")):
        if found := pattern.search(text):
            yield f"{opening} was it that {_without(text, found)}?", found["answer"]
    if found := _COUNT.search(body):
        yield f"{body[: found.start()]}how many {found['unit']}{body[found.end() :]}?", found["answer"]
    if found := _SHARE.search(body):
        yield f"{body[: found.start()]}what percentage{body[found.end() :]}?", found["answer"]
    elif found := _MONEY.search(body):
        yield f"{body[: found.start()]}how much money{body[found.end() :]}?", found["answer"]
    if (found := _PLACE.search(text)) and not _NOW.search(body):
        yield f"Where was it that {_without(text, found)}?", found["answer"]


def _who(answer: str, rest: str) -> str:
    return "Who" if _PERSONAL.match(rest) or not (_THING.search(answer) or " " not in answer) else "What"


def _first_clause(text: str) -> str:
    """``text`` up to its first comma, if that says enough."""
    head = text.partition(",")[0]
    return head if len(head.split()) >= MIN_WORDS + 1 and head.count("(") == head.count(")") else text


def _without(text: str, found: re.Match[str]) -> str:
    """The sentence without the phrase that was found, as the middle of a sentence."""
    rest = f"{text[: found.start()]} {text[found.end() :]}".strip().rstrip(".").strip(" ,")
    rest = re.sub(r"\s+", " ", re.sub(r"\s+([,.])", r"\1", rest))
    first = rest.split(" ", 1)[0]
    return rest[:1].lower() + rest[1:] if first.lower() in _OPENERS or first.endswith("ing") else rest
