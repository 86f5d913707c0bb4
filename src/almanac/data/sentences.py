"""Sentences of plain text: where they begin and end, and which of them stand alone.

English rules. A usable sentence is whole (a finite verb, its closing mark, balanced quotes and brackets), of ordinary
length, and does not point away from itself ("see below"). List items, tables and code are no sentences.
"""

from __future__ import annotations

import re

SENTENCE_WORDS = (5, 45)  # fewer say too little, more are lists in disguise

CODE = re.compile(r"`[^`\n]+`")
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


VERBS = """add allow apply avoid build call change choose combine compile configure connect convert create
    customize debug declare define delete deploy describe disable document download enable exclude extend filter forbid
    generate get handle hash import include inject install integrate join launch load make manage migrate modify mount
    optimize organize override parse pass pin prevent protect provide publish raise read receive redirect register
    render replace reset return reuse run save select send separate serve set share show specify split start stop store
    stream submit switch try uninstall update upgrade upload use validate verify wrap write""".split()
IMPERATIVE = "|".join(VERBS)
_FINITE = re.compile(  # without one of these a line is a caption, not a sentence
    rf"(?:{IMPERATIVE.title()})\b|.*, (?:{IMPERATIVE})\b|.*\b(?:is|are|was|were|can|can't|cannot|could|will|would|"
    rf"should|must|may|have|has|had|do|does|don't|doesn't|needs?|you|means|gives|works|contains|(?:{IMPERATIVE})e?s)\b"
)
_INSTRUCTS = re.compile(rf"(?i)(?:{IMPERATIVE})\b|.*\b(?:you (?:can|could|need|should|have|must)|by \w+ing)\b")
WEAK_START = re.compile(
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


def usable_sentences(text: str) -> list[list[str]]:
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
    return bool(sized and whole and balanced(sentence) and not _POINTS_AWAY.search(sentence))


def balanced(words: str) -> bool:
    return words.count("(") == words.count(")") and words.count('"') % 2 == 0 and words.count("`") % 2 == 0
