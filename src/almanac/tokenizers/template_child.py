"""The process in which chat templates run: started by `template_process`, never imported by it.

Chat templates are programs from strangers. Jinja's sandbox has been escaped three times through `str.format`
(CVE-2016-10745, CVE-2019-10906, CVE-2024-56326) and limits neither memory nor time, so it is one wall of three:

    1. Jinja's immutable sandbox: no underscore attributes, no mutation of arguments
    2. an audit hook: the process ends when anything opens a file, imports, connects, forks or executes
    3. kernel limits: memory, processor time, no new file descriptors, no written bytes, no processes

Protocol: one JSON object a line. In: {"source", "variables", "now", "mark"}. Out: {"text"} or {"error", "message"},
with "worn" where the process has grown so much that it should be replaced. Run as `python -I -S template_child.py
MEMORY_BYTES WORN_BYTES OUTPUT_BYTES CPU_SECONDS SITE_FOLDER...`; imports Jinja and the standard library only.
"""

from __future__ import annotations

import datetime
import functools
import json
import os
import resource
import signal
import sys
from typing import Any

MAX_REQUEST_BYTES = 16 * 1024 * 1024
_COMPILED_TEMPLATES = 16
# What compiling and running a template needs; every other audit event ends the process.
_ALLOWED_EVENTS = frozenset(
    "compile exec sys._getframe sys._getframemodulename code.__new__ object.__getattr__ builtins.id".split()
)


def _environment(jinja2: Any) -> Any:
    """A sandbox for one template, with the additions that chat templates count on (as transformers defines them)."""
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}...{% endgeneration %}`: what the assistant wrote, put between the marks of this request."""

        tags = {"generation"}  # noqa: RUF012 (Jinja reads a plain class attribute)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_wrap"), [], [], body).set_lineno(line)

        def _wrap(self, caller: Any) -> str:
            mark = self.environment.almanac_mark
            return mark + caller() + mark

    class PlainNamespace(jinja2.utils.Namespace):
        """A namespace that cannot be given attributes the sandbox would later trust."""

        def __init__(*arguments: Any, **attributes: Any) -> None:
            self, given = arguments[0], dict(*arguments[1:], **attributes)
            for name in given:
                _refuse_private(jinja2, name)
            jinja2.utils.Namespace.__init__(self, given)

        def __setitem__(self, name: str, value: Any) -> None:
            _refuse_private(jinja2, name)
            super().__setitem__(name, value)

    class Sandbox(ImmutableSandboxedEnvironment):
        """Reaching for a forbidden attribute ends the rendering; Jinja's own sandbox would write nothing and go on."""

        def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
            raise jinja2.exceptions.SecurityError(f"access to {str(attribute)[:80]!r} is unsafe")

    def raise_exception(message: Any) -> None:
        raise jinja2.TemplateError(str(message))

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols], cache_size=0, optimized=False
    )  # optimized: constants would be computed at compile time, and a compiled template is kept
    environment.almanac_mark = ""
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["namespace"] = PlainNamespace
    del environment.globals["lipsum"]  # random text has no place in a prompt
    return environment


def _refuse_private(jinja2: Any, name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace may not hold {name!r}")


class Renderer:
    """Renders requests; keeps the last templates compiled."""

    def __init__(self, jinja2: Any, output_bytes: int) -> None:
        self._jinja2 = jinja2
        self._output_bytes = output_bytes
        self._compile = functools.lru_cache(maxsize=_COMPILED_TEMPLATES)(self._compiled)

    def answer(self, line: bytes) -> dict[str, Any]:
        """The reply to one request."""
        try:
            return {"text": self._render(json.loads(line))}
        except MemoryError:
            return {"error": "memory", "message": "out of memory"}
        except OverflowError as error:
            return {"error": "template", "message": str(error)[:500]}
        except self._jinja2.exceptions.SecurityError as error:
            return {"error": "unsafe", "message": str(error)[:500]}
        except self._jinja2.TemplateSyntaxError as error:
            return {"error": "syntax", "message": f"line {error.lineno}: {str(error)[:500]}"}
        except _OutputError:
            return {"error": "output", "message": "too much output"}
        except RecursionError:
            return {"error": "recursion", "message": "nested too deeply"}
        except Exception as error:
            # Whatever a template raises is the template's failure, and reported as such.
            return {"error": "template", "message": (str(error) or repr(error))[:500]}

    def _compiled(self, source: str) -> tuple[Any, Any]:
        environment = _environment(self._jinja2)
        return environment, environment.from_string(source)

    def _render(self, request: dict[str, Any]) -> str:
        environment, template = self._compile(request["source"])
        environment.almanac_mark = request["mark"]
        now = datetime.datetime.fromisoformat(request["now"])
        size, chunks = 0, []
        for chunk in template.generate({**request["variables"], "strftime_now": now.strftime}):
            # A character is at most four bytes, so a long chunk is refused before it is copied.
            size += len(chunk) if len(chunk) > self._output_bytes else len(chunk.encode("utf-8", "surrogatepass"))
            if size > self._output_bytes:
                raise _OutputError
            chunks.append(chunk)
        return "".join(chunks)


class _OutputError(Exception):
    """More output than allowed."""


def address_space(statm: int) -> int:
    """Bytes of address space in use; `statm` is an open descriptor of /proc/self/statm."""
    return int(os.pread(statm, 64, 0).split()[0]) * resource.getpagesize()


def confine(address_space_bytes: int) -> None:
    """Close the doors: kernel limits, then the audit hook. Cannot be undone."""
    for limit, value in (
        (resource.RLIMIT_AS, address_space_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 3),
    ):
        resource.setrlimit(limit, (value, value))

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _ALLOWED_EVENTS:
            reply = json.dumps({"error": "forbidden", "message": f"the template attempted {event}"})
            os.write(1, reply.encode("ascii") + b"\n")
            os._exit(1)

    sys.addaudithook(refuse)


def main(arguments: list[str]) -> None:
    """Serve requests from standard input until it ends."""
    memory_bytes, worn_bytes, output_bytes = (int(argument) for argument in arguments[:3])
    cpu_seconds = float(arguments[3])
    sys.path.extend(arguments[4:])
    # html, textwrap and jinja2.debug are otherwise imported in the middle of a rendering, which the audit hook would
    # refuse.
    import html  # noqa: F401
    import textwrap  # noqa: F401

    import jinja2
    import jinja2.debug
    import jinja2.ext
    import jinja2.sandbox

    renderer = Renderer(jinja2, output_bytes)
    for source in ("{{ (messages|tojson)[:1] ~ strftime_now('%Y') ~ missing.x }}", "{% if %}"):
        # What is imported late is imported now, also by the ways to fail.
        warm = {"source": source, "mark": "", "now": "2000-01-01", "variables": {"messages": [1.5]}}
        renderer.answer(json.dumps(warm).encode("ascii"))
    statm = os.open("/proc/self/statm", os.O_RDONLY)
    fresh = address_space(statm)
    confine(fresh + memory_bytes)
    os.write(1, b'{"text": "ready"}\n')
    while line := sys.stdin.buffer.readline(MAX_REQUEST_BYTES):
        # The kernel ends the process when the processor time is used up, whatever the template is doing.
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        reply = renderer.answer(line)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if address_space(statm) - fresh > worn_bytes:
            reply["worn"] = True
        remaining = memoryview(json.dumps(reply).encode("ascii") + b"\n")
        while remaining:
            remaining = remaining[os.write(1, remaining) :]


if __name__ == "__main__":
    main(sys.argv[1:])
