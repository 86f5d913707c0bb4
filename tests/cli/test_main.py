"""The overview is light, every verb explains itself, and every failure has a cause, a remedy and an exit code."""

from __future__ import annotations

import errno
import importlib
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import almanac as package
from almanac.cli import environment, main
from almanac.core import errors
from almanac.core.errors import AlmanacError

HEAVY = {"torch", "numpy", "transformers", "tokenizers", "safetensors", "huggingface_hub"}
CODES = {
    "AlmanacError": 1,
    "ArchitectureError": 2,
    "FileFormatError": 2,
    "IntegrityError": 3,
    "LockedError": 1,
    "MissingExtraError": 1,
    "NotFoundError": 2,
    "ParityError": 3,
    "PreflightError": 2,
    "RequestError": 2,
    "SelectionError": 2,
    "ShapeError": 2,
    "TemplateError": 2,
    "TrainingError": 1,
    "UnsafeFileError": 2,
    "UnsupportedError": 2,
}


def child(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    command = [sys.executable, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **options)


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Makes ``almanac list`` raise."""

    def fail(kind: str | None = None, /, *, json: bool = False) -> int:
        raise error

    monkeypatch.setattr("almanac.cli.listing.listing", fail)


def all_errors(root: type[AlmanacError] = AlmanacError) -> Iterator[type[AlmanacError]]:
    yield root
    for kind in root.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield from all_errors(kind)


def test_the_overview_and_every_page_of_help_import_nothing_heavy() -> None:
    script = """
import contextlib, io, sys
from almanac.cli.main import VERBS, run
out = io.StringIO()
with contextlib.redirect_stdout(out):
    codes = [run(["--help"])]
light = set(sys.modules)
with contextlib.redirect_stdout(out):
    codes += [run([verb, "--help"]) for verb in VERBS]
print(codes, sorted(light), sorted(sys.modules), sep="\\n")
"""
    done = child("-c", script)
    codes, overview, pages = map(eval_list, done.stdout.splitlines())
    assert codes == [0] * (1 + len(main.VERBS)), done.stderr
    assert HEAVY.isdisjoint(overview) and HEAVY.isdisjoint(pages)
    assert not any(name.startswith("almanac.cli.") and name.rpartition(".")[2] in main.VERBS for name in overview)


def eval_list(text: str) -> list[Any]:
    """A printed list of numbers or names."""
    return json.loads(text.replace("'", '"'))


def test_the_overview_names_every_verb(almanac: Callable[..., Any]) -> None:
    for words in (["--help"], []):
        out = almanac(*words).out
        assert all(f" {verb} " in out and summary in out for verb, (_, _, summary) in main.VERBS.items())


@pytest.mark.parametrize("verb", main.VERBS)
def test_every_verb_has_an_example_json_and_the_summary_of_the_overview(verb: str, almanac: Callable[..., Any]) -> None:
    place, _, summary = main.VERBS[verb]
    module, _, name = place.partition(":")
    function = getattr(importlib.import_module(module), name)
    assert (inspect.getdoc(function) or "").splitlines()[0] == summary
    page = almanac(verb, "--help")
    assert page.code == 0 and summary in page.out and "--json" in page.out
    example = page.out.partition(summary)[2].partition("╭")[0]
    assert f" almanac {verb}" in example


def test_version_is_the_packages(almanac: Callable[..., Any]) -> None:
    assert almanac("--version").out.strip() == package.__version__


def test_python_m_almanac_is_the_command() -> None:
    done = child("-m", "almanac", "frobnicate")
    assert done.returncode == 2 and done.stdout == ""
    first, second = done.stderr.splitlines()
    assert first.startswith('error: Unknown command "frobnicate"') and second.startswith("remedy: ")


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["lsit"], 'Did you mean "list"?'),
        (["generate", "m"], "PROMPT requires an argument"),
        (["generate", "m", "p", "--tempature", "1"], "Did you mean --temperature"),
        (["generate", "m", "--tempature", "1", "p"], "Did you mean --temperature"),
        (["list", "model"], 'Choose from: "models"'),
        (["export", "m", "o", "--format", "onnx"], '"hf", "gguf", "peft"'),
        (["chat", "-"], "Unknown option: -"),
    ],
)
def test_a_wrong_command_line_is_told_with_the_page_to_read(
    words: list[str], cause: str, almanac: Callable[..., Any]
) -> None:
    result = almanac(*words)
    assert result.code == 2 and cause in result.err.splitlines()[0]
    page = f"almanac {words[0]} --help" if words[0] in main.VERBS else "almanac --help"
    assert f"`{page}`" in result.err.splitlines()[1] and "\0" not in result.err


@pytest.mark.parametrize("kind", list(all_errors()), ids=lambda kind: kind.__name__)
def test_every_error_of_the_tree_has_its_exit_code(
    kind: type[AlmanacError], almanac: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    raising(monkeypatch, kind("The file\nis odd", remedy="Get another."))
    result = almanac("list")
    assert (result.code, result.err) == (CODES[kind.__name__], "error: The file is odd\nremedy: Get another.\n")
    raising(monkeypatch, kind("The file is odd", remedy="Get another."))
    told = json.loads(almanac("list", "--json").err)
    code = CODES[kind.__name__]
    assert told == {
        "error": "The file is odd", "remedy": "Get another.", "kind": kind.__name__, "exit_code": code
    }  # fmt: skip


def test_an_unexpected_failure_is_short_until_debug_is_asked_for(
    almanac: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    raising(monkeypatch, ZeroDivisionError("division by zero"))
    result = almanac("list")
    assert result.code == 1 and "ZeroDivisionError: division by zero" in result.err and "--debug" in result.err
    assert "Traceback" not in result.err and len(result.err.splitlines()) == 2
    assert "Traceback" in almanac("list", "--debug").err
    assert "Traceback" in almanac("--debug", "list").err


def test_a_full_disk_names_the_file_and_what_to_do(
    almanac: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    raising(monkeypatch, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/model"))
    result = almanac("list")
    assert result.code == 1
    assert result.err == (
        "error: No space left on device: /data/model\nremedy: Free some space, then run the same command again.\n"
    )


def test_too_little_memory_is_told_as_such(almanac: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, MemoryError())
    assert almanac("list").err.startswith("error: There is not enough memory\n")


def test_an_interruption_says_what_it_left(almanac: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, KeyboardInterrupt())
    result = almanac("list")
    assert (result.code, result.err.strip()) == (130, "interrupted: Nothing was changed.")
    noted = KeyboardInterrupt()
    noted.add_note("Half of it is there.")
    raising(monkeypatch, noted)
    assert almanac("list").err.strip() == "interrupted: Half of it is there."


def test_debug_after_two_hyphens_is_a_word_like_any_other(
    almanac: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []

    def hear(model: str, prompt: str, /, *, json: bool = False) -> int:
        heard.append(prompt)
        return 0

    monkeypatch.setattr("almanac.cli.generate.generate", hear)
    assert almanac("generate", "m", "--", "--debug").code == 0
    assert almanac("generate", "m", "--", "-").code == 0
    assert heard == ["--debug", "-"]


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = [sys.executable, "-m", "almanac", "list", "aliases"]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert writer.stdout is not None and writer.stderr is not None
    writer.stdout.close()
    assert (writer.stderr.read(), writer.wait(60)) == ("", 141)
    writer.stderr.close()


def test_the_switches_spare_what_the_user_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_ours", set())
    for name in environment.SWITCHES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "online")
    environment.switch_telemetry_off()
    assert os.environ["WANDB_MODE"] == "online"
    assert {name: os.environ[name] for name in environment.SWITCHES} == {**environment.SWITCHES, "WANDB_MODE": "online"}
    environment.allow_hub()
    assert "HF_HUB_OFFLINE" not in os.environ


def test_a_hub_that_the_user_forbade_stays_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_ours", set())
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    environment.switch_telemetry_off()
    environment.allow_hub()
    assert os.environ["HF_HUB_OFFLINE"] == "1"
