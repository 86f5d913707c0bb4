"""Mamba and RWKV: a training step against transformers' on the CPU, and what decoding holds and takes as the text grows.

    python benchmarks/recurrent.py [--threads 1] [--pairs 5] [--tokens 128] [--hidden 128] [--output FILE]

Both train the same tiny model (the same weights, translated by our own families) on the same tokens, in turn, pair after
pair; printed is the median of the pairs' ratios, theirs over ours, and the loss of both, which must agree. Transformers
runs its torch code, for its kernels are not to be had on a CPU. Decoding: bytes of state and milliseconds per token after
texts of several lengths, with an attention stack of the same width beside them; the exponent is that of a fitted power of
length.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LENGTHS = (256, 512, 1024, 2048)
STEPS = 16  # tokens timed after each text
KINDS: dict[str, dict[str, Any]] = {
    "mamba": {"state_size": 16, "expand": 2},
    "rwkv": {"rescale_every": 0, "context_length": 1 << 20},
}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--output", help="where to write the figures as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = {
        "training": [training(kind, options) for kind in KINDS],
        "decoding": [decoding(kind, options) for kind in ("mamba", "rwkv", "llama")],
    }
    for row in found["training"]:
        print(
            f"{row['kind']}: a training step of {options.rows} x {options.tokens} tokens takes transformers "
            f"{row['ratio']:.1f} times as long ({row['low']:.1f} to {row['high']:.1f}); losses {row['losses']}"
        )
    for row in found["decoding"]:
        print(
            f"{row['kind']}: state bytes {row['bytes']} after {list(LENGTHS)} tokens (exponent {row['bytes_exponent']:.2f}), "
            f"ms per token {row['milliseconds']} (exponent {row['time_exponent']:.2f})"
        )
    if options.output:
        Path(options.output).write_text(json.dumps(found | {"options": vars(options)}, indent=2), encoding="utf-8")


def training(kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """Ratios of the two training steps, pair by pair."""
    theirs = their_model(kind, options)
    ours = our_model(kind, theirs)
    theirs.train()
    tokens = torch.randint(0, 256, (options.rows, options.tokens + 1), generator=torch.Generator().manual_seed(0))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]

    def loss_of(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    arms: tuple[tuple[Any, Callable[[], Tensor]], ...] = (
        (theirs, lambda: theirs(inputs, use_cache=False).logits),
        (ours, lambda: ours(inputs)),
    )
    losses: list[float] = []
    ratios: list[float] = []
    for pair in range(options.pairs + 1):  # the first warms up
        taken: list[float] = []
        for model, logits in arms:
            begun = time.perf_counter()
            model.zero_grad()
            loss = loss_of(logits())
            loss.backward()
            taken.append(time.perf_counter() - begun)
            losses.append(round(loss.item(), 5))
        if pair:
            ratios.append(taken[0] / taken[1])
    return {
        "kind": kind,
        "ratio": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "losses": losses[-2:],
    }


def decoding(kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """Bytes of state, and the median milliseconds of a token, after texts of `LENGTHS`."""
    model = our_model(kind, their_model(kind, options)).eval()
    held: list[int] = []
    taken: list[float] = []
    with torch.no_grad():
        for length in LENGTHS:
            text = torch.randint(0, 256, (1, length), generator=torch.Generator().manual_seed(length))
            _, state = model.hidden(text, model.init_state(1, length))
            times: list[float] = []
            for token in range(STEPS):
                begun = time.perf_counter()
                hidden, state = model.hidden(torch.tensor([[token]]), state)
                model.logits(hidden)
                times.append(time.perf_counter() - begun)
            held.append(state.nbytes)
            taken.append(1e3 * statistics.median(times))
    return {
        "kind": kind,
        "bytes": held,
        "milliseconds": [round(item, 3) for item in taken],
        "bytes_exponent": exponent(held),
        "time_exponent": exponent(taken),
    }


def their_model(kind: str, options: argparse.Namespace) -> Any:
    """Transformers' model of random weights."""
    import transformers

    transformers.logging.set_verbosity_error()
    size = {"hidden_size": options.hidden, "num_hidden_layers": options.layers, "vocab_size": 256}
    if kind == "llama":
        size |= {"intermediate_size": 4 * options.hidden, "num_attention_heads": options.hidden // 32}
        size |= {"num_key_value_heads": options.hidden // 32, "max_position_embeddings": 1 << 20}
    config = transformers.AutoConfig.for_model(kind, **size, **KINDS.get(kind, {}))
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config)


def our_model(kind: str, theirs: Any) -> Any:
    """Ours with the same weights, for training."""
    from almanac.core.technique import Plan, assemble
    from almanac.models.checkpoint import drop_tied_head
    from almanac.models.family import Fields, family_for
    from almanac.models.hub_folder import shapes_of
    from almanac.models.tensor_layout import to_ours

    family = family_for(kind)
    spec = family.read(Fields(json.loads(theirs.config.to_json_string(use_diff=False))))
    found, _ = to_ours(family.rows(spec), shapes_of(spec), theirs.state_dict())
    tensors = {name: tensor.detach().clone() for name, tensor in found.items()}
    drop_tied_head(spec, tensors)
    return assemble(spec, Plan(), tensors).train()


def exponent(values: list[float] | list[int]) -> float:
    """The slope of log value over log length."""
    x, y = [math.log(length) for length in LENGTHS], [math.log(value) for value in values]
    return statistics.covariance(x, y) / statistics.variance(x)


if __name__ == "__main__":
    main()
