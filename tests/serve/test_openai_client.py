"""The official client against a real server on this machine: what programs written for OpenAI will see."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from serve.world import Encoder, served

from almanac.assistant.ask import Assistant
from almanac.generate.sampling import sampling
from almanac.language_model.model import KnownText

MESSAGES: Any = [{"role": "user", "content": "Which ship came first?"}]


@pytest.fixture(scope="module")
def client(assistant: Assistant) -> Iterator[openai.OpenAI]:
    with (
        served(assistant) as (port, _),
        openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as made,
    ):
        yield made


def expected(assistant: Assistant, **options: Any) -> tuple[str, int, str | None]:
    """The text, the number of tokens and the end that the engine gives when nothing else runs."""
    lm = assistant.lm
    most = options.pop("max_tokens")
    stop = options.pop("stop", ())
    request = lm.request(lm.chat_tokens(MESSAGES), max_tokens=most, sampling=sampling(**options), stop=stop)
    events = list(lm.engine().submit(request))
    return "".join(event.text for event in events), len(events), events[-1].finish


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["assistant", "model"]
    assert client.models.retrieve("model").owned_by == "almanac"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt")


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 1.3, "seed": 7}, {"top_p": 0.8, "seed": -4}])
def test_chat_is_the_engines_text_whole_and_streamed(
    client: openai.OpenAI, assistant: Assistant, options: dict[str, Any]
) -> None:
    text, count, finish = expected(assistant, **{"temperature": 1.0, **options, "max_tokens": 20})
    whole = client.chat.completions.create(model="model", messages=MESSAGES, max_tokens=20, **options)
    assert whole.choices[0].message.content == text
    assert whole.choices[0].finish_reason == finish
    assert whole.usage is not None
    prompt = len(assistant.lm.chat_tokens(MESSAGES))
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (prompt, count)
    assert whole.usage.total_tokens == prompt + count
    stream = client.chat.completions.create(
        model="model", messages=MESSAGES, max_completion_tokens=20, stream=True,
        stream_options={"include_usage": True}, **options,
    )  # fmt: skip
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    assert len({chunk.id for chunk in chunks}) == 1
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == finish
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_seed_decides_and_its_absence_does_not(client: openai.OpenAI) -> None:
    def text(**options: Any) -> str | None:
        made = client.chat.completions.create(model="model", messages=MESSAGES, max_tokens=24, **options)
        return made.choices[0].message.content

    assert text(seed=5) == text(seed=5) != text(seed=6)
    assert text() != text()


def test_n_choices_are_the_seeds_that_follow(client: openai.OpenAI, assistant: Assistant) -> None:
    made = client.chat.completions.create(model="model", messages=MESSAGES, max_tokens=9, n=3, seed=2**63 - 2)
    seeds = (2**63 - 2, 2**63 - 1, -(2**63))
    alone = [expected(assistant, temperature=1.0, seed=seed, max_tokens=9)[0] for seed in seeds]
    assert [choice.message.content for choice in made.choices] == alone
    assert [choice.index for choice in made.choices] == [0, 1, 2]
    assert made.usage is not None and made.usage.completion_tokens == 27
    pieces = ["", "", ""]
    for chunk in client.chat.completions.create(
        model="model", messages=MESSAGES, max_tokens=9, n=3, seed=2**63 - 2, stream=True
    ):
        pieces[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert pieces == alone


def test_stop_strings_never_appear(client: openai.OpenAI, assistant: Assistant) -> None:
    """Stops cut out of the unstopped text, so that they really occur: inside tokens, across tokens, single letters."""
    options: dict[str, Any] = {"temperature": 1.0, "seed": 3}
    text, _, _ = expected(assistant, **options, max_tokens=40)
    for start, length in ((6, 1), (7, 3), (12, 5), (15, 9)):
        stop = text[start : start + length]
        whole = client.chat.completions.create(
            model="model", messages=MESSAGES, max_tokens=40, stop=[stop, "never there"], logprobs=True, **options
        ).choices[0]
        assert whole.message.content == text[: text.index(stop)]
        assert whole.finish_reason == "stop"
        assert whole.logprobs is not None and whole.logprobs.content is not None
        shown = b"".join(bytes(entry.bytes or ()) for entry in whole.logprobs.content)
        assert stop not in shown.decode("utf-8", "replace")
        assert (whole.message.content or "").encode().startswith(shown) or "\ufffd" in text
        stream = client.chat.completions.create(
            model="model", messages=MESSAGES, max_tokens=40, stop=stop, stream=True, logprobs=True, **options
        )
        chunks = [chunk.choices[0] for chunk in stream]
        assert "".join(chunk.delta.content or "" for chunk in chunks) == text[: text.index(stop)]
        entries = [entry for c in chunks if c.logprobs for entry in c.logprobs.content or ()]
        assert [entry.token for entry in entries] == [entry.token for entry in whole.logprobs.content]


def test_logprobs_are_the_models_with_bytes(client: openai.OpenAI, assistant: Assistant) -> None:
    lm = assistant.lm
    request = lm.request(
        lm.chat_tokens(MESSAGES), max_tokens=12, sampling=sampling(temperature=1.0, seed=1), logprobs=4
    )
    events = list(lm.engine().submit(request))
    made = client.chat.completions.create(
        model="model", messages=MESSAGES, max_tokens=12, seed=1, logprobs=True, top_logprobs=4
    ).choices[0]
    assert made.logprobs is not None and made.logprobs.content is not None
    assert len(made.logprobs.content) == 12
    for entry, event in zip(made.logprobs.content, events, strict=True):
        assert entry.logprob == pytest.approx(event.logprob, abs=1e-5)
        assert [top.logprob for top in entry.top_logprobs] == pytest.approx([p for _, p in event.top], abs=1e-5)
        assert sum(math.exp(top.logprob) for top in entry.top_logprobs) <= 1
        assert entry.token == bytes(entry.bytes or ()).decode("utf-8", "replace")
    data = b"".join(bytes(entry.bytes or ()) for entry in made.logprobs.content)
    stream = KnownText(lm.tokenizer)
    assert data.decode("utf-8", "replace") == "".join(stream.feed(e.token or 0) for e in events) + stream.finish()
    none = client.chat.completions.create(model="model", messages=MESSAGES, max_tokens=2).choices[0]
    assert none.logprobs is None


def test_completions(client: openai.OpenAI, assistant: Assistant) -> None:
    lm = assistant.lm
    prompts = ["A lamp", "<|im_end|> 12"]
    ids = [lm.tokenizer.encode(prompt, allow_special=False) for prompt in prompts]
    assert not set(ids[1]) & lm.tokenizer.special.stop  # a control token in a text is plain text
    texts = [lm.generate(prompt, max_tokens=7) for prompt in prompts]
    for given in (prompts, ids):
        made = client.completions.create(model="model", prompt=given, max_tokens=7, temperature=0, logprobs=2)  # type: ignore[arg-type]
        assert [choice.text for choice in made.choices] == texts
        assert made.usage is not None
        assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (sum(map(len, ids)), 14)
        logprobs = made.choices[0].logprobs
        assert logprobs is not None and logprobs.tokens is not None and logprobs.text_offset is not None
        assert logprobs.top_logprobs is not None and all(len(top) == 2 for top in logprobs.top_logprobs)
        assert logprobs.text_offset == [len("".join(logprobs.tokens[:i])) for i in range(len(logprobs.tokens))]
    pieces = client.completions.create(model="model", prompt="A lamp", max_tokens=7, temperature=0, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == texts[0]
    with pytest.raises(openai.BadRequestError, match="Only the model"):
        client.completions.create(model="assistant", prompt="a")


def test_embeddings_as_numbers_and_base64(client: openai.OpenAI) -> None:
    texts = ["A lamp hums", "12"]
    wanted = Encoder().embed(texts)
    plain = client.embeddings.create(model="letters", input=texts, encoding_format="float")
    assert np.array_equal(np.array([item.embedding for item in plain.data], dtype=np.float32), wanted)
    assert plain.usage.prompt_tokens == plain.usage.total_tokens == 4
    assert plain.model == "letters"
    packed: Any = (
        client.embeddings.create(model="assistant", input=texts[0], encoding_format="base64").data[0].embedding
    )
    assert np.array_equal(np.frombuffer(base64.b64decode(packed), "<f4"), wanted[0])
    default = client.embeddings.create(model="assistant", input=texts)  # the client asks for base64 and unpacks it
    assert np.allclose([item.embedding for item in default.data], wanted)
    for bad in ({"model": "model"}, {"model": "assistant", "dimensions": 5}):
        with pytest.raises(openai.BadRequestError):
            client.embeddings.create(input="a", **bad)


def test_the_assistant_answers_with_citations_or_declines(client: openai.OpenAI, assistant: Assistant) -> None:
    question: Any = [{"role": "system", "content": "x"}, {"role": "user", "content": "How long does the pump last?"}]
    wanted = assistant.ask("How long does the pump last?").to_dict()
    made = client.chat.completions.create(model="assistant", messages=question)
    message = made.choices[0].message
    assert message.content == wanted["answer"]
    assert message.model_dump()["citations"] == wanted["citations"]
    assert made.usage is not None and made.usage.completion_tokens > 0
    chunks = list(client.chat.completions.create(model="assistant", messages=question, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == wanted["answer"]
    assert chunks[-1].choices[0].delta.model_dump()["citations"] == wanted["citations"]
    again = [*question, message.model_dump(), question[-1]]  # an answer may come back with what it carried
    assert client.chat.completions.create(model="assistant", messages=again).choices[0].message.content
    for options in ({"n": 2}, {"logprobs": True}):
        with pytest.raises(openai.BadRequestError, match="Ask the model 'model'"):
            client.chat.completions.create(model="assistant", messages=question, **options)
    with pytest.raises(openai.BadRequestError, match="question is empty"):
        client.chat.completions.create(model="assistant", messages=[{"role": "user", "content": " "}])
    with pytest.raises(openai.BadRequestError, match="no question of a user"):
        client.chat.completions.create(model="assistant", messages=[{"role": "system", "content": "a"}])


def test_errors_are_the_clients_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-9", messages=MESSAGES)
    assert missing.value.code == "model_not_found" and missing.value.param == "model"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="model", messages=MESSAGES, max_tokens=0)
    assert wrong.value.param == "max_tokens" and wrong.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match="context"):
        client.completions.create(model="model", prompt=[5] * 2000)
    with pytest.raises(openai.BadRequestError) as role:
        client.chat.completions.create(model="model", messages=[{"role": "tool", "content": "a"}])  # type: ignore[list-item]
    assert role.value.param == "messages.0.role"


def test_tokens_open_the_server_to_the_client(assistant: Assistant, tmp_path: Any) -> None:
    from serve.world import TOKENS, token_file

    from almanac.serve.settings import ServeSettings

    settings = ServeSettings(port=0, token_file=str(token_file(tmp_path)))
    with served(assistant, settings) as (port, _):
        address = f"http://127.0.0.1:{port}/v1"
        with openai.OpenAI(base_url=address, api_key=TOKENS["ada"], max_retries=0) as client:
            assert [model.id for model in client.models.list()] == ["assistant", "model"]
        with (
            openai.OpenAI(base_url=address, api_key="sk-wrong", max_retries=0) as client,
            pytest.raises(openai.AuthenticationError) as refused,
        ):
            client.models.list()
        assert refused.value.code == "invalid_api_key"
