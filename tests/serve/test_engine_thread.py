"""The engine's thread: company changes nothing, cancelling stops within a token, faults and full queues are survived."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from typing import Any

import pytest
import torch

from almanac.assistant.ask import Assistant
from almanac.generate.engine import Engine, Event, Request
from almanac.generate.sampling import sampling
from almanac.serve.engine_thread import EngineFailedError, EngineThread, Run
from almanac.serve.errors import RefusedError
from almanac.serve.limits import Limits


class Watched(Engine):
    """Counts the steps, may be slow, and may fail once."""

    steps = 0
    seconds = 0.0
    fail_at = -1

    def step(self) -> bool:
        type(self).steps += 1
        if type(self).steps == type(self).fail_at:
            raise RuntimeError("a secret of a user")
        time.sleep(self.seconds)
        return super().step()


@pytest.fixture
def watched() -> type[Watched]:
    class Fresh(Watched):
        pass

    return Fresh


def thread_of(assistant: Assistant, kind: type[Engine] = Engine, **limits: Any) -> EngineThread:
    made = Limits(**limits)
    plain = assistant.lm.engine()
    return EngineThread(lambda: kind(plain.network, text_stream=plain.text_stream, max_rows=made.rows), limits=made)


def request(assistant: Assistant, index: int, max_tokens: int = 12) -> Request:
    ids = assistant.lm.tokenizer.encode(f"Ship {index} " + "and so on " * (index % 5), allow_special=False)
    return assistant.lm.request(ids, max_tokens=max_tokens, sampling=sampling(temperature=1.0, seed=index))


async def text_of(run: Run) -> str:
    return "".join([event.text async for _, event in run.events()])


async def settled(thread: EngineThread) -> int:
    """Rows still taken once everything that was cancelled had time to end."""
    for _ in range(200):
        if not thread.taken:
            break
        await asyncio.sleep(0.01)
    return thread.taken


def test_the_same_seed_gives_the_same_text_whatever_runs_beside_it(assistant: Assistant) -> None:
    def alone(index: int) -> str:
        events = assistant.lm.engine().submit(request(assistant, index))
        return "".join(event.text for event in events)

    async def together() -> list[str]:
        thread = thread_of(assistant, rows=7)
        thread.start()
        with ExitStack() as stack:
            runs = []
            for index in range(24):
                runs.append(thread.submit([request(assistant, index)], stack))
                if index % 3 == 0:  # some leave in the middle
                    thread.submit([request(assistant, 100 + index, 200)], stack).cancel()
                await asyncio.sleep(0.002)
            texts = await asyncio.gather(*map(text_of, runs))
        assert await settled(thread) == 0
        thread.stop()
        return texts

    assert asyncio.run(together()) == [alone(index) for index in range(24)]


def test_cancelling_stops_the_computing_within_one_token(assistant: Assistant, watched: type[Watched]) -> None:
    async def story() -> tuple[int, float]:
        watched.seconds = 0.02
        thread = thread_of(assistant, watched)
        thread.start()
        with ExitStack() as stack:
            run = thread.submit([request(assistant, 1, 500)], stack)
            await run.started(5, retry_after=1)
            events = aiter(run.events())
            for _ in range(3):
                await anext(events)
            before, began = watched.steps, time.monotonic()
        while thread.taken:
            await asyncio.sleep(0.001)
        seconds = time.monotonic() - began
        await asyncio.sleep(0.1)
        steps = watched.steps - before
        thread.stop()
        return steps, seconds

    steps, seconds = asyncio.run(story())
    assert steps <= 3  # one under way, one that drops it, one that was ahead of the event loop
    assert seconds <= 0.25


def test_a_failed_step_is_told_and_survived(
    assistant: Assistant, watched: type[Watched], caplog: pytest.LogCaptureFixture
) -> None:
    made: list[Engine] = []

    async def story() -> tuple[str, int]:
        thread = thread_of(assistant, watched)
        make = thread.make
        thread.make = lambda: made.append(make()) or made[-1]  # type: ignore[func-returns-value]
        thread.start()
        with ExitStack() as stack:
            watched.fail_at = 4
            runs = [thread.submit([request(assistant, i), request(assistant, i + 9)], stack) for i in range(2)]
            for run in runs:
                with pytest.raises(EngineFailedError):
                    await text_of(run)
            after = await text_of(thread.submit([request(assistant, 1)], stack))
        taken = await settled(thread)
        thread.stop()
        return after, taken

    after, taken = asyncio.run(story())
    assert after == "".join(event.text for event in assistant.lm.engine().submit(request(assistant, 1)))
    assert taken == 0
    assert len(made) == 2  # the rows that the failed step left half done are gone with their engine
    assert "RuntimeError" in caplog.text and "secret" not in caplog.text


def test_the_queue_is_bounded_exactly_and_all_or_nothing(assistant: Assistant, watched: type[Watched]) -> None:
    async def story() -> list[int]:
        watched.seconds = 0.05
        thread = thread_of(assistant, watched, rows=2, queue=3)
        thread.start()
        counts = []
        with ExitStack() as stack:
            for wanted in (2, 2):
                thread.submit([request(assistant, i, 100) for i in range(wanted)], stack)
                counts.append(thread.taken)
            with pytest.raises(RefusedError, match="queue is full") as full:
                thread.submit([request(assistant, i, 100) for i in range(2)], stack)
            assert full.value.status == 503 and full.value.retry_after
            counts.append(thread.taken)
            thread.submit([request(assistant, 9, 100)], stack)
            counts.append(thread.taken)
            with pytest.raises(RefusedError):
                thread.submit([request(assistant, 9, 100)], stack)
        counts.append(await settled(thread))
        thread.stop()
        return counts

    assert asyncio.run(story()) == [2, 4, 4, 5, 0]


def test_a_late_first_token_is_a_503_and_lets_go(assistant: Assistant, watched: type[Watched]) -> None:
    async def story() -> int:
        watched.seconds = 0.3
        thread = thread_of(assistant, watched)
        thread.start()
        with ExitStack() as stack:
            run = thread.submit([request(assistant, 1)], stack)
            with pytest.raises(RefusedError, match="in time") as late:
                await run.started(0.05, retry_after=7)
            assert (late.value.status, late.value.retry_after) == (503, 7)
        left = await settled(thread)
        thread.stop()
        return left

    assert asyncio.run(story()) == 0


def test_stopping_tells_whoever_waits(assistant: Assistant, watched: type[Watched]) -> None:
    async def story() -> None:
        watched.seconds = 0.01
        thread = thread_of(assistant, watched)
        thread.start()
        with ExitStack() as stack:
            run = thread.submit([request(assistant, 1, 500)], stack)
            await run.started(5, retry_after=1)
            await asyncio.to_thread(thread.stop)
            with pytest.raises(EngineFailedError):
                await text_of(run)

    asyncio.run(story())


def test_nothing_of_one_request_serves_another(assistant: Assistant) -> None:
    """No cache across requests (R22): the same prompt again is computed again, whole."""
    network = assistant.lm.network
    fed: list[int] = []
    plain = network.hidden

    class Counting:
        context_length, vocab_size = network.context_length, network.vocab_size
        logits, init_state = staticmethod(network.logits), staticmethod(network.init_state)

        def hidden(self, tokens: torch.Tensor, state: Any = None) -> Any:
            fed.append(tokens.shape[1])
            return plain(tokens, state)

    async def story() -> list[Event]:
        text_stream = assistant.lm.engine().text_stream
        thread = EngineThread(lambda: Engine(Counting(), text_stream=text_stream), limits=Limits())
        thread.start()
        events = []
        with ExitStack() as stack:
            for _ in range(3):
                run = thread.submit([request(assistant, 4, 1)], stack)
                events += [event async for _, event in run.events()]
        thread.stop()
        return events

    asyncio.run(story())
    assert fed == [len(request(assistant, 4).tokens)] * 3
