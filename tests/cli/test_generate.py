"""``almanac generate`` says what the library says, as it comes, with every option reaching the engine."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from almanac.cli import options
from almanac.cli.options import Decoding
from almanac.generate.sampling import sampling
from almanac.language_model.model import DEFAULT_MAX_TOKENS, LanguageModel

PROMPT = "banana republic"


def test_the_text_is_the_librarys(almanac: Callable[..., Any], model: Path, lm: LanguageModel) -> None:
    result = almanac("generate", model, PROMPT, "--max-tokens", "20")
    assert (result.code, result.out) == (0, lm.generate(PROMPT, max_tokens=20) + "\n")
    assert result.err == ""


def test_json_holds_ids_counts_and_text(almanac: Callable[..., Any], model: Path, lm: LanguageModel) -> None:
    found = json.loads(almanac("generate", model, PROMPT, "--max-tokens", "12", "--json").out)
    prompt = lm.tokenizer.encode(PROMPT)
    handle = lm.engine().submit(lm.request(prompt, max_tokens=12))
    text = "".join(event.text for event in handle)
    assert (found["ids"], found["text"], found["finish"]) == (handle.new_tokens, text, "length")
    assert (found["prompt_tokens"], found["new_tokens"], found["logprobs"]) == (len(prompt), 12, None)
    assert 0 < found["first_token_seconds"] <= found["seconds"]


def test_the_names_of_control_tokens_stay_letters(almanac: Callable[..., Any], model: Path, lm: LanguageModel) -> None:
    found = json.loads(almanac("generate", model, "a<|im_end|>", "--max-tokens", "1", "--json").out)
    assert found["prompt_tokens"] == len(lm.tokenizer.encode("a<|im_end|>", allow_special=False)) > 2


def test_text_is_written_as_it_comes(almanac: Callable[..., Any], model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces: list[str] = []

    class Recorder(io.StringIO):
        def write(self, text: str) -> int:
            pieces.append(text)
            return len(text)

    monkeypatch.setattr(sys, "stdout", Recorder())
    almanac("generate", model, PROMPT, "--max-tokens", "20")
    assert len([piece for piece in pieces if piece]) > 10


def test_a_hyphen_reads_stdin_without_its_last_line_end(
    almanac: Callable[..., Any], model: Path, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("two\nlines\n"))
    result = almanac("generate", model, "-", "--max-tokens", "9")
    assert result.out == lm.generate("two\nlines", max_tokens=9) + "\n"


def test_bytes_that_are_no_text_are_refused(
    almanac: Callable[..., Any], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b"caf\xe9"), encoding="utf-8", errors="surrogateescape")
    monkeypatch.setattr(sys, "stdin", stdin)
    result = almanac("generate", model, "-")
    assert result.code == 2 and "surrogate at character 3" in result.err


def test_every_option_reaches_the_engine(
    almanac: Callable[..., Any], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    request = LanguageModel.request

    def spy(self: LanguageModel, tokens: list[int], **given: Any) -> Any:
        asked.append(given)
        return request(self, tokens, **given)

    monkeypatch.setattr(LanguageModel, "request", spy)
    words = "--max-tokens 5 --temperature 0.7 --top-k 9 --top-p 0.8 --min-p 0.01 --repetition-penalty 1.2 --seed 3"
    almanac("generate", model, PROMPT, *words.split(), "--stop", "a b", "--stop", "-", "--logprobs", "2")
    expected = sampling(temperature=0.7, top_k=9, top_p=0.8, min_p=0.01, repetition_penalty=1.2, seed=3)
    assert asked == [{"max_tokens": 5, "sampling": expected, "stop": ("a b", "-"), "logprobs": 2}]


def test_a_seed_draws_the_same_text_again_and_another_another(almanac: Callable[..., Any], model: Path) -> None:
    def drawn(seed: int) -> str:
        return almanac("generate", model, PROMPT, "--max-tokens", "20", "--temperature", "1", "--seed", str(seed)).out

    assert drawn(1) == drawn(1) != drawn(2)


def test_stop_ends_before_its_text(almanac: Callable[..., Any], model: Path, lm: LanguageModel) -> None:
    whole = lm.generate(PROMPT, max_tokens=20)
    stop = whole[6:8]
    result = almanac("generate", model, PROMPT, "--max-tokens", "20", "--stop", stop)
    assert result.out == whole[: whole.index(stop)] + "\n"


def test_logprobs_are_the_networks(almanac: Callable[..., Any], model: Path, lm: LanguageModel) -> None:
    found = json.loads(almanac("generate", model, PROMPT, "--max-tokens", "4", "--logprobs", "3", "--json").out)
    row = [*lm.tokenizer.encode(PROMPT), *found["ids"]]
    with torch.no_grad():
        values = lm.network(torch.tensor([row]))[0].log_softmax(-1)[-5:-1]
    for entry, known in zip(found["logprobs"], values, strict=True):
        assert entry["logprob"] == pytest.approx(float(known[entry["id"]]), abs=1e-4)
        assert [item["id"] for item in entry["top"]] == known.topk(3).indices.tolist()
        assert entry["token"] == lm.tokenizer.decode([entry["id"]], skip_special_tokens=False)


def test_logprobs_of_people_go_to_stderr(almanac: Callable[..., Any], model: Path, lm: LanguageModel) -> None:
    result = almanac("generate", model, PROMPT, "--max-tokens", "4", "--logprobs", "1")
    assert result.out == lm.generate(PROMPT, max_tokens=4) + "\n"
    assert len(result.err.splitlines()) == 4


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["--temperature", "-1"], "temperature is -1.0"),
        (["--top-p", "2"], "top_p is 2.0"),
        (["--max-tokens", "0"], "max_tokens is 0"),
        (["--logprobs", "21"], "logprobs is 21"),
        (["--top-k", "x"], 'Invalid value for --top-k: unable to convert "x" into int'),
    ],
)
def test_an_option_out_of_range_is_the_users_error(
    almanac: Callable[..., Any], model: Path, words: list[str], cause: str
) -> None:
    result = almanac("generate", model, PROMPT, *words)
    assert result.code == 2 and result.err.startswith(f"error: {cause}")


def test_an_empty_prompt_and_a_prompt_over_the_context_are_the_users_errors(
    almanac: Callable[..., Any], model: Path
) -> None:
    assert almanac("generate", model, "").code == 2
    result = almanac("generate", model, "% " * 5000)
    assert result.code == 2 and "exceed the context" in result.err


def test_the_default_length_is_the_librarys() -> None:
    assert options.MAX_TOKENS == Decoding().max_tokens == DEFAULT_MAX_TOKENS
