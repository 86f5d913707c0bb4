"""Stop strings against an oracle that reads the whole text character by character."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import example, given, settings
from hypothesis import strategies as st

from almanac.generate.stopping import StopText


@dataclass
class Pieces:
    """A text source whose token ``i`` is the i-th piece; ``rest`` comes with the end."""

    pieces: list[str]
    rest: str = ""
    fed: list[int] = field(default_factory=list)

    def feed(self, token: int) -> str:
        self.fed.append(token)
        return self.pieces[token]

    def finish(self) -> str:
        return self.rest


def visible(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """The text before the stop that is completed first (of two completed at once the longer), and whether one was."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


def pending(text: str, stops: tuple[str, ...]) -> int:
    """How many characters at the end could still become a stop."""
    return max(
        (size for stop in stops for size in range(len(stop)) if size <= len(text) and text.endswith(stop[:size])),
        default=0,
    )


words = st.text("abc", min_size=0, max_size=4)


@settings(max_examples=400)
@given(
    pieces=st.lists(words, max_size=8),
    rest=words,
    stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3).map(tuple),
)
@example(pieces=["aab"], rest="", stops=("ab",))
@example(pieces=["a", "bc"], rest="", stops=("abcd", "c"))
@example(pieces=["abc"], rest="", stops=("bcd", "abc", "c"))
@example(pieces=["x", "aaa", "b"], rest="", stops=("aab",))
def test_against_the_oracle(pieces: list[str], rest: str, stops: tuple[str, ...]) -> None:
    source = Pieces(pieces, rest)
    text = StopText(source, stops)
    shown, seen = "", ""
    for token, piece in enumerate(pieces):
        part, stopped = text.feed(token)
        shown, seen = shown + part, seen + piece
        expected, ended = visible(seen, stops)
        assert stopped == ended
        if ended:
            assert shown == expected
            assert text.finish() == ""
            return
        assert shown == seen[: len(seen) - pending(seen, stops)]  # neither leaks nor lags
    shown += text.finish()
    assert shown == visible(seen + rest, stops)[0]


def test_after_a_stop_nothing_more_is_shown_or_decoded() -> None:
    source = Pieces(["one st", "op two", "three"], rest="four")
    text = StopText(source, ("stop",))
    assert text.feed(0) == ("one ", False)
    assert text.feed(1) == ("", True)
    assert text.finish() == ""
    assert source.fed == [0, 1]


def test_without_stops_all_passes_at_once() -> None:
    text = StopText(Pieces(["a", "", "b"], rest="!"), ())
    assert [text.feed(token) for token in range(3)] == [("a", False), ("", False), ("b", False)]
    assert text.finish() == "!"


def test_what_was_held_back_is_given_at_the_end() -> None:
    text = StopText(Pieces(["end of s", "to"], rest=""), ("stop",))
    assert text.feed(0) == ("end of ", False)
    assert text.feed(1) == ("", False)
    assert text.finish() == "sto"
