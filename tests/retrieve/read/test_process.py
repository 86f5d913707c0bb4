"""The reading process: what a reader in hostile hands can do is nothing but fail, and only its own file pays."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from almanac.core.errors import FileFormatError, NotFoundError
from almanac.retrieve.read.formats import Format
from almanac.retrieve.read.process import ReaderProcess, shared_process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are confined on Linux only")
PLANTED = Path(__file__).parent / "planted"
KNOWN = {".hostile": Format("hostile_reader"), ".md": Format("almanac.retrieve.read.markdown")}


@pytest.fixture(scope="module")
def process() -> Iterator[ReaderProcess]:
    made = ReaderProcess(KNOWN, folders=(str(PLANTED),), seconds=1, memory_bytes=128 << 20)
    yield made
    made.close()


def told(process: ReaderProcess, action: str) -> str:
    """The text that the reader made, or the reason why there is none."""
    outcome = process.read(action.encode(), "a.hostile")
    if outcome.readings:
        assert not outcome.skipped
        return outcome.readings[0].document.text
    (name, error), *others = outcome.skipped.items()
    assert not others
    assert name == "a.hostile"
    assert isinstance(error, FileFormatError)
    assert error.remedy
    return error.cause


def still_reads(process: ReaderProcess) -> None:
    outcome = process.read(b"# Fine\n\ntext", "b.md")
    assert [reading.document.text for reading in outcome.readings] == ["text"]


@pytest.mark.parametrize(
    ("action", "event"),
    [
        ("open {own}", "open"),
        ("open /etc/hostname", "open"),
        ("write {folder}/new", "open"),
        ("descriptor {own}", "open"),
        ("listdir {folder}", "os.listdir"),
        ("remove {own}", "os.remove"),
        ("rename {own}", "os.rename"),
        ("mkdir {folder}/new", "os.mkdir"),
        ("chmod {own}", "os.chmod"),
        ("truncate {own}", "os.truncate"),
        ("socket", "socket.__new__"),
        ("resolve", "socket.getaddrinfo"),
        ("subprocess", "subprocess.Popen"),
        ("system true", "os.system"),
        ("fork", "os.fork"),
        ("exec", "os.exec"),
        ("spawn", "os.posix_spawn"),
        ("kill", "os.kill"),
        ("killpg", "os.killpg"),
        ("library", "ctypes.dlopen"),
    ],
)
def test_every_way_out_is_closed_and_named(process: ReaderProcess, tmp_path: Path, action: str, event: str) -> None:
    own = tmp_path / "own.txt"
    own.write_text("untouched")
    assert told(process, action.format(own=own, folder=tmp_path)) == (
        f"a.hostile was stopped: its reader attempted {event}"
    )
    assert own.read_text() == "untouched"
    assert own.stat().st_mode & 0o777
    assert [path.name for path in tmp_path.iterdir()] == ["own.txt"]
    still_reads(process)


def test_late_imports_are_refused(process: ReaderProcess) -> None:
    assert "ImportError: sqlite3 was not imported before the file was opened" in told(process, "import")


def test_a_thread_cannot_outlive_its_file(process: ReaderProcess) -> None:
    told(process, "thread")
    still_reads(process)


def test_native_code_reaches_no_network(process: ReaderProcess) -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        assert told(process, f"native_connect {port}").startswith("no ")
        if not process.isolated:
            pytest.skip("this kernel grants no network namespace: only Python's own sockets are refused")
        with pytest.raises(TimeoutError):
            server.accept()


def test_native_code_opens_no_file(process: ReaderProcess, tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("untouched")
    assert told(process, f"native_open {own}").startswith("not opened")
    assert told(process, f"native_write {tmp_path}/new").startswith("not opened")
    assert [path.name for path in tmp_path.iterdir()] == ["own.txt"]


def test_the_environment_is_empty(process: ReaderProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALMANAC_TOKEN", "secret")
    with contextlib.closing(ReaderProcess(KNOWN, folders=(str(PLANTED),))) as fresh:
        assert "ALMANAC" not in told(fresh, "environment")


def test_one_file_leaves_nothing_to_the_next(process: ReaderProcess) -> None:
    assert told(process, "keep x") == "kept"
    assert told(process, "kept") == "0"


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("spin", "takes longer than (1 s of processor time|2 s)"),
        ("ignore", "takes longer than 2 s|ended by the system"),
        ("native_sleep", "takes longer than 2 s"),
        ("sleep", "attempted time.sleep|takes longer than 2 s"),
        ("allocate", "needs more than 128 MiB of memory"),
        ("grow", "needs more than 128 MiB of memory"),
        ("crash", "ended the process that read it .signal 11."),
        ("abort", "ended the process that read it .signal 6."),
        ("end", "ended the process that read it"),
        ("exit", "ended the process that read it"),
        ("interrupt", "ended the process that read it"),
        ("recurse", "its reader failed: RecursionError: on purpose"),
        ("fail", "its reader failed: ValueError: on purpose"),
        ("frames", "made its reader answer nonsense"),
        ("frames 100000", "made its reader answer nonsense"),
        ("flood", "made its reader answer nonsense"),
        ("forged", "made its reader answer nonsense"),
        ("closed", "ended the process that read it"),
    ],
)
def test_harm_costs_one_file_and_little_time(process: ReaderProcess, action: str, reason: str) -> None:
    started = time.monotonic()
    assert re.search(reason, told(process, action))
    assert time.monotonic() - started < 8
    still_reads(process)


def test_memory_is_limited_for_the_file_not_for_the_parent(process: ReaderProcess) -> None:
    assert len(bytearray(256 << 20)) == 256 << 20
    assert told(process, "many 100000").count("word") == 100_000


def test_the_child_is_reused_until_it_is_harmed_and_nothing_is_left_running(process: ReaderProcess) -> None:
    still_reads(process)
    child = process._child
    assert child is not None
    told(process, "fail")
    still_reads(process)
    assert process._child is child
    told(process, "native_sleep")
    assert child.poll() is not None
    assert gone(child.pid)
    still_reads(process)
    second = process._child
    assert second is not None
    process.close()
    assert second.poll() is not None
    assert gone(second.pid)
    still_reads(process)


def gone(leader: int) -> bool:
    """Whether a group ends within three seconds: the kernel buries at its leisure."""
    deadline = time.monotonic() + 3
    while _group(leader) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not _group(leader)


def _group(leader: int) -> list[int]:
    """The living processes of a group."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == leader and fields[0] != "Z":
                found.append(int(folder.name))
    return found


