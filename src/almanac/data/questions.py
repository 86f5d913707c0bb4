"""From a sentence, or a heading, to the question that it answers, by its shape and without a model. English only.

A sentence that does not stand alone (pronouns, "see below") gives no question: a wrong example costs more than a missing
one. Sources: SQuAD 2.0 (Rajpurkar et al. 2018, arXiv:1806.03822) for extracts as answers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from almanac.data.sentences import CODE, IMPERATIVE, VERBS, WEAK_START, balanced, usable_sentences

ANSWER_WORDS = 60
SHARED = 0.34  # the share of a heading question's content words that a sentence must have to answer for it
ABOUT = "What do the documents say about"
_INSTRUCTS = re.compile(rf"(?i)(?:{IMPERATIVE})\b|.*\b(?:you (?:can|could|need|should|have|must)|by \w+ing)\b")
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
_DOUBLES = re.compile(r"\w{0,2}[^aeiou][aeiou][^aeiouwxy]$")  # stop, stopping
_GERUNDS = {(v[:-1] if v[-1] == "e" else v + v[-1] * bool(_DOUBLES.match(v))) + "ing": v for v in VERBS}
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
    "ACT": f"you (?:can|could|use|need|have|should|must|would)|first|just|simply|{IMPERATIVE}",
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


def sentence_question(sentence: str, small: frozenset[str]) -> str:
    """The question that the shape of a sentence tells, or nothing."""
    shown = CODE.sub(lambda code: code[0].replace(" ", "\u2007"), sentence)
    for pattern, question in () if WEAK_START.match(sentence) else _COMPILED:
        if match := pattern.match(shown):
            topic = match["x"]
            broad = 2 * question.startswith("Can") or question.startswith(("How can", "What does {x} {y}"))
            if re.search(r"(?:is|are|does|\{be\}) \{x\}", question):
                first, _, rest = topic.partition(" ")
                topic = "" if _NO_SUBJECT.match(topic) else f"{_in_sentence(first, small)} {rest}".strip()
            specific = ("`" in topic and broad < 2) or len(content_words(topic)) >= (
                1 + (topic.islower() and " " in topic) + broad
            )
            if topic and specific and balanced(topic) and not _POINTING.search(topic):
                be = "are" if re.match(r",? are\b", shown[match.end("x") :]) else "is"
                return question.format(x=topic, be=be, y=match.groupdict().get("y")).replace("\u2007", " ")
    return ""


def heading_question(path: tuple[str, ...], text: str, small: frozenset[str]) -> str:
    """The question that a section's heading stands for, or nothing."""
    heading = re.sub(r"^(?:step )?\d+(?:\.\d+)*[.:)]\s+", "", path[-1], flags=re.IGNORECASE)
    heading = re.sub(r"[^\w`\"'()?!@{}]+$", "", heading)
    words = heading.split()
    lone = len(words) == 1 < len(path) and heading.lower() in small  # "Operation", below another heading
    vague = _GENERIC.match(heading) or _POINTING.search(heading) or re.search(" / |[:!]", heading)
    if lone or vague or not 0 < len(words) <= 12 or not balanced(heading):
        return ""
    if heading[-1] == "?" or words[0] in ("What", "How", "Why", "When", "Which", "Where", "Can", "Does", "Should"):
        asks = re.match(r"What (?:is|are) |(?:How|Why|When|Which|Can) .*\?$", heading)
        return f"{heading.rstrip('?')}?" if asks and len(words) > 2 else ""
    verb = words[0].lower()
    pairs = [two[0].isupper() and f"{words[at]} {two}" in text for at, two in enumerate(words[1:])]
    named = map(any, zip([False, *pairs], [*pairs, False], strict=True))  # the text writes them so: "FastAPI Cloud"
    words = [word if name else _in_sentence(word, small) for word, name in zip(words, named, strict=True)]
    if verb in VERBS or verb in _GERUNDS:
        return " ".join(["How do you", _GERUNDS.get(verb, verb), *words[1:]]) + "?" if len(words) > 2 else ""
    return f"{ABOUT} {' '.join(words)}?"


def best_sentences(runs: list[list[str]], question: str) -> str:
    """The sentence that shares most with the question and stands early, and its neighbour if that fits; or nothing."""
    topic, how = content_words(question), question.startswith("How do")
    best: tuple[float, str, str] = (0.0, "", "")
    places = [(run, index) for run in runs for index in range(len(run))]
    for place, (run, index) in enumerate(places):
        shared = len(topic & content_words(run[index])) / max(1, len(topic))
        fits = shared >= SHARED and not WEAK_START.match(run[index]) and (_INSTRUCTS.match(run[index]) or not how)
        if fits and shared - 0.05 * place > best[0]:
            best = shared - 0.05 * place, run[index], run[index + 1] if index + 1 < len(run) else ""
    fits = best[2] and len(best[1].split()) + len(best[2].split()) <= ANSWER_WORDS
    return f"{best[1]} {best[2]}" if fits else best[1]


def _in_sentence(word: str, small: frozenset[str]) -> str:
    """``word`` as it is written within a sentence: with a small first letter, unless it is a name."""
    common = word.strip("\"'(),.").lower() in small or word in ("A", "An", "The") or word.endswith("ing")
    return word.lower() if common and word[1:] == word[1:].lower() else word


@lru_cache(maxsize=16_384)
def content_words(text: str) -> frozenset[str]:
    """The words that carry the meaning, without their commonest endings."""
    words = (word for word in re.findall(r"[a-z0-9]+", text.lower()) if len(word) > 1 and word not in _STOP)
    return frozenset(re.sub(r"(?:ings?|ed|es|s|e)$", "", word) if len(word) > 4 else word for word in words)


def small_words(texts: Sequence[str]) -> frozenset[str]:
    """The words that prose writes with a small letter at least as often as with a capital inside a sentence."""
    prose = "\n".join(sentence for text in texts for run in usable_sentences(text) for sentence in run)
    prose = CODE.sub("", prose)
    capital = Counter(word.lower() for word in re.findall(r"(?<=[a-z,] )[A-Z][a-z]*\b", prose))
    return frozenset(
        word for word, count in Counter(re.findall(r"\b[a-z]+\b", prose)).items() if count >= capital[word]
    )
