"""The engine against slow references: company, schedules and chunk sizes never change what a sequence gets."""

from __future__ import annotations

import math
import random

import pytest
import torch
import toys
from generate.scripted import LETTERS, Chain, Letters, alphabet

from almanac.adapt.lora import Lora
from almanac.compress.quantize.blocks import Blocks
from almanac.compress.quantize.int8 import Int8
from almanac.core.errors import RequestError
from almanac.generate.engine import Engine, Event, Handle, Request, run_all
from almanac.generate.sampling import Sampling, sampling
from almanac.nn.stack import Decoder


@pytest.fixture(scope="module", params=sorted(toys.varied()))
def model(request: pytest.FixtureRequest) -> Decoder:
    return toys.toy(request.param)


def prompt_of(size: int, seed: int) -> tuple[int, ...]:
    return tuple(toys.tokens(1, size, seed=seed)[0].tolist())


def slow_reference(model: Decoder, request: Request) -> list[int]:
    """One sequence, no cache, no company: every token recomputes the whole; sampling written out by hand."""
    options = request.sampling
    generator = torch.Generator().manual_seed(options.seed)
    row = list(request.tokens)
    while len(row) < len(request.tokens) + request.max_tokens:
        with torch.no_grad():
            logits = model(torch.tensor([row]))[0, -1]
        for processor in options.processors:
            logits = processor(logits, row)
        if options.greedy:
            token = max(range(len(logits)), key=logits.tolist().__getitem__)
        else:
            token = int(torch.multinomial(torch.softmax(logits, 0), 1, generator=generator))
        row.append(token)
        if token in request.stop_tokens:
            break
    return row[len(request.tokens) :]


