"""The process that templates run in: what it may do, how fast it is, and that nothing of it is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from almanac.core.errors import RequestError, TemplateError, UnsupportedError
from almanac.tokenizers import template_process
from almanac.tokenizers.chat_template import ChatTemplate
from almanac.tokenizers.template_process import OUTPUT_BYTES, TemplateProcess, shared_process

CHILD = Path(template_process.__file__).with_name("template_child.py")
NOW = "2030-01-01T00:00:00"
ENDLESS = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"


@pytest.fixture
def process() -> Iterator[TemplateProcess]:
    process = TemplateProcess()
    yield process
    process.close()


def child_of(process: TemplateProcess) -> int:
    child = process._child
    assert child is not None
    return child.pid


def test_first_rendering_is_quick_and_later_ones_are_instant(process: TemplateProcess) -> None:
    assert process.render("{{ x }}", {"x": 1}, now=NOW) == "1"
    fields = Path(f"/proc/{child_of(process)}/stat").read_text().rpartition(")")[2].split()
    started_cpu_seconds = sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
    assert started_cpu_seconds < 0.5  # of the processor, so that a busy machine does not fail the test
    laters = []
    for _ in range(100):
        started = time.perf_counter()
        process.render("{% for m in x %}{{ m }}{% endfor %}", {"x": list(range(100))}, now=NOW)
        laters.append(time.perf_counter() - started)
    assert min(laters) < 0.002


def test_one_child_serves_many_renderings(process: TemplateProcess) -> None:
    process.render("a", {}, now=NOW)
    first = child_of(process)
    for template in ("b", "{{ 1 / 0 }}", "{% if %}", "c"):
        try:
            process.render(template, {}, now=NOW)
        except TemplateError:
            continue
    assert child_of(process) == first


def test_the_child_is_confined(process: TemplateProcess) -> None:
    process.render("a", {}, now=NOW)
    root = Path(f"/proc/{child_of(process)}")
    assert (root / "environ").read_bytes().strip(b"\0") in (b"", b"LC_CTYPE=C.UTF-8")  # set by Python itself
    assert (root / "cwd").readlink() == Path("/")
    assert sorted(entry.name for entry in (root / "fd").iterdir()) == ["0", "1", "2", "3"]
    assert (root / "fd" / "3").readlink().name == "statm"  # its own size, to be able to tell when it has grown
    assert (root / "fd" / "2").readlink() == Path(os.devnull)
    limits = {line[:25].strip(): line[25:].split()[:2] for line in (root / "limits").read_text().splitlines()}
    assert limits["Max open files"] == ["3", "3"]
    assert limits["Max file size"] == limits["Max processes"] == limits["Max core file size"] == ["0", "0"]
    pages = int((root / "statm").read_text().split()[0])
    headroom = int(limits["Max address space"][1]) - pages * os.sysconf("SC_PAGE_SIZE")
    assert abs(headroom - template_process.MEMORY_BYTES) < 32 * 1024 * 1024
    libraries = (root / "maps").read_text()
    assert "torch" not in libraries and "tokenizers" not in libraries


ATTEMPTS = {
    "open": "open('/etc/hostname')",
    "write": "open(CANARY, 'w')",
    "os.open": "os.open('/etc/hostname', 0)",
    "listdir": "os.listdir('/')",
    "import": "import colorsys",
    "ctypes": "import ctypes",
    "socket": "import socket; socket.socket()",
    "system": "os.system('touch ' + CANARY)",
    "fork": "os.fork()",
    "spawn": "os.posix_spawn('/bin/touch', ['touch', CANARY], {})",
    "exec": "os.execv('/bin/touch', ['touch', CANARY])",
    "remove": "os.remove(CANARY)",
    "kill": "os.kill(os.getppid(), 0)",
    "unhook": "sys.addaudithook(print)",
}


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_even_code_that_escaped_the_sandbox_gets_nowhere(tmp_path: Path, attempt: str) -> None:
    """As if Jinja's sandbox had been broken: Python code in the confined process, the audit hook before it."""
    canary = tmp_path / "canary"
    script = f"""
        import importlib.util, os, sys
        spec = importlib.util.spec_from_file_location("child", {str(CHILD)!r})
        child = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(child)
        CANARY = {str(canary)!r}
        child.confine(1 << 30)
        try:
            {ATTEMPTS[attempt]}
        finally:
            os.write(1, b"survived")
    """
    command = [sys.executable, "-I", "-S", "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, env={}, timeout=20)
    assert json.loads(done.stdout)["error"] == "forbidden", done.stderr
    assert done.returncode == 1
    assert not canary.exists()


def test_output_limit_is_exact(process: TemplateProcess) -> None:
    for text in ("a", "é", "😀", "\0"):
        most = OUTPUT_BYTES // len(text.encode())
        template = "{% for _ in range(n) %}{{ text * 1024 }}{% endfor %}{{ text * rest }}"
        variables = {"text": text, "n": most // 1024, "rest": most % 1024}
        assert process.render(template, variables, now=NOW) == text * most
        with pytest.raises(TemplateError, match="more than 1 MiB"):
            process.render(template, {**variables, "rest": most % 1024 + 1}, now=NOW)


def test_requests_are_bounded(process: TemplateProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_process, "REQUEST_BYTES", 1000)
    assert process.render("{{ x | length }}", {"x": "a" * 900}, now=NOW) == "900"
    with pytest.raises(RequestError, match="more than the 1,000"):
        process.render("{{ x | length }}", {"x": "a" * 1000}, now=NOW)


def test_large_requests_pass_through_the_pipe(process: TemplateProcess) -> None:
    assert process.render("{{ x | length }}", {"x": "é" * 2_000_000}, now=NOW) == "2000000"


def test_time_limit_is_a_second_and_the_next_rendering_works(process: TemplateProcess) -> None:
    process.render("warm", {}, now=NOW)
    started = time.monotonic()
    with pytest.raises(TemplateError, match=r"longer than 1 s|1 s of processor time"):
        process.render(ENDLESS, {}, now=NOW)
    assert 0.5 < time.monotonic() - started < 3.0
    assert process.render("ok", {}, now=NOW) == "ok"


def test_processor_limit_holds_without_the_parent(tmp_path: Path) -> None:
    """Should the parent hang or die, the kernel ends an endless template."""
    command = [
        sys.executable,
        "-I",
        "-S",
        str(CHILD),
        *("536870912", "67108864", "1000", "0.2"),  # memory, growth, output; then seconds
        *template_process._library_folders(),
    ]
    request = json.dumps({"source": ENDLESS, "variables": {}, "now": NOW, "mark": ""}).encode() + b"\n"
    done = subprocess.run(command, input=request, capture_output=True, env={}, timeout=20)
    assert done.returncode == -signal.SIGPROF


def test_processor_limit_is_named(process: TemplateProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_process, "WALL_SECONDS", 20.0)
    monkeypatch.setattr(template_process, "CPU_SECONDS", 0.2)
    with pytest.raises(TemplateError, match=r"0\.2 s of processor time"):
        process.render(ENDLESS, {}, now=NOW)


def test_a_child_that_has_grown_is_replaced(process: TemplateProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_process, "WORN_BYTES", 4 * 1024 * 1024)
    process.render("a", {}, now=NOW)
    first = child_of(process)
    assert process.render("{% set x = 'a' * 50000000 %}{{ x | length }}", {}, now=NOW) == "50000000"
    assert child_of(process) == first  # used and given back
    assert process.render("{{ a }}b" * 1500, {}, now=NOW) == "b" * 1500  # kept: compiled templates are cached
    assert process.render("c", {}, now=NOW) == "c"
    assert child_of(process) != first


def test_a_killed_child_is_replaced(process: TemplateProcess) -> None:
    for _ in range(3):
        process.render("a", {}, now=NOW)
        os.kill(child_of(process), signal.SIGKILL)
        time.sleep(0.05)
        assert process.render("b", {}, now=NOW) == "b"


def test_an_interrupt_does_not_shift_answers(process: TemplateProcess) -> None:
    process.render("a", {}, now=NOW)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            process.render(ENDLESS, {}, now=NOW)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert process.render("{{ x }}", {"x": 7}, now=NOW) == "7"


def test_threads_get_their_own_answers() -> None:
    template = ChatTemplate("{{ messages[0].content }}")
    wrong: list[str] = []

    def work(name: int) -> None:
        for turn in range(40):
            expected = f"{name}:{turn}"
            if template.render([{"role": "user", "content": expected}]) != expected:
                wrong.append(expected)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert shared_process() is shared_process()


def test_fork_and_exit_leave_no_process_and_no_warning(tmp_path: Path) -> None:
    script = """
        import os, signal, sys, threading, time
        from almanac.core.errors import TemplateError
        from almanac.tokenizers.chat_template import ChatTemplate
        from almanac.tokenizers.template_process import shared_process
        template = ChatTemplate("{{ messages[0].content }}")
        say = lambda text: template.render([{"role": "user", "content": text}])
        assert say("before") == "before"
        first = shared_process()._child.pid
        forked = os.fork()
        if forked == 0:
            assert say("inside") == "inside"
            assert shared_process()._child.pid != first
            print(shared_process()._child.pid, flush=True)
            sys.exit(0)
        assert os.waitpid(forked, 0)[1] == 0
        assert say("after") == "after"
        assert shared_process()._child.pid == first
        def hang():
            try:
                ChatTemplate(ENDLESS).render([])
            except TemplateError:
                pass
        thread = threading.Thread(target=hang)
        thread.start()
        time.sleep(0.3)
        forked = os.fork()  # while the thread holds the lock
        if forked == 0:
            signal.alarm(20)
            assert say("inside again") == "inside again"
            sys.exit(0)
        assert os.waitpid(forked, 0)[1] == 0
        thread.join()
        assert say("at last") == "at last"
        print(first, flush=True)
    """
    script = script.replace("ENDLESS", repr(ENDLESS))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    for pid in done.stdout.split():
        assert not Path(f"/proc/{pid}").exists()


def test_the_child_ends_with_its_parent() -> None:
    script = """
        import os, signal
        from almanac.tokenizers.template_process import shared_process
        shared_process().render("a", {}, now="2030-01-01T00:00:00")
        print(shared_process()._child.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    status = Path(f"/proc/{int(done.stdout)}/stat")
    deadline = time.monotonic() + 5
    while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z":  # a zombie waits for its reaper
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("not json", TemplateError),
        ("[1]", TemplateError),
        ('{"text": 3}', TemplateError),
        ('{"error": "new kind"}', TemplateError),
        ("[" * 100_000, TemplateError),
    ],
)
def test_a_child_that_answers_nonsense_is_ended(
    process: TemplateProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, error: type[Exception]
) -> None:
    """The child may have been taken over: its answers are data, bounded and checked."""
    fake = tmp_path / "template_child.py"
    fake.write_text(f"print('{{}}', flush=True)\ninput()\nprint({answer!r}, flush=True)\ninput()\n")
    monkeypatch.setattr(template_process, "__file__", str(tmp_path / "template_process.py"))
    with pytest.raises(error):
        process.render("a", {}, now=NOW)


def test_a_child_that_floods_is_ended(
    process: TemplateProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flood = "print('{}', flush=True)\ninput()\nwhile True:\n    print('x' * 65536, end='', flush=True)\n"
    (tmp_path / "template_child.py").write_text(flood)
    monkeypatch.setattr(template_process, "__file__", str(tmp_path / "template_process.py"))
    with pytest.raises(TemplateError, match="wrote more than it may"):
        process.render("a", {}, now=NOW)


def test_a_system_that_cannot_confine_is_refused(
    process: TemplateProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "template_child.py").write_text("raise SystemExit('no limits here')\n")
    monkeypatch.setattr(template_process, "__file__", str(tmp_path / "template_process.py"))
    with pytest.raises(UnsupportedError, match="did not start"):
        process.render("a", {}, now=NOW)
