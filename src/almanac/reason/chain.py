"""Chain of thought: the model writes its steps down before its answer, and what it wrote is part of what it answers from.

Two ways to one end, and this file serves both:

- the *scratchpad* (Nye 2021, arXiv 2112.00114): training targets hold the steps, then the answer (`target`);
- the *worked prompt* (Wei 2022, arXiv 2201.11903): a few solved examples come first, and a model that was never trained
  on steps goes on in their manner (`prompt`).

`ask` lets a model go on freely and parts what it wrote into steps and answer (`split`). What follows the answer's line is
not read, and a text that never reaches an answer has none: an answer is not guessed from the steps.

Deviation: Wei 2022 ends a chain with "The answer is", spoken in a sentence; here the mark stands at the beginning of the
answer and may be any text, so that steps which say "answer" are not taken for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from almanac.core.errors import RequestError
from almanac.core.value import Value
from almanac.generate.engine import Handle
from almanac.generate.sampling import Sampling
from almanac.language_model.model import LanguageModel


@dataclass(frozen=True, kw_only=True)
class Manner(Value):
    """How a worked example is laid out: ``question`` Q ``steps`` S ``answer`` A ``end``.

    The default is that of Wei 2022. ``answer`` must not be empty; a step must not contain it, nor an answer the end.
    """

    question: str = "Q: "
    steps: str = "\nA: "
    answer: str = "\nThe answer is "
    end: str = ".\n\n"
    between: str = " "  # what stands between two steps

    def __post_init__(self) -> None:
        if not self.answer or not self.end:
            raise RequestError(
                "A manner without a mark before or after the answer",
                remedy="Give both, such as '\\nThe answer is ' and '.\\n'.",
            )


@dataclass(frozen=True)
class Worked:
    """A question with its steps, in order, and its answer. No steps: an example that answers at once."""

    question: str
    steps: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Chain:
    """What a model wrote: its steps as one text, and its answer, or None where it came to none.

    ``finish`` says why it ended, as `Event.finish`; "length" with no answer means that ``max_tokens`` was too small.
    """

    steps: str
    answer: str | None
    text: str
    finish: str | None = None


def target(example: Worked, manner: Manner | None = None) -> str:
    """What a model is trained to say after `question`: the steps, the mark, the answer, the end.

    Raises RequestError where the text could not be split again into what it was made of.
    """
    manner = manner or Manner()
    steps = manner.between.join(example.steps)
    text = steps + manner.answer + example.answer + manner.end
    if split(text, manner) != Chain(steps, example.answer, text):
        raise RequestError(
            f"The steps or the answer of {example.question[:80]!r} contain a mark of the layout, or blanks at their ends",
            remedy="Strip them, or choose marks that no example contains.",
        )
    return text


def question(text: str, manner: Manner | None = None) -> str:
    """What comes before the target: the question in its frame, ready for the first step."""
    manner = manner or Manner()
    return manner.question + text + manner.steps


def prompt(text: str, examples: Sequence[Worked] = (), manner: Manner | None = None) -> str:
    """The worked examples, whole, and then the question to be answered. Raises RequestError as `target`."""
    worked = "".join(question(example.question, manner) + target(example, manner) for example in examples)
    return worked + question(text, manner)


def split(text: str, manner: Manner | None = None) -> Chain:
    """Parts a continuation into steps and answer.

    The answer runs from the first mark to the end's mark, or to the end of the text, without blanks around it; an empty
    one is none. The mark may lack blanks before it at the very beginning, as when a model answers at once.
    """
    manner = manner or Manner()
    mark = manner.answer
    at = text.find(mark)
    if at < 0 and (bare := mark.lstrip()) and text.startswith(bare):
        mark, at = bare, 0
    if at < 0:
        return Chain(text.strip(), None, text)
    rest = text[at + len(mark) :]
    answer = rest.partition(manner.end)[0].strip()
    if (bare_end := manner.end.rstrip()) and answer.endswith(bare_end):  # the text ended within the end's mark
        answer = answer.removesuffix(bare_end).rstrip()
    return Chain(text[:at].strip(), answer or None, text)


def ask(
    lm: LanguageModel,
    text: str,
    *,
    examples: Sequence[Worked] = (),
    manner: Manner | None = None,
    max_tokens: int = 256,
    sampling: Sampling | None = None,
) -> Chain:
    """Lets a model think aloud about one question; see `ask_all`."""
    return ask_all(lm, [text], examples=examples, manner=manner, max_tokens=max_tokens, sampling=sampling)[0]


def ask_all(
    lm: LanguageModel,
    questions: Sequence[str],
    *,
    examples: Sequence[Worked] = (),
    manner: Manner | None = None,
    max_tokens: int = 256,
    sampling: Sampling | None = None,
) -> list[Chain]:
    """Lets a model think aloud about several questions beside each other, each by itself.

    Args:
        lm: any language model; control tokens in questions and examples are plain text.
        questions: what is asked.
        examples: worked ones that come first; none for a model trained on `target`.
        manner: the layout, which must be that of training.
        max_tokens: of steps and answer together.
        sampling: greedy by default.

    Raises:
        RequestError: a prompt over the context, or examples that contain the layout's marks.
    """
    manner = manner or Manner()
    engine = lm.engine()
    handles: list[Handle] = []
    for text in questions:
        tokens = lm.tokenizer.encode(prompt(text, examples, manner), allow_special=False)
        handles.append(engine.submit(lm.request(tokens, max_tokens=max_tokens, sampling=sampling, stop=(manner.end,))))
    return [_chain(handle, manner) for handle in handles]


def ask_in_chat(
    lm: LanguageModel,
    text: str,
    *,
    instruction: str = "Think step by step. Then write a line that says: The answer is",
    manner: Manner | None = None,
    max_tokens: int = 512,
    sampling: Sampling | None = None,
) -> Chain:
    """Lets an instruct model think aloud in its own chat template, told to by ``instruction`` after the question.

    Raises UnsupportedError for a model without a template.
    """
    content = f"{text}\n\n{instruction}"
    tokens = lm.chat_tokens([{"role": "user", "content": content}])
    return _chain(lm.engine().submit(lm.request(tokens, max_tokens=max_tokens, sampling=sampling)), manner or Manner())


def _chain(handle: Handle, manner: Manner) -> Chain:
    """Runs a handle to its end and parts its text."""
    events = list(handle)
    found = split("".join(event.text for event in events), manner)
    return Chain(found.steps, found.answer, found.text, handle.finish)