def random_requests(rng: random.Random, count: int) -> list[Request]:
    """Prompts of 1 to 20 tokens, half of them sampled, some ending at a stop token."""
    usual = [
        Sampling(),
        sampling(temperature=0.9, top_k=20, seed=1),
        sampling(temperature=1.3, top_p=0.9, seed=2),
        sampling(repetition_penalty=1.3),
    ]
    return [
        Request(
            tokens=prompt_of(rng.randint(1, 20), rng.randrange(1000)),
            max_tokens=rng.randint(1, 14),
            sampling=rng.choice(usual),
            stop_tokens=frozenset(rng.sample(range(toys.VOCAB), rng.choice([0, 0, 8]))),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("seed", range(4))
def test_random_company_never_changes_a_sequence(model: Decoder, seed: int) -> None:
    """Requests join whenever they like, of any length, and leave when done: each gets what it would get alone."""
    rng = random.Random(seed)
    requests = random_requests(rng, 12)
    engine = Engine(model, max_rows=rng.choice([1, 3, 5]), prefill_chunk=rng.choice([1, 4, 7, 64]))
    waiting, handles = list(requests), []
    while waiting or engine.waiting or engine.running:
        for _ in range(rng.choice([0, 0, 1, 3])):
            if waiting:
                handles.append(engine.submit(waiting.pop(0)))
        engine.step()
        assert len(engine.running) <= engine.max_rows
    assert engine.state is None
    for handle, request in zip(handles, requests, strict=True):
        assert handle.new_tokens == slow_reference(model, request)
        assert [event.token for event in handle] == handle.new_tokens


def test_quantized_and_adapted_models_are_served_alike() -> None:
    model = toys.toy("mistral", Blocks(format="Q4_1"), Int8(targets="embed"), Lora(rank=2))
    requests = random_requests(random.Random(9), 10)
    got = run_all(Engine(model, max_rows=4, prefill_chunk=6), requests)
    assert got == [slow_reference(model, request) for request in requests]


@pytest.mark.parametrize("chunk", [1, 2, 5, 19, 20, 21, 512])
def test_prompts_may_be_fed_in_chunks_of_any_size(model: Decoder, chunk: int) -> None:
    requests = [Request(tokens=prompt_of(20, seed), max_tokens=10) for seed in range(2)]
    got = run_all(Engine(model, prefill_chunk=chunk), requests)
    assert got == [toys.greedy(model, list(request.tokens), 10) for request in requests]


def test_seeds_decide_draws_and_nothing_else_does(model: Decoder) -> None:
    def draw(seed: int, company: int) -> list[int]:
        mine = Request(tokens=prompt_of(5, 1), max_tokens=12, sampling=sampling(temperature=1.5, seed=seed))
        others = [
            Request(tokens=prompt_of(3 + index, index), max_tokens=9, sampling=sampling(temperature=1.0, seed=seed))
            for index in range(company)
        ]
        return run_all(Engine(model), [*others[:1], mine, *others[1:]])[min(company, 1)]

    torch.manual_seed(1)
    alone = draw(7, 0)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    assert draw(7, 3) == alone
    assert torch.equal(torch.random.get_rng_state(), state)
    assert draw(8, 0) != alone


def test_equal_requests_with_other_seeds_differ(model: Decoder) -> None:
    """One random stream shared by all rows would pass every test of a single row."""
    requests = [
        Request(tokens=prompt_of(4, 0), max_tokens=16, sampling=sampling(temperature=1.5, seed=seed))
        for seed in (3, 4, 3)
    ]
    first, second, third = run_all(Engine(model), requests)
    assert first == third
    assert first != second


# --- probabilities


def test_logprobs_are_those_of_the_model(model: Decoder) -> None:
    request = Request(
        tokens=prompt_of(6, 2), max_tokens=8, logprobs=5, sampling=sampling(temperature=2.0, top_k=3, seed=1)
    )
    engine = Engine(model)
    engine.submit(Request(tokens=prompt_of(9, 3), max_tokens=8))
    handle = engine.submit(request)
    events = list(handle)
    with torch.no_grad():
        expected = model(torch.tensor([handle.tokens[:-1]]))[0, 5:].log_softmax(-1)
    for event, row in zip(events, expected, strict=True):
        assert event.logprob is not None
        assert event.token is not None
        assert abs(event.logprob - float(row[event.token])) < 1e-5
        best = row.topk(5)
        assert [token for token, _ in event.top] == best.indices.tolist()
        torch.testing.assert_close(torch.tensor([value for _, value in event.top]), best.values, rtol=0, atol=1e-5)


def test_logprobs_only_when_asked_for() -> None:
    chain = alphabet(6)
    for asked, length in ((None, 0), (0, 0), (3, 3), (20, 6)):
        engine = Engine(chain)
        (event,) = engine.submit(Request(tokens=(1,), max_tokens=1, logprobs=asked))
        assert (event.logprob is None) == (asked is None)
        assert len(event.top) == length
        if length == 6:
            assert math.isclose(sum(math.exp(value) for _, value in event.top), 1.0, rel_tol=1e-5)


# --- how sequences end


def finish_of(handle: Handle) -> tuple[str, str | None]:
    events = list(handle)
    assert [event.finish for event in events[:-1]] == [None] * (len(events) - 1)
    return "".join(event.text for event in events), events[-1].finish


def test_reasons_to_finish() -> None:
    letters = Engine(alphabet(), text_stream=lambda: Letters("?"))
    assert finish_of(letters.submit(Request(tokens=(0,), max_tokens=4))) == ("bcde?", "length")
    request = Request(tokens=(0,), max_tokens=9, stop_tokens=frozenset({4}))
    handle = letters.submit(request)
    assert finish_of(handle) == ("bcd?", "stop")
    assert handle.new_tokens == [1, 2, 3, 4]
    assert finish_of(letters.submit(Request(tokens=(0,), max_tokens=9, stop=("e", "zz")))) == ("bcd", "stop")
    assert finish_of(letters.submit(Request(tokens=(0,), max_tokens=9, stop=("xyz", "def")))) == ("bc", "stop")
    assert finish_of(letters.submit(Request(tokens=(0,), max_tokens=5, stop=("efgh",)))) == ("bcdef?", "length")
    assert finish_of(letters.submit(Request(tokens=(0,), max_tokens=4, stop=("e",)))) == ("bcd", "stop")
    request = Request(tokens=(0,), max_tokens=9, stop=("def",), stop_tokens=frozenset({4}))
    assert finish_of(letters.submit(request)) == ("bcd?", "stop")


def test_held_text_comes_late_but_whole() -> None:
    engine = Engine(alphabet(), text_stream=Letters)
    events = list(engine.submit(Request(tokens=(0,), max_tokens=6, stop=("cdx",))))
    assert [event.text for event in events] == ["b", "", "", "cde", "f", "g"]


def test_without_text_there_are_only_ids() -> None:
    events = list(Engine(alphabet()).submit(Request(tokens=(0,), max_tokens=2)))
    assert events == [Event(1, ""), Event(2, "", finish="length")]


def test_random_stops_in_company_never_leak() -> None:
    rng = random.Random(5)
    for _ in range(30):
        table = [rng.randrange(6) for _ in range(6)]
        engine = Engine(Chain(table), text_stream=Letters, max_rows=4)
        requests = []
        for _ in range(6):
            stops = tuple("".join(rng.choice(LETTERS[:6]) for _ in range(rng.randint(1, 3))) for _ in range(2))
            requests.append(Request(tokens=(rng.randrange(6),), max_tokens=rng.randint(1, 12), stop=stops))
        handles = [engine.submit(request) for request in requests]
        engine.run()
        for handle, request in zip(handles, requests, strict=True):
            token, full = request.tokens[-1], ""
            for _ in range(request.max_tokens):
                token = table[token]
                full += LETTERS[token]
            ends = sorted((full.find(stop) + len(stop), full.find(stop)) for stop in request.stop if stop in full)
            text, finish = finish_of(handle)
            assert (text, finish) == ((full[: ends[0][1]], "stop") if ends else (full, "length"))


# --- cancelling and fairness


@pytest.mark.parametrize("after", [0, 1, 3])
def test_cancelled_within_one_token(after: int) -> None:
    chain = alphabet()
    engine = Engine(chain, text_stream=Letters)
    other = engine.submit(Request(tokens=(10,), max_tokens=8))
    handle = engine.submit(Request(tokens=(0,), max_tokens=20, stop=("bcdefgh",)))
    while len(handle.new_tokens) < after:
        engine.step()
    produced, calls = len(handle.new_tokens), len(chain.log)
    handle.cancel()
    handle.cancel()
    engine.step()
    assert handle.finish == "cancelled"
    assert len(handle.new_tokens) == produced
    last = 0 if after == 0 else handle.tokens[-1]
    assert all([last] not in rows for rows in chain.log[calls:])  # not computed for it any more
    events = list(handle)
    assert events[-1] == Event(None, "".join(LETTERS[token] for token in handle.new_tokens), finish="cancelled")
    engine.run()
    assert other.new_tokens == list(range(11, 19))
    assert engine.state is None


def test_cancelled_amid_its_prompt() -> None:
    chain = alphabet()
    engine = Engine(chain, prefill_chunk=2)
    handle = engine.submit(Request(tokens=tuple(range(10)), max_tokens=5))
    behind = engine.submit(Request(tokens=(20, 21), max_tokens=2))
    engine.step()
    assert handle.state is not None
    handle.cancel()
    engine.step()
    assert handle.finish == "cancelled"
    assert handle.state is None  # its memory goes with it
    engine.run()
    assert behind.new_tokens == [22, 23]
    assert sum(len(rows[0]) for rows in chain.log) == 2 + 2 + 1


def test_cancelling_what_has_ended_changes_nothing() -> None:
    engine = Engine(alphabet())
    handle = engine.submit(Request(tokens=(0,), max_tokens=2))
    engine.run()
    handle.cancel()
    engine.run()
    assert [event.finish for event in handle] == [None, "length"]


def test_a_long_prompt_does_not_stall_the_others() -> None:
    engine = Engine(alphabet(), prefill_chunk=3)
    running = engine.submit(Request(tokens=(0,), max_tokens=30))
    engine.step()
    engine.submit(Request(tokens=tuple(range(20)), max_tokens=3))
    for _ in range(7):
        before = len(running.new_tokens)
        engine.step()
        assert len(running.new_tokens) == before + 1


def test_rows_are_decoded_together() -> None:
    chain = alphabet()
    run_all(Engine(chain), [Request(tokens=(index,), max_tokens=6) for index in range(4)])
    assert max(len(rows) for rows in chain.log) == 4
    assert len(chain.log) <= 4 + 3 + 6


def test_events_of_others_are_kept_while_one_is_read(model: Decoder) -> None:
    engine = Engine(model)
    first, second = (engine.submit(Request(tokens=prompt_of(4, seed), max_tokens=5)) for seed in (1, 2))
    assert len(list(first)) == 5
    assert second.finish is None or len(second.events) == 5
    assert [event.token for event in second] == toys.greedy(model, list(second.request.tokens), 5)
    assert list(second) == []


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"tokens": ()}, "empty"),
        ({"tokens": (0, 26)}, "26"),
        ({"tokens": (-1,)}, "-1"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 64}, "context"),
        ({"tokens": (1,) * 60, "max_tokens": 5}, "context"),
        ({"stop": ("",)}, "empty"),
        ({"stop": ("a",) * 17}, "16"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": 21}, "logprobs"),
    ],
)
def test_what_cannot_be_served_is_refused_before_it_costs(changes: dict[str, object], cause: str) -> None:
    chain = alphabet()
    engine = Engine(chain, text_stream=Letters)
    good: dict[str, object] = {"tokens": (1,), "max_tokens": 3}
    with pytest.raises(RequestError, match=cause):
        engine.submit(Request(**{**good, **changes}))  # type: ignore[arg-type]
    assert chain.log == []
    assert not engine.step()
    assert run_all(engine, [Request(tokens=(1,) * 60, max_tokens=4)]) == [[2, 3, 4, 5]]  # the context, filled


def test_stop_strings_need_text() -> None:
    with pytest.raises(RequestError, match="text"):
        Engine(alphabet()).submit(Request(tokens=(1,), max_tokens=3, stop=("a",)))
