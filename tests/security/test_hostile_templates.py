"""Chat templates written to break out, to hang or to exhaust memory: each ends as one `TemplateError`, quickly.

Covers the published ways: CVE-2024-34359 and CVE-2026-5760 (templates rendered without a sandbox), the three sandbox escapes
through `str.format` (CVE-2016-10745, CVE-2019-10906, CVE-2024-56326), and the indirect call of `format` through the `attr`
filter (CVE-2025-27516). Each must raise within 3 s, run nothing (a canary file stays absent), cost the parent less than
64 MiB, and leave the next rendering working.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from almanac.core.errors import TemplateError
from almanac.tokenizers.chat_template import ChatTemplate

SECONDS = 3.0
GROWTH_KIB = 64 * 1024
GOOD = ChatTemplate("{% for message in messages %}[{{ message.role }}] {{ message.content }}{% endfor %}")
MESSAGES = [{"role": "user", "content": "hello"}]

# CANARY stands for the path of a file that must not come into being.
TOUCH = "os.popen('touch CANARY').read()"
SUBCLASSES = "{% for c in ().__class__.__base__.__subclasses__() %}{{ c.__init__.__globals__ }}{% endfor %}"

ESCAPES = {
    "class of a text": "{{ ''.__class__ }}",
    "mro": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "base": "{{ ().__class__.__base__.__subclasses__() }}",
    "subclasses in a loop": SUBCLASSES,
    "item syntax": "{{ ''['__class__']['__mro__'] }}",
    "attr filter": "{{ ''|attr('__class__')|attr('__mro__') }}",
    "attr filter, joined name": "{{ ''|attr(['__cla', 'ss__']|join) }}",
    "attr filter, escaped name": "{{ ''|attr('\\x5f\\x5fclass\\x5f\\x5f') }}",
    "attr filter, reversed name": "{{ ''|attr('__ssalc__'|reverse) }}",
    "map attribute": "{{ ['']|map(attribute='__class__')|first|string|attr('__mro__') }}",
    "map attr filter": "{{ ['']|map('attr', '__class__')|map('attr', '__mro__')|list }}",
    "sort by attribute": "{{ [1, 2]|sort(attribute='__class__.__mro__')|first|attr('__class__') }}",
    "group by attribute": "{{ [1]|groupby('__class__')|list }}",
    "select by attribute": "{{ [1]|selectattr('__class__')|list }}",
    "cycler globals": "{{ cycler.__init__.__globals__.os.popen('touch CANARY').read() }}",
    "joiner globals": "{{ joiner.__init__.__globals__.os.popen('touch CANARY').read() }}",
    "namespace globals": "{{ namespace.__init__.__globals__.os.popen('touch CANARY').read() }}",
    "lipsum globals": f"{{{{ lipsum.__globals__.{TOUCH} }}}}",
    "lipsum globals by item": "{{ lipsum['__globals__']['os'].popen('touch CANARY').read() }}",
    "lipsum by attr": "{{ (lipsum|attr('__globals__'))['os'].popen('touch CANARY').read() }}",
    "range globals": "{{ range.__globals__ }}",
    "dict class": "{{ dict.__class__.__mro__ }}",
    "undefined globals": "{{ nothing.__init__.__globals__.sys.modules.os.popen('touch CANARY').read() }}",
    "self context": "{{ self._TemplateReference__context.cycler.__init__.__globals__ }}",
    "self init": "{{ self.__init__.__globals__.__builtins__.open('CANARY', 'w') }}",
    "raise_exception globals": "{{ raise_exception.__globals__.__builtins__.open('CANARY', 'w') }}",
    "strftime_now self": "{{ strftime_now.__self__.__class__ }}",
    "tojson environment": "{{ tojson.__globals__ }}",
    "loop internals": "{% for x in [1] %}{{ loop._iterator.__class__ }}{{ loop.__init__.__globals__ }}{% endfor %}",
    "macro internals": "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "macro code": "{% macro m() %}{% endmacro %}{{ m.__class__.__call__.__code__ }}",
    "caller internals": "{% macro m() %}{{ caller.__init__.__globals__ }}{% endmacro %}{% call m() %}{% endcall %}",
    "generation block internals": "{% generation %}{{ caller.__globals__ }}{% endgeneration %}",
    "generator frame": "{{ ([1]|map('string')).gi_frame.f_globals }}",
    "generator code": "{{ (messages|select).gi_code }}",
    "exception traceback": "{% set x = raise_exception.__code__ %}{{ x }}",
    "format a class": "{{ '{0.__class__.__mro__}'.format('') }}",
    "format globals": "{{ '{0.__init__.__globals__}'.format(cycler) }}",
    "format_map": "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "format by attr": "{{ (''|attr('format'))('{0.__class__}', 1) }}{{ ('{0.__class__}'|attr('format'))(1) }}",
    "format by map": "{{ ['{0.__class__}']|map('attr', 'format')|first|string }}{{ ('{0.__class__}'|attr('format'))(1) }}",
    "format in a namespace": "{% set n = namespace(f='{0.__class__}'.format) %}{{ n.f(1) }}",
    "format in a list": "{{ ['{0.__class__}'.format][0](1) }}",
    "format_map in a macro": "{% macro m(f) %}{{ f({'a': 1}) }}{% endmacro %}{{ m('{a.__class__}'.format_map) }}",
    "format as a filter argument": "{{ '{0.__class__}'|map('format', 1)|list }}{{ '{0.__class__}'.format(1) }}",
    "private name in a namespace": "{% set n = namespace() %}{% set n.__class__ = 1 %}",
    "private name to a namespace": "{{ namespace(**{'__init__': 1}) }}",
    "change the messages": "{{ messages.append(1) }}",
    "change a message": "{{ messages[0].update({'content': 'x'}) }}",
    "clear the messages": "{% set _ = messages.clear() %}",
    "change a namespace's dict": "{{ {}.setdefault('a', 1) }}",
}

FILES = {
    "include": "{% include '/etc/hostname' %}",
    "include upwards": "{% include '../../../../etc/hostname' %}",
    "include a list": "{% include ['/etc/hostname', '/etc/passwd'] %}",
    "import": "{% import '/etc/hostname' as x %}{{ x }}",
    "from import": "{% from '/etc/hostname' import x %}",
    "extends": "{% extends '/etc/hostname' %}",
    "extends a variable": "{% extends messages[0].content %}",
    "open": "{{ open('CANARY', 'w') }}",
    "import statement": "{{ __import__('os').system('touch CANARY') }}",
    "python tag": "{% python %}import os{% endpython %}",
    "do tag": "{% do messages.append(1) %}",
    "debug tag": "{% debug %}",
}

EXHAUSTION = {
    "nested loops": "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "two million turns": "{% for a in range(1500) %}{% for b in range(1500) %}{{ b }}{% endfor %}{% endfor %}",
    "long range": "{% for a in range(100001) %}{% endfor %}",
    "range from the end": "{{ range(-1, 10**15)|list }}",
    "ten megabytes by product": "{{ 'a' * 10000000 }}",
    "ten megabytes by doubling": "{% set n = namespace(x='a') %}{% for _ in range(40) %}{% set n.x = n.x * 2 %}{% endfor %}",
    "a gigabyte by product": "{{ 'a' * 1000000000 }}",
    "a gigabyte by centre": "{{ 'a'.center(10**9) }}",
    "a gigabyte by ljust": "{{ 'a'.ljust(10**9)|length }}",
    "a gigabyte by format": "{{ '{:>1000000000}'.format(1) }}",
    "a gigabyte by percent": "{{ '%1000000000d' % 1 }}",
    "a gigabyte by indent": "{{ 'a'|indent(10**9) }}",
    "a gigabyte by replace": "{{ ('a' * 40000)|replace('a', 'b' * 40000)|length }}",
    "a gigabyte by join": "{{ (('a' * 20000) * 2)|join('b' * 40000)|length }}",
    "a gigabyte by expandtabs": "{{ ('\t' * 2000).expandtabs(1000000)|length }}",
    "a long list": "{{ [0] * 1000000000 }}",
    "a list of lists": "{{ [[0] * 10000] * 100000 }}",
    "a power": "{{ 2 ** (2 ** 40) }}",
    "a slow power": "{{ (7 ** 4000000) % 3 }}",
    "a shift by product": "{{ (10 ** 300000) * (10 ** 300000) // 7 }}",
    "endless recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "mutual recursion": "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
    "branching recursion": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "recursive loop": "{% for x in [[[[]]]] recursive %}{{ loop([[x]]) }}{% endfor %}",
    "output without end": "{% for a in range(100000) %}{{ 'output ' * 100 }}{% endfor %}",
    "output by a filter block": "{% filter upper %}{% for a in range(100000) %}{{ 'x' * 10000 }}{% endfor %}{% endfilter %}",
    "output in a variable": "{% set x %}{% for a in range(100000) %}{{ 'x' * 10000 }}{% endfor %}{% endset %}",
    "deep brackets": "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    "deep lists": "{{ " + "[" * 20000 + "]" * 20000 + " }}",
    "deep signs": "{{ " + "-" * 100000 + "1 }}",
    "deep filters": "{{ 1" + "|abs" * 30000 + " }}",
    "deep blocks": "{% if 1 %}" * 8000 + "{% endif %}" * 8000,
    "deep loops": "{% for a in [1] %}" * 60 + "{% endfor %}" * 60,
    "many expressions": "{{ a }}" * 36000,
    "slow word wrap": "{{ ('a ' * 400000)|wordwrap(1) }}{{ ('a' * 1000000)|wordwrap(1)|wordwrap(1) }}",
    "slow links": "{{ ('http://a.' * 200000)|urlize }}{{ ('(' * 1000000)|urlize }}",
    "slow tags": "{{ ('<' * 900000)|striptags|striptags }}{{ ('<!--' * 400000)|striptags }}{{ 'x' * 2000000 }}",
    "slow sort": "{% set x = range(100000)|list %}{% for _ in range(1000) %}{% set y = x|sort(reverse=true) %}{% endfor %}",
    "slow product": "{{ [range(3000)|list] * 3000|int }}{% for a in range(3000) %}{{ range(3000)|sum }}{% endfor %}",
    "huge date": "{{ strftime_now('%A' * 2000000) }}",
    "deep json": "{% set n = namespace(x=[]) %}{% for _ in range(5000) %}{% set n.x = [n.x] %}{% endfor %}{{ n.x|tojson }}",
    "indented json": "{{ range(1000)|list|tojson(indent=1000000) }}",
}

HOSTILE = {**ESCAPES, **FILES, **EXHAUSTION}


def peak_kib() -> int:
    """This process's peak memory since `reset_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def reset_peak() -> int:
    """Forget the peak so far; returns the memory in use."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_kib()


@pytest.fixture(autouse=True)
def good_rendering_around() -> Iterator[None]:
    assert GOOD.render(MESSAGES) == "[user] hello"
    yield
    started = time.monotonic()
    assert GOOD.render(MESSAGES) == "[user] hello"
    assert time.monotonic() - started < SECONDS


def test_the_collection_is_large_enough() -> None:
    assert len(HOSTILE) >= 100
    assert all(len(source) < 256 * 1024 for source in HOSTILE.values())


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_template_ends_as_one_error(name: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    template = ChatTemplate(HOSTILE[name].replace("CANARY", str(canary)))
    before = reset_peak()
    started = time.monotonic()
    with pytest.raises(TemplateError) as caught:
        template.render(MESSAGES)
    assert time.monotonic() - started < SECONDS
    assert peak_kib() - before < GROWTH_KIB
    assert not canary.exists()
    assert caught.value.remedy and len(caught.value.cause) < 1000


@pytest.mark.parametrize("name", ["nested loops", "a gigabyte by product", "output without end", "lipsum globals"])
def test_limits_are_named(name: str) -> None:
    named = {
        "nested loops": "1 s",
        "a gigabyte by product": "512 MiB",
        "output without end": "1 MiB",
        "lipsum globals": "lipsum",
    }
    with pytest.raises(TemplateError, match=named[name]):
        ChatTemplate(HOSTILE[name]).render(MESSAGES)


def test_hostile_messages_are_only_data() -> None:
    """What stands in a message is never read as a template."""
    for source in HOSTILE.values():
        if len(source) < 10_000:
            assert GOOD.render([{"role": "user", "content": source}]) == f"[user] {source}"


def test_hostile_templates_cannot_be_segmented_either() -> None:
    for name in ("subclasses in a loop", "format globals", "nested loops"):
        with pytest.raises(TemplateError):
            ChatTemplate(HOSTILE[name]).render_segments(MESSAGES)
