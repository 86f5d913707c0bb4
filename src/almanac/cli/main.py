"""``almanac``: the command line. Verbs are named here and imported when they are used; ``--help`` imports none of them.

A verb is a function in a file of its own that parses nothing, prints through ``cli.printing`` and returns an exit code.
Everything it may raise is turned into a cause, a remedy and an exit code in one place, ``cli.failures``.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Group, Parameter

from almanac import __version__
from almanac.cli.environment import switch_telemetry_off
from almanac.cli.failures import BROKEN_PIPE, failure_of, show
from almanac.cli.typed import marked

VERBS = {
    "build": ("almanac.cli.build:build", "Assistant", "Turn a folder of documents into an assistant."),
    "ask": ("almanac.cli.ask:ask", "Assistant", "Ask an assistant a question about its documents."),
    "serve": ("almanac.cli.serve:serve", "Assistant", "Serve an assistant: a web page and an OpenAI-compatible API."),
    "index": ("almanac.cli.index:index", "Assistant", "Add, remove or list the documents of an assistant."),
    "generate": ("almanac.cli.generate:generate", "Models", "Continue a text."),
    "chat": ("almanac.cli.chat:chat", "Models", "Talk with a model."),
    "export": ("almanac.cli.export:export", "Models", "Write a model in a format that other programs read."),
    "verify": ("almanac.cli.verify:verify", "Models", "Hold a model against its certificate."),
    "describe": ("almanac.cli.describe:describe", "Models", "Show what a model is and what it costs."),
    "tokenizer": (
        "almanac.cli.tokenizer:tokenizer",
        "Models",
        "Train a tokenizer, or report what one will cost a model.",
    ),
    "data": ("almanac.cli.data:data", "Models", "Prepare a corpus: read, filter, remove copies, mix."),
    "pretrain": ("almanac.cli.pretrain:pretrain", "Models", "Train a model from nothing on a folder of text."),
    "scaling": (
        "almanac.cli.scaling:scaling",
        "Models",
        "Fit a scaling law to small runs; plan a model for a budget.",
    ),
    "run": ("almanac.cli.runs:run", "Workbench", "List training runs, or show how one of them stands."),
    "list": ("almanac.cli.listing:listing", "Workbench", "Show the models, techniques and aliases that there are."),
    "evidence": (
        "almanac.cli.evidence:evidence",
        "Workbench",
        "Run the experiment that backs a technique, or show what was found.",
    ),
    "doctor": ("almanac.cli.doctor:doctor", "Workbench", "Say what this machine can do, and what mends it."),
}
"""Name -> where it is, its group in the help, and its summary: the first line of its docstring, held equal by a test."""

ABOUT = "From a folder of documents to an assistant that its owner keeps, with every technique on the way."
EPILOGUE = (
    "Every verb: --help with examples, --json for machines, --debug for the traceback of a failure.\n\n"
    "Start with: almanac doctor"
)


def application(*, summaries: bool) -> App:
    """The tree of verbs.

    Args:
        summaries: describe each verb by its summary, without importing it (for the overview); otherwise by its docstring.
    """
    app = App(
        name="almanac",
        help=ABOUT,
        help_epilogue=EPILOGUE if summaries else None,
        version=__version__,
        help_format="plaintext" if summaries else "markdown",  # the overview needs no parser for Markdown
        default_parameter=Parameter(negative=()),
    )
    groups = {title: Group.create_ordered(title) for _, title, _ in VERBS.values()}
    for name, (place, title, summary) in VERBS.items():
        app.command(place, name=name, group=groups[title], help=summary if summaries else None)
    return app


def run(tokens: Sequence[str]) -> int:
    """Runs one command line and returns its exit code; nothing is raised but SystemExit."""
    end = tokens.index("--") if "--" in tokens else len(tokens)
    debug = "--debug" in tokens[:end]
    words = marked([token for token in tokens[:end] if token != "--debug"]) + list(tokens[end:])
    in_json = False
    try:
        app = application(summaries=not words or words[0].startswith("-"))
        command, bound, _ = app.parse_args(words, print_error=False, exit_on_error=False)
        in_json = bool(bound.arguments.get("json"))
        code = command(*bound.args, **bound.kwargs)
        sys.stdout.flush()
        return int(code or 0)
    except BrokenPipeError:
        _abandon_stdout()
        return BROKEN_PIPE
    except (Exception, KeyboardInterrupt) as error:
        return _report(error, debug=debug, in_json=in_json)


def main() -> None:
    """The console script."""
    switch_telemetry_off()
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)  # text in another encoding ends as an error of ours, or as a mark
    sys.exit(run(sys.argv[1:]))


def _report(error: BaseException, *, debug: bool, in_json: bool) -> int:
    failure = failure_of(error, verb=_verb_of(error))
    try:
        sys.stdout.flush()
        show(failure, in_json=in_json, error=error if debug else None)
    except BrokenPipeError:
        _abandon_stdout()
    return failure.code


def _verb_of(error: BaseException) -> str | None:
    chain = error.command_chain if isinstance(error, CycloptsError) else None
    return chain[0] if chain else None


def _abandon_stdout() -> None:
    """Whoever read our output is gone; without this Python would complain when it flushes at exit."""
    with contextlib.suppress(OSError, io.UnsupportedOperation):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