def test_an_interrupt_ends_the_child_and_goes_on_to_the_caller(process: ReaderProcess) -> None:
    still_reads(process)
    child = process._child
    assert child is not None
    timer = threading.Timer(0.3, lambda: signal.raise_signal(signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        process.read(b"native_sleep", "a.hostile")
    timer.join()
    assert child.poll() is not None
    assert gone(child.pid)
    still_reads(process)


def test_nothing_outlives_a_killed_parent() -> None:
    script = (
        "import sys\nfrom almanac.retrieve.read.formats import Format\n"
        "from almanac.retrieve.read.process import ReaderProcess\n"
        "process = ReaderProcess({'.hostile': Format('hostile_reader')}, folders=(sys.argv[1],), seconds=2)\n"
        "process.read(b'say x', 'a.hostile')\nprint(process._child.pid, flush=True)\n"
        "process.read(b'native_sleep', 'a.hostile')\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(PLANTED)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    group = int(parent.stdout.readline())
    time.sleep(0.2)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert gone(group)


def test_many_threads_share_it(process: ReaderProcess) -> None:
    answers: dict[int, str] = {}

    def ask(number: int) -> None:
        answers[number] = process.read(f"say {number}".encode(), "a.hostile").readings[0].document.text

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: str(number) for number in range(8)}


def test_a_fork_of_the_parent_starts_its_own(process: ReaderProcess) -> None:
    still_reads(process)
    child = process._child
    assert child is not None
    fork = os.fork()
    if fork == 0:
        code = 1
        with contextlib.suppress(BaseException):
            still_reads(process)
            code = int(process._child is child)
            process.close()
        os._exit(code)
    assert os.waitpid(fork, 0)[1] == 0
    still_reads(process)
    assert process._child is child


def test_an_unknown_kind_is_an_error(process: ReaderProcess) -> None:
    with pytest.raises(NotFoundError, match=r"x\.bin has no reader for \.bin.*\.md"):
        process.read(b"", "x.bin")


def test_the_shared_process_has_an_empty_network_where_the_kernel_grants_one() -> None:
    assert shared_process().read(b"words", "a.txt").readings
    granted = subprocess.run(["unshare", "-Un", "true"], capture_output=True, check=False).returncode == 0
    assert shared_process().isolated or not granted


def test_importing_the_readers_imports_nothing_heavy() -> None:
    script = (
        "import sys\nimport almanac.retrieve.read.folder as folder, almanac.data.grounded\n"
        "import almanac.retrieve.chunk.headings\nfolder.readers()\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"torch", "numpy", "pypdfium2", "docx", "lxml", "tokenizers"}
