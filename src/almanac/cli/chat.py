"""``almanac chat``: a conversation on the terminal, or line by line through a pipe.

The conversation lives in memory only: nothing is written to disk, the line editor's history included.
"""

from __future__ import annotations

import contextlib
import importlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING

from almanac.cli.failures import Failure, failure_of, show
from almanac.cli.options import GREEDY, LOCAL, Decoding, Json, Source
from almanac.cli.printing import emit, line, note, write
from almanac.core.errors import AlmanacError

if TYPE_CHECKING:
    from almanac.generate.engine import Handle
    from almanac.language_model.model import LanguageModel

COMMANDS = {
    "/reset": "forget the conversation",
    "/quit": "end (so does Ctrl-D)",
    "/help": "show these commands",
}
PROMPT = "> "


def chat(
    model: str,
    /,
    *,
    system: str | None = None,
    decoding: Decoding = GREEDY,
    source: Source = LOCAL,
    json: Json = False,
) -> int:
    """Talk with a model.

    Each line is a message; the answer is written as it comes. `/reset` forgets the conversation, `/quit` or Ctrl-D
    ends. Ctrl-C cancels the answer that is being written and keeps the conversation. Nothing is stored.

    Through a pipe it answers every line of stdin; its exit code is then that of the first message that failed.

    ```
    almanac chat smollm2-135m-instruct
    almanac chat my-model --system "You answer in one sentence."
    echo "Name three colours." | almanac chat my-model --json
    ```

    Args:
        model: An alias, a model folder, a `.gguf` file, or a hub id with `--revision`.
        system: Instructions that stand before the conversation.
    """
    decoding.sampling()  # a wrong option shows before the model is loaded
    at_terminal = sys.stdin.isatty() and not json
    if at_terminal:
        note(f"loading {model} ...")
    conversation = Conversation(source.load(model), decoding, system)
    conversation.tokens(
        "Hello."
    )  # a model without a template, or one that refuses --system, shows before the first line
    if at_terminal:
        note("/help shows the commands; Ctrl-C cancels an answer, Ctrl-D ends")
    first_failure: Failure | None = None
    for text in _lines(at_terminal):
        command = text.strip()
        if command == "/quit":
            break
        if not command or _obeyed(command, conversation):
            continue
        failure = _turn(conversation, text, at_terminal=at_terminal, in_json=json)
        first_failure = first_failure or failure
    return 0 if at_terminal or first_failure is None else first_failure.code


@dataclass
class Conversation:
    """A model and what was said so far; a turn that fails or is cancelled before its first word leaves no trace."""

    lm: LanguageModel
    decoding: Decoding
    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)

    def reset(self) -> None:
        """Forgets everything but the system's instructions."""
        self.messages = []

    def tokens(self, text: str) -> list[int]:
        """The prompt ids if ``text`` were said now. Raises UnsupportedError, TemplateError or RequestError."""
        first = [] if self.system is None else [{"role": "system", "content": self.system}]
        return self.lm.chat_tokens([*first, *self.messages, {"role": "user", "content": text}])

    def answer(self, text: str, show: Callable[[str], None]) -> Handle:
        """Says ``text`` and gives the answer's pieces to ``show``; returns the finished handle.

        Raises RequestError or TemplateError for a message that cannot be sent, for instance one that does not fit.
        """
        request = self.lm.request(
            self.tokens(text),
            max_tokens=self.decoding.max_tokens,
            sampling=self.decoding.sampling(),
            stop=self.decoding.stops(),
        )
        handle = self.lm.engine().submit(request)
        pieces: list[str] = []
        try:
            with _cancelled_by_ctrl_c(handle):
                for event in handle:
                    pieces.append(event.text)
                    if event.text:
                        show(event.text)
        finally:
            if "".join(pieces).strip() or handle.finish == "stop":
                self.messages += [
                    {"role": "user", "content": text},
                    {"role": "assistant", "content": "".join(pieces)},
                ]
        return handle


def _turn(conversation: Conversation, text: str, *, at_terminal: bool, in_json: bool) -> Failure | None:
    """One message and its answer; what went wrong is told, and returned."""
    answered: list[str] = []

    def shown(piece: str) -> None:
        answered.append(piece)
        if not in_json:
            write(piece)

    try:
        handle = conversation.answer(text, shown)
    except KeyboardInterrupt:
        if not at_terminal:
            raise
        note("\n(cancelled)")
        return None
    except AlmanacError as error:
        failure = failure_of(error)
        show(failure, in_json=in_json)
        return failure
    if in_json:
        emit(
            {
                "role": "assistant",
                "content": "".join(answered),
                "finish": handle.finish,
                "prompt_tokens": len(handle.request.tokens),
                "new_tokens": len(handle.new_tokens),
            }
        )
        return None
    line()
    if handle.finish == "cancelled":
        note("(cancelled)")
    elif handle.finish == "length":
        note(
            f"(cut off after {len(handle.new_tokens)} tokens: --max-tokens, or the context is full; /reset empties it)"
        )
    return None


def _obeyed(command: str, conversation: Conversation) -> bool:
    """Whether the line was a command; a lone word with a slash that is none is not sent to the model either."""
    if command == "/reset":
        conversation.reset()
        note("(the conversation starts anew)")
    elif command == "/help" or (command.startswith("/") and command[1:].isalpha()):
        for name, meaning in COMMANDS.items():
            note(f"{name:<8} {meaning}")
    else:
        return False
    return True


def _lines(at_terminal: bool) -> Iterator[str]:
    """The lines of stdin until its end; at a terminal with a prompt, and Ctrl-C there only drops the line."""
    if not at_terminal:
        for text in sys.stdin:
            yield text.removesuffix("\n")
        return
    with contextlib.suppress(ImportError):  # without it, lines cannot be edited; nothing else changes
        importlib.import_module("readline")
    while True:
        try:
            text = _asked()
        except KeyboardInterrupt:
            note("\n(/quit or Ctrl-D ends)")
            continue
        except EOFError:
            note("")
            return
        yield text


def _asked() -> str:
    if sys.stdout.isatty():
        return input(PROMPT)
    sys.stderr.write(PROMPT)  # stdout is a file: only answers belong there
    sys.stderr.flush()
    text = sys.stdin.readline()
    if not text:
        raise EOFError
    return text.removesuffix("\n")


@contextlib.contextmanager
def _cancelled_by_ctrl_c(handle: Handle) -> Iterator[None]:
    """At a terminal the first Ctrl-C ends the answer within a token; a second one at once."""
    if not sys.stdin.isatty() or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def cancel(number: int, frame: FrameType | None) -> None:
        handle.cancel()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
