"""``almanac describe``: what a model is and what it costs, from its configuration alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from almanac.cli.options import Json
from almanac.cli.printing import emit, line, note, size, table

if TYPE_CHECKING:
    from almanac.verify.describe import Description
    from almanac.verify.spec_source import Named
    from almanac.verify.spec_tree import Part

DEFAULT_LENGTHS = (1024, 4096, 32768)


def describe(
    model: str,
    /,
    *,
    length: tuple[int, ...] = DEFAULT_LENGTHS,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    check_leaks: Annotated[bool, Parameter(show_default=False)] = False,
    json: Json = False,
) -> int:
    """Show what a model is and what it costs.

    Its parts with equal layers told once, parameters, operations for each token, what a text keeps in memory while it is
    written, and the memory to train and to serve it. Only the configuration is read; no weight is loaded and nothing is
    computed. With `--check-leaks` a small model of the same kinds of layers is made and tried: no token may change an
    output before it or in another text of its row; the exit code is 1 if one does.

    ```
    almanac describe smollm2-135m-instruct
    almanac describe my-model --length 2048 --dtype bfloat16 --json
    almanac describe config.json --check-leaks
    ```

    Args:
        model: An alias, a model folder, a `.gguf` file, or the JSON of a configuration or a spec.
        length: Tokens of a text, for figures that depend on it; may be given several times. At most the model's context.
        dtype: Of dense weights.
        check_leaks: Also test whether the future can be seen.
    """
    import torch

    from almanac.core.errors import RequestError
    from almanac.verify.describe import describe as described
    from almanac.verify.leak import leaks_of_spec
    from almanac.verify.spec_source import named
    from almanac.verify.spec_tree import outline

    if min(length) < 1:
        raise RequestError(f"A text of {min(length)} tokens", remedy="Give --length 1 or more.")
    found = named(model)
    tree = outline(found.spec)
    figures = described(found.spec, lengths=length, dtype=getattr(torch, dtype))
    leaks = leaks_of_spec(found.spec) if check_leaks else None
    if json:
        emit(_object(found, tree, figures) | ({} if leaks is None else {"leaks": [str(leak) for leak in leaks]}))
    else:
        _print(found, tree, figures)
        if leaks is not None:
            line()
            line("leaks: none" if not leaks else "\n".join(f"leak: {leak}" for leak in leaks))
    for text in (*figures.notes, *(f"not understood: {name}" for name in found.not_understood)):
        note(f"note: {text}")
    return 1 if leaks else 0


def _object(found: Named, tree: Part, figures: Description) -> dict[str, Any]:
    parameters, training = figures.parameters, figures.training
    return {
        "model": found.name,
        "model_type": found.model_type,
        "context_length": figures.context_length,
        "dtype": figures.dtype,
        "parameters": {
            "total": parameters.total,
            "active": parameters.active,
            "embedding": parameters.embedding,
        },
        "operations_per_token": {str(length): value for length, value in figures.operations.items()},
        "state_bytes": {str(length): value for length, value in figures.state_bytes.items()},
        "state_is_constant": figures.recurrent,
        "stored_bytes": found.stored_bytes,
        "weights_bytes": figures.weights_bytes,
        "training_bytes": {
            "weights": training.weights,
            "gradients": training.gradients,
            "moments": training.moments,
            "activations": training.activations,
            "logits": training.logits,
            "total": training.total,
            "tokens": training.tokens,
        },
        "serving_bytes": {str(length): figures.serving_bytes(length) for length in figures.operations},
        "notes": list(figures.notes),
        "spec": tree.to_dict(),
    }


def _print(found: Named, tree: Part, figures: Description) -> None:
    from almanac.verify.spec_tree import lines

    table(("part", "sizes", "parameters"), [(head, text, f"{count:,}") for head, text, count in lines(tree)])
    line()
    parameters, training = figures.parameters, figures.training
    idle = "" if parameters.active == parameters.total else f"; a token meets {parameters.active:,}"
    stored = "" if found.stored_bytes is None else f"; {size(found.stored_bytes)} as stored"
    kept = "not known" if training.activations is None else f"about {size(training.activations)}"
    total = "more than the rest" if training.total is None else size(training.total)
    rows = [
        ("family", found.model_type or "none"),
        ("context", f"{figures.context_length:,} tokens" if figures.context_length else "not told"),
        ("parameters", f"{parameters.total:,}{idle}; {parameters.embedding:,} in embeddings"),
        ("weights", f"{size(figures.weights_bytes)} in {figures.dtype}{stored}"),
        (
            "to train",
            f"{total}: weights {size(training.weights)}, gradients {size(training.gradients)}, AdamW "
            f"{size(training.moments)}, activations of {training.tokens:,} tokens {kept}, logits {size(training.logits)}",
        ),
    ]
    table(("figure", "value"), rows)
    line()
    table(
        ("tokens", "operations per token", "state of a text", "bytes per token", "to serve one"),
        [
            (
                f"{length:,}",
                f"{operations / 1e6:,.2f} M",
                *_state(figures, length),
                size(figures.serving_bytes(length)),
            )
            for length, operations in figures.operations.items()
        ],
    )


def _state(figures: Description, length: int) -> tuple[str, str]:
    if length not in figures.state_bytes:
        return "-", "-"
    nbytes = figures.state_bytes[length]
    return size(nbytes), "constant" if figures.recurrent else f"{nbytes / length:,.0f}"
