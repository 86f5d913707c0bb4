"""The page of training runs in a real browser, on the real server, over run folders that grow while it looks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from serve.ui.browsing import Visit
from serve.ui.payloads import scripts
from serve.ui.stub import State

from almanac.files.store import Lock

pytest.importorskip("almanac.serve.pages", reason="needs the extra 'serve'", exc_type=ImportError)
world = pytest.importorskip("serve.world", reason="needs the extra 'serve'", exc_type=ImportError)
CHECKS = Path(__file__).parent / "checks"
Begin = Callable[..., Visit]


def lines(first: int, last: int, factor: float = 1.0) -> str:
    rows = (
        {"step": s, "loss": factor * (1 + 5 / s), "learning_rate": 0.001, "gradient_norm": 1.0, "tokens": 100, "seconds": 0.5}
        for s in range(first, last + 1)
    )  # fmt: skip
    return "".join(json.dumps(row) + "\n" for row in rows)


def run_in(
    root: Path, title: str, *, done: int = 40, steps: int = 100, sample: str = "Once there was", factor: float = 1.0
) -> Path:
    folder = root / title / ".pretrain" / "run"
    folder.mkdir(parents=True)
    facts = {"version": 1, "identity": {"settings": {"steps": steps}}, "forecast": {"seconds": 60.0, "peak_bytes": 2e9}}
    (folder / "run.json").write_text(json.dumps(facts))
    (folder / "metrics.jsonl").write_text(lines(1, done, factor))
    measured = [
        {"step": s, "loss": 4.0 - s / 50, "bits_per_byte": 2.0, "sample": f"{sample} {s}"}
        for s in range(0, done + 1, 5)
    ]
    (folder.parent / "measured.jsonl").write_text("".join(json.dumps(item) + "\n" for item in measured))
    return folder


@pytest.fixture
def look(browser: Any, visit: Begin) -> Iterator[Callable[..., Visit]]:
    """A function that serves a folder of runs and gives a watched page, opened at an address of it."""
    with ExitStack() as stack:

        def begin(
            root: Path, at: str = "runs", *, token_file: str = "", settled: str = "#chosen svg", **context: Any
        ) -> Visit:
            port = stack.enter_context(world.shown_runs(root, token_file=token_file))
            seen = visit(State(), **context)
            seen.origin = f"http://127.0.0.1:{port}"
            seen.page.goto(f"{seen.origin}/{at}")
            seen.page.wait_for_selector(settled)
            return seen

        yield begin


def check(page: Any, name: str) -> Any:
    return page.evaluate((CHECKS / f"{name}.js").read_text())


def charts(page: Any) -> list[str]:
    return [title.inner_text() for title in page.locator(".curve:not([hidden]) h2").all()]


def test_a_run_grows_before_the_eye(tmp_path: Path, look: Callable[..., Visit]) -> None:
    folder = run_in(tmp_path, "books")
    with Lock(folder):
        seen = look(tmp_path)
        page = seen.page
        page.wait_for_selector(".run-facts :text('40 of 100 (40 %)')")
        assert page.inner_text("#runs-facts") == "1 run, 1 running"
        assert "30 s" in page.inner_text(".run-facts")  # the time left
        assert charts(page) == [
            "Training loss, nats a token", "Loss on held-out text, nats a token", "Bits a byte of held-out text",
            "Learning rate", "Gradient norm", "Tokens a second",
        ]  # fmt: skip
        assert page.locator(".sample").count() == 4
        assert page.locator(".sample p").first.inner_text() == "Once there was 40"
        page.click("text=Show the earlier samples")
        assert page.locator(".sample").count() == 9
        before = page.get_attribute(".curve polyline", "points")
        with (folder / "metrics.jsonl").open("a") as stream:
            stream.write(lines(41, 70))
        page.wait_for_selector(".run-facts :text('70 of 100 (70 %)')")
        after = page.get_attribute(".curve polyline", "points")
        assert len(before.split()) == 40 and len(after.split()) == 70
        assert page.locator(".sample").count() == 9  # still open
    page.wait_for_selector(".state.stopped")
    assert "Forecast and measured" in page.inner_text(".more") and "2 GB" in page.inner_text(".more")
    assert all("/v1/" in path or "/ui/" in path or path == "/runs" for path in seen.inside)
    seen.calm()


def test_runs_are_compared(tmp_path: Path, look: Callable[..., Visit]) -> None:
    for number in range(8):
        run_in(tmp_path, f"run-{number}", factor=1 + number, done=20 + number)
    page = look(tmp_path, f"runs#/{'run-1/.pretrain/run'.replace('/', '%2F')}").page
    assert page.locator(".curve polyline.line.s0").count() and not page.locator(".line.s1").count()
    page.check("[aria-label='Show the curves of run-3']")
    page.wait_for_selector(".line.s1")
    assert page.is_hidden(".run-facts")
    readout = page.inner_text(".curve .readout >> nth=0")
    assert "run-1 2.476 at step 21" in readout and "run-3 4.87 at step 23" in readout
    for number in (0, 2, 4, 5):
        page.check(f"[aria-label='Show the curves of run-{number}']")
    page.wait_for_selector(".curve .line.s5")
    assert page.is_disabled("[aria-label='Show the curves of run-7']")
    assert (
        page.evaluate(
            "new Set([...document.querySelectorAll('.curve:first-child .line')].map(l => getComputedStyle(l).stroke)).size"
        )
        == 6
    )
    page.reload()
    page.wait_for_selector(".line.s5")  # the address remembers
    page.click(".run-title >> text=run-7")
    page.wait_for_selector(".run-facts :text('27 of 100')")
    assert page.locator(".runs-table input:checked").count() == 1


def test_a_run_begun_again_replaces_its_curve(tmp_path: Path, look: Callable[..., Visit]) -> None:
    folder = run_in(tmp_path, "books")
    with Lock(folder):
        page = look(tmp_path).page
        page.wait_for_selector(".run-facts :text('40 of 100')")
        fresh = folder / "fresh"
        fresh.write_text(lines(1, 9) + '{"step": 10')
        fresh.replace(folder / "metrics.jsonl")
        page.wait_for_selector(".run-facts :text('9 of 100')")
        assert len(page.get_attribute(".curve polyline", "points").split()) == 9
        assert page.is_hidden(".chosen-head .hint")


def test_keys_read_a_curve(tmp_path: Path, look: Callable[..., Visit]) -> None:
    run_in(tmp_path, "books")
    seen = look(tmp_path)
    page = seen.page
    page.focus(".curve svg >> nth=0")
    for key, told in (
        ("Home", "6 at step 1"),
        ("ArrowRight", "3.5 at step 2"),
        ("End", "1.125 at step 40"),
        ("ArrowLeft", "at step 39"),
    ):
        page.keyboard.press(key)
        assert told in page.inner_text(".readout >> nth=0")
        assert told in page.inner_text("#announcer")
    page.keyboard.press("Escape")
    assert page.locator(".cross line").count() == 0
    box = page.locator(".curve svg >> nth=0").bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 50)
    assert "at step 1" in page.inner_text(".readout >> nth=0")
    steep = page.get_attribute(".curve polyline", "points")
    page.check("#logarithmic")
    assert page.get_attribute(".curve polyline", "points") != steep
    label = page.get_attribute(".curve svg >> nth=0", "aria-label")
    assert label == "Training loss, nats a token. books: 6 at step 1, 1.125 at step 40"
    seen.calm()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_colours_names_and_width(tmp_path: Path, look: Callable[..., Visit], scheme: str, width: int) -> None:
    for number in range(3):
        run_in(tmp_path, f"a-run-with-a-name-that-is-rather-long-{number}" * (1 + 2 * (number == 2)))
    seen = look(tmp_path, color_scheme=scheme, viewport={"width": width, "height": 800})
    page = seen.page
    page.click("summary")
    for _ in range(2):
        texts, faint = check(page, "contrast")
        assert texts > 40 and faint == []
        assert check(page, "names") == []
        assert check(page, "overflow") == []
        for box in page.locator(".runs-table input").all():
            box.check()
        page.wait_for_selector(".line.s2")
    seen.calm()


def test_hostile_texts_are_texts(tmp_path: Path, look: Callable[..., Visit]) -> None:
    """R34: names, settings and samples are all the payloads at once."""
    text = "\n".join(scripts())
    folder = run_in(tmp_path, "<img src=x onerror=pwned(1)>", sample=text)
    facts = {"version": 1, "identity": {"settings": {"steps": 100, "<script>pwned(2)</script>": text}}}
    (folder / "run.json").write_text(json.dumps(facts))
    seen = look(tmp_path)
    page = seen.page
    page.click("summary")
    assert "<img src=x onerror=pwned(1)>" in page.inner_text(".runs-table")
    assert "pwned" in page.inner_text(".sample >> nth=0")
    assert page.locator("main :is(img, script, iframe, style, object, embed, link, foreignObject)").count() == 0
    seen.calm()


def test_a_token_is_asked_for(tmp_path: Path, look: Callable[..., Visit]) -> None:
    run_in(tmp_path / "runs", "books")
    seen = look(tmp_path / "runs", token_file=str(world.token_file(tmp_path)), settled="#token-dialog[open]")
    page = seen.page
    page.fill("#token-field", world.TOKENS["ada"])
    page.click("text=Use this token")
    page.wait_for_selector(".run-facts :text('40 of 100')")
    assert not any(world.TOKENS["ada"] in path for path in seen.inside)
    assert seen.outside == [] and seen.trouble == []


def test_an_empty_folder_fills(tmp_path: Path, look: Callable[..., Visit]) -> None:
    seen = look(tmp_path, settled="#runs-facts:has-text('no training runs')")
    run_in(tmp_path, "books")
    seen.page.wait_for_timeout(2500)  # the server looks again
    seen.page.reload()
    assert seen.page.wait_for_selector(".run-facts :text('40 of 100')")
    seen.calm()
