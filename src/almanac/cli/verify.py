"""``almanac verify``: is this still the model that was certified?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from almanac.cli.options import Json
from almanac.cli.printing import emit, line, table
from almanac.core.errors import IntegrityError, ParityError


def verify(model: str, /, *, json: Json = False) -> int:
    """Hold a model against its certificate.

    Compares the files with their recorded digests, and what tokenizer, chat template and network answer to fixed probes
    with what they answered when the model was certified. A model without a certificate gets its first one. Exit code 0
    if all holds, 1 if not.

    ```
    almanac verify my-model
    almanac verify smollm2-135m-instruct --json
    ```

    Args:
        model: An alias, a model folder or a `.gguf` file.
    """
    from almanac.language_model.certify import verify_model as verified

    try:
        result = verified(model)
    except (IntegrityError, ParityError) as error:
        failed = "files" if isinstance(error, IntegrityError) else "answers"
        if json:
            emit({"model": model, "holds": False, "failed": failed, "cause": error.cause, "remedy": error.remedy})
        else:
            passed = [] if failed == "files" else [("files", "ok", "as certified")]
            table(("check", "result", "what"), [*passed, (failed, "FAILED", error.cause)])
            line(f"remedy: {error.remedy}")
        return 1
    certificate = _certificate(result)
    if json:
        emit({"model": model, "holds": True, **result})
    else:
        _print(result, certificate)
    return 0


def _certificate(result: dict[str, Any]) -> dict[str, Any]:
    from almanac.verify import certificate as certificates

    return certificates.read(Path(result["certificate"]))


def _print(result: dict[str, Any], certificate: dict[str, Any]) -> None:
    word = "written" if result["new"] else "ok"
    texts = len(certificate["tokenizer"]["answers"])
    largest, agreement = result["relative"], result["agreement"]
    answers = f"{len(certificate['network'])} probes; "
    answers += (
        "first answers" if result["new"] else f"apart by {largest:.2g} of the largest logit, {agreement:.1%} agree"
    )
    table(
        ("check", "result", "what"),
        [
            ("files", word, f"{len(certificate['files'])} by SHA-256"),
            ("tokenizer", word, f"{texts} probe texts"),
            ("template", word, "one probe conversation" if certificate["template"] else "the model has none"),
            ("network", word, answers),
        ],
    )
    if result["steps"]:
        line()
        table(
            ("step", "mean KL", "bound", "best token agrees"),
            [
                (step["step"], f"{step['mean_kl']:.2g}", f"{step['bound']:.2g}", f"{step['agreement']:.1%}")
                for step in result["steps"]
            ],
        )
    line()
    if result["new"]:
        line(f"{result['certificate']} is its first certificate: it says what the model is now, nothing about before")
    else:
        line(f"{result['certificate']} holds")
