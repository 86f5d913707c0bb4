"""``almanac generate``: a text and its continuation."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from almanac.cli.options import GREEDY, LOCAL, Decoding, Json, Source
from almanac.cli.printing import emit, line, note, visible, write
from almanac.cli.typed import typed

if TYPE_CHECKING:
    from almanac.generate.engine import Event, Handle
    from almanac.language_model.model import LanguageModel


def generate(
    model: str,
    prompt: str,
    /,
    *,
    decoding: Decoding = GREEDY,
    source: Source = LOCAL,
    logprobs: int | None = None,
    json: Json = False,
) -> int:
    """Continue a text.

    The continuation is written to stdout as it comes. The prompt is plain text: no chat template is put around it, and
    the names of control tokens in it stay letters. To talk with a model use `almanac chat`.

    ```
    almanac generate smollm2-135m-instruct "The capital of France is"
    almanac generate my-model "Once upon a time" --temperature 0.8 --seed 7
    cat story.txt | almanac generate model.gguf - --stop "The end"
    ```

    Args:
        model: An alias, a model folder, a `.gguf` file, or a hub id with `--revision`.
        prompt: The text to continue; `-` reads it from stdin, without its last line end.
        logprobs: Also show each token's natural log-probability, and this many alternatives (0 to 20).
    """
    text = typed(prompt)
    sampling = decoding.sampling()
    lm = source.load(model)
    started = time.monotonic()
    tokens = lm.tokenizer.encode(text, allow_special=False)
    request = lm.request(
        tokens, max_tokens=decoding.max_tokens, sampling=sampling, stop=decoding.stops(), logprobs=logprobs
    )
    handle = lm.engine().submit(request)
    events, first_seconds = _stream(handle, started, quiet=json)
    seconds = time.monotonic() - started
    if json:
        emit(
            {
                "model": model,
                "text": "".join(event.text for event in events),
                "finish": handle.finish,
                "prompt_tokens": len(tokens),
                "new_tokens": len(handle.new_tokens),
                "ids": handle.new_tokens,
                "first_token_seconds": first_seconds,
                "seconds": seconds,
                "logprobs": None if logprobs is None else [_with_text(lm, event) for event in events],
            }
        )
        return 0
    if logprobs is not None:
        for event in events:
            note(_shown(_with_text(lm, event)))
    if sys.stderr.isatty():
        rate = (len(events) - 1) / max(seconds - first_seconds, 1e-9)
        note(f"[{len(tokens)} + {len(handle.new_tokens)} tokens, {rate:.1f} tokens/s, {handle.finish}]")
    return 0


def _stream(handle: Handle, started: float, *, quiet: bool) -> tuple[list[Event], float]:
    """Every event, its text written as it comes unless ``quiet``, and the seconds until the first."""
    events: list[Event] = []
    first_seconds = 0.0
    try:
        for event in handle:
            if not events:
                first_seconds = time.monotonic() - started
            events.append(event)
            if event.text and not quiet:
                write(event.text)
    finally:
        if not quiet:
            line()
    return events, first_seconds


def _with_text(lm: LanguageModel, event: Event) -> dict[str, Any]:
    def text_of(token: int | None) -> str:
        return "" if token is None else lm.tokenizer.decode([token], skip_special_tokens=False)

    return {
        "id": event.token,
        "token": text_of(event.token),
        "logprob": event.logprob,
        "top": [{"id": id, "token": text_of(id), "logprob": value} for id, value in event.top],
    }


def _shown(entry: dict[str, Any]) -> str:
    others = "  ".join(f"{item['token']!r} {item['logprob']:.3f}" for item in entry["top"])
    return visible(f"{entry['token']!r:<16} {entry['logprob']:8.3f}   {others}", sys.stderr).rstrip()
