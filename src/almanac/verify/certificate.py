"""A certificate says what one form of a model answers to the probes, so that any later form can be held against it.

It holds the ids of the tokenizer on probe texts, the template's digest and rendering, the network's best tokens and
log-probabilities, the digests of the files, and every step taken with its measured divergence and its bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from almanac.core.errors import FileFormatError, IntegrityError, ParityError
from almanac.files.store import sha256_file, write_json
from almanac.files.strict_json import read_json
from almanac.verify.parity import EQUAL
from almanac.verify.probes import (
    Form,
    network_answers,
    probe_ids,
    probe_logits,
    template_answers,
    tokenizer_answers,
)

NAME = "certificate.json"
VERSION = 1


def certify(form: Form, *, files: Sequence[Path] = (), steps: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """The certificate of a form: everything :func:`check` will compare."""
    rows = probe_ids(form)
    return {
        "version": VERSION,
        "tokenizer": {"digest": form.tokenizer.digest(), "answers": tokenizer_answers(form)},
        "template": template_answers(form),
        "network": network_answers(rows, probe_logits(form, rows)),
        "files": {path.name: sha256_file(path) for path in files},
        "steps": [dict(step) for step in steps],
    }


def write(certificate: Mapping[str, Any], path: Path) -> None:
    """Writes a certificate as JSON, atomically."""
    write_json(path, certificate)


def read(path: Path) -> dict[str, Any]:
    """Reads a certificate. Raises NotFoundError or FileFormatError."""
    found = read_json(path)
    if not isinstance(found, dict) or found.get("version") != VERSION:
        raise FileFormatError(f"{path} is no certificate of version {VERSION}", remedy="Certify the model again.")
    return found


def check_files(certificate: Mapping[str, Any], folder: Path) -> None:
    """Raises IntegrityError if a certified file is missing or has changed."""
    for name, digest in certificate["files"].items():
        path = folder / name
        if not path.is_file() or sha256_file(path) != digest:
            raise IntegrityError(
                f"{path} is {'not what was certified' if path.is_file() else 'missing'}",
                remedy="Restore the folder from its source; do not use this copy.",
            )


def check(certificate: Mapping[str, Any], form: Form, *, bound: float = EQUAL) -> dict[str, Any]:
    """Holds a form against a certificate; returns what was measured.

    Args:
        bound: largest difference of a log-probability or logit, as a share of the largest logit.

    Raises:
        ParityError: names the first thing that differs: token ids, template, or the network's answers.
    """
    _check_tokenizer(certificate["tokenizer"]["answers"], form)
    if template_answers(form) != certificate["template"]:
        raise ParityError(
            "The chat template is not the certified one",
            remedy="Restore tokenizer_config.json from the model's source.",
        )
    rows = [answer["ids"] for answer in certificate["network"]]
    found = network_answers(rows, probe_logits(form, rows))
    largest = 0.0
    positions = agreeing = 0
    for expected, answer in zip(certificate["network"], found, strict=True):
        scale = max(abs(value) for value in expected["top_logits"])
        got = dict(zip(answer["top_ids"], answer["top_logits"], strict=True))
        known = zip(expected["top_ids"], expected["top_logits"], strict=True)
        gaps = [abs(got[id] - value) for id, value in known if id in got]
        gaps += [abs(a - b) for a, b in zip(expected["logprobs"], answer["logprobs"], strict=True)]
        missing = len(expected["top_ids"]) - sum(id in got for id in expected["top_ids"])
        largest = max([largest, *(gap / scale for gap in gaps)])
        positions += len(expected["best"])
        agreeing += sum(a == b for a, b in zip(expected["best"], answer["best"], strict=True))
        if missing > 1 or any(not gap / scale <= bound for gap in gaps):
            raise ParityError(
                f"The network answers otherwise than certified (by {largest:.2g} of the largest logit)",
                remedy="Weights, adapters or configuration were changed; restore the folder from its source.",
            )
    return {"relative": largest, "agreement": agreeing / max(1, positions), "bound": bound}


def _check_tokenizer(answers: Sequence[Mapping[str, Any]], form: Form) -> None:
    for answer in answers:
        ids = form.tokenizer.encode(answer["text"])
        if ids != answer["ids"]:
            raise ParityError(
                f"The tokenizer reads {answer['text'][:30]!r} as {ids[:6]}..., certified were {answer['ids'][:6]}...",
                remedy="Restore tokenizer.json and its configuration from the model's source.",
            )
