"""A certificate says what one form of a model answers to the probes, so that any later form can be held against it.

It holds the ids of the tokenizer on probe texts, the template's digest and rendering, the network's best tokens and
log-probabilities, the digests of spec, plan, tokenizer and files, and every step taken with its measured divergence and
its bound. The answers hold for every form of the model; the digests only for the one that was certified.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from almanac.core.errors import FileFormatError, IntegrityError, ParityError
from almanac.files.store import safe_member, sha256_file, write_json
from almanac.files.strict_json import read_json
from almanac.verify.parity import EQUAL
from almanac.verify.probes import (
    TEXTS,
    Form,
    network_answers,
    probe_ids,
    probe_logits,
    template_answers,
    tokenizer_answers,
)

NAME = "certificate.json"
VERSION = 1
LOADED_SUFFIXES = (".safetensors", ".json", ".jinja", ".gguf")


def certify(form: Form, *, files: Sequence[Path] = (), steps: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """The certificate of a form: everything the checks below will compare."""
    rows = probe_ids(form)
    return {
        "version": VERSION,
        "digests": digests(form),
        "tokenizer": {"answers": tokenizer_answers(form)},
        "template": template_answers(form),
        "network": network_answers(rows, probe_logits(form, rows)),
        "files": {path.name: sha256_file(path) for path in files},
        "steps": [dict(step) for step in steps],
    }


def digests(form: Form) -> dict[str, str]:
    """What the form declares itself to be: SHA-256 of its spec, its plan and its tokenizer."""
    return {"spec": form.spec.digest(), "plan": form.plan.digest(), "tokenizer": form.tokenizer.digest()}


def write(certificate: Mapping[str, Any], path: Path) -> None:
    """Writes a certificate as JSON, atomically."""
    write_json(path, certificate)


def read(path: Path) -> dict[str, Any]:
    """Reads a certificate. Raises NotFoundError, or FileFormatError if it is none or does not answer every probe."""
    found = read_json(path)
    if not isinstance(found, dict) or found.get("version") != VERSION:
        raise FileFormatError(f"{path} is no certificate of version {VERSION}", remedy="Certify the model again.")
    try:
        complete = _is_complete(found)
    except (KeyError, TypeError, AttributeError):
        complete = False
    if not complete:
        raise FileFormatError(f"{path} does not answer every probe", remedy="Certify the model again from its source.")
    return found


def _is_complete(certificate: Mapping[str, Any]) -> bool:
    """Whether nothing that the checks need is missing: an emptied certificate would vouch for any model."""
    read = {answer["text"]: answer["ids"] for answer in certificate["tokenizer"]["answers"]}
    rows = [answer["ids"] for answer in certificate["network"]]
    begun = [ids[: len(row)] == row for ids, row in zip(filter(None, read.values()), rows, strict=False)]
    return (
        set(read) == set(TEXTS)
        and len(rows) == sum(bool(ids) for ids in read.values())
        and all(begun)
        and all(_is_answer(answer) for answer in certificate["network"])
        and set(certificate["digests"]) == {"spec", "plan", "tokenizer"}
        and all(isinstance(item, Mapping) for item in (certificate["files"], *certificate["steps"]))
        and "template" in certificate
    )


def _is_answer(answer: Mapping[str, Any]) -> bool:
    """Whether this is what ``network_answers`` says of one row."""
    ids, best, logprobs = answer["ids"], answer["best"], answer["logprobs"]
    top_ids, top_logits = answer["top_ids"], answer["top_logits"]
    return (
        len(ids) == len(best) == len(logprobs) + 1
        and len(top_ids) == len(top_logits) > 0
        and all(type(id) is int for id in [*ids, *best, *top_ids])
        and all(type(value) is float for value in [*logprobs, *top_logits])
    )


def check_files(certificate: Mapping[str, Any], folder: Path, *, alone: bool = False) -> None:
    """Raises IntegrityError if a certified file is missing or has changed, or one that loading would read has appeared.

    ``alone``: the certificate is for one file among others in ``folder``, so what else lies there does not matter.
    """
    found = {path.name for path in folder.iterdir() if path.suffix in LOADED_SUFFIXES and path.name != NAME}
    if not alone and (added := sorted(found - set(certificate["files"]))):
        raise IntegrityError(
            f"{folder / added[0]} was not there when {folder} was certified",
            remedy="Remove it, or restore the folder from its source.",
        )
    for name, digest in certificate["files"].items():
        path = safe_member(folder, name)
        if not path.is_file() or sha256_file(path) != digest:
            raise IntegrityError(
                f"{path} is {'not what was certified' if path.is_file() else 'missing'}",
                remedy="Restore the folder from its source; do not use this copy.",
            )


def check_digests(certificate: Mapping[str, Any], form: Form) -> None:
    """Raises ParityError if spec, plan or tokenizer are not the certified ones, however small the effect on the probes."""
    for part, digest in digests(form).items():
        if certificate["digests"][part] != digest:
            raise ParityError(
                f"The model's {part} is not the certified one",
                remedy="Its configuration was changed; restore the folder from its source.",
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
        scale = max(1e-30, *(abs(value) for value in expected["top_logits"]))
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
