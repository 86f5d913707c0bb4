"""The process that loads what was planted, and tells what it did meanwhile. Run as a script:

python load_worker.py CASES.json REPORT.json OUTSIDE SOUND...
"""

from __future__ import annotations

import dataclasses
import json
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

ALWAYS = (
    "os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "os.forkpty", "pty.spawn", "os.remove", "os.rename",
    "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.chown", "os.truncate", "os.utime", "os.putenv",
    "os.kill", "ctypes.dlopen", "pickle.find_class", "sqlite3.connect", "webbrowser.open", "urllib.Request",
    "http.client.connect", "http.client.send", "ftplib.connect", "smtplib.connect", "cpython.run_command",
    "cpython.run_file", "cpython.run_module", "code.__new__", "shutil.rmtree", "shutil.copyfile", "shutil.move",
    "shutil.unpack_archive", "shutil.make_archive", "tempfile.mkdtemp", "tempfile.mkstemp", "gc.get_objects",
)  # fmt: skip
WRITING = ("w", "a", "x", "+")
TEMPLATE_CHILD = "template_child.py"


class Watch:
    """Keeps every audit event that a loader has no business with, while ``case`` is set."""

    def __init__(self, outside: Path, root: Path) -> None:
        self.case: str | None = None
        self.events: list[dict[str, str]] = []
        self.children = 0
        self.outside, self.root = str(outside.resolve()), str(root.resolve())
        paths = sysconfig.get_paths()
        libraries = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
        # where imports look: the libraries and whatever was on the path before anything was loaded
        self.trusted = tuple({*libraries, *filter(None, sys.path)})
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.case is None:
            return
        problem = self._problem(event, arguments)
        if problem:
            self.events.append({"case": self.case, "event": event, "what": problem[:300]})

    def _problem(self, event: str, arguments: tuple[Any, ...]) -> str:
        if event in ALWAYS or event.startswith("socket."):
            return repr(arguments)
        if event == "subprocess.Popen":
            if any(str(word).endswith(TEMPLATE_CHILD) for word in arguments[1]):
                self.children += 1
                return ""
            return repr(arguments)
        if event in ("exec", "compile"):
            code = arguments[0]
            name = arguments[1] if event == "compile" else getattr(code, "co_filename", "?")
            made_by = sys._getframe(2).f_code.co_filename  # dataclasses write their methods as text
            generated = name == "<string>" and made_by == dataclasses.__file__
            return "" if generated or self._is_ours(str(name)) else f"{name}: {str(code)[:100]}"
        if event == "open":
            return self._opened(*arguments)
        return ""

    def _is_ours(self, name: str) -> bool:
        source = str(Path(__file__).resolve().parents[2] / "src")
        return name.startswith((*self.trusted, source, "<frozen "))

    def _opened(self, path: Any, mode: Any, flags: Any) -> str:
        name = path.decode() if isinstance(path, bytes) else str(path)
        writes = any(letter in str(mode) for letter in WRITING) or (isinstance(flags, int) and flags & 3)
        if writes and name != "/dev/null":
            return f"written: {name}"
        inside = name.startswith((self.root, "/dev/", "/proc/", "/sys/", *self.trusted)) or isinstance(path, int)
        real = str(Path(name).resolve()) if inside and not isinstance(path, int) else name
        return f"read: {name}" if not inside or real.startswith(self.outside) else ""


def attempt(case: dict[str, Any], load: Any, errors: Any) -> dict[str, Any]:
    """Loads one case, and asks a model that loads for a prompt; says how it ended."""
    started = time.perf_counter()
    stage = "load"
    try:
        lm = load(case["path"])
        stage = "render"
        lm.chat_tokens([{"role": "user", "content": "hello"}])
        outcome, told = "loaded", True
    except errors.AlmanacError as error:
        outcome, told = f"{stage}: {type(error).__name__}", bool(error.cause and error.remedy)
    except BaseException as error:  # an error that is not of ours is what this test is to find
        outcome, told = f"{stage}: untyped {type(error).__name__}: {error}", False
    return {"name": case["name"], "outcome": outcome, "told": told, "seconds": time.perf_counter() - started}


def main(cases_path: str, report_path: str, outside: str, *sound: str) -> None:
    """Warm up on sound models, then watch the planted ones."""
    from almanac.core import errors
    from almanac.language_model.load import load

    for path in (*sound, "nowhere"):
        attempt({"name": "warm", "path": path}, load, errors)
    cases = json.loads(Path(cases_path).read_text())
    watch = Watch(Path(outside), Path(cases_path).parent)
    results = []
    for case in cases:
        watch.case = case["name"]
        results.append(attempt(case, load, errors))
        watch.case = None
    report = {"results": results, "events": watch.events, "children": watch.children}
    Path(report_path).write_text(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
