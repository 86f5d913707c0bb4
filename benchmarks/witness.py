"""Three witnesses on one file: who is right when transformers and llama.cpp answer differently from the same GGUF?

    python benchmarks/witness.py [--model smollm2-135m-instruct] [--text FILE] [--positions 1000]

Compared on the same tokens: ours (packed), transformers on the dequantised weights in float32, llama.cpp on the packed
file, llama.cpp on the same values written as F32, and ours with every activation rounded to 8 bits per block of 32, as
llama.cpp does before a packed product. If the last one is close to llama.cpp where ours is not, the difference is that
rounding and nothing else.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import almanac
from almanac.core.site import Around, select
from almanac.files.hub import PACKAGES, alias_path
from almanac.language_model.model import LanguageModel
from almanac.nn.linear import Linear

BLOCK, LEVELS = 32, 127
GREEDY_TOKENS = 200
PROMPT = "Write a short story about a lighthouse keeper."


class RoundedInput(Around):
    """Rounds the input of a product to int8 with a half-precision scale per block of 32 (ggml's Q8_0 and Q8_1)."""

    def forward(self, following: Callable[..., Tensor], x: Tensor, *rest: object) -> Tensor:
        return following(rounded(x), *rest)


def rounded(x: Tensor) -> Tensor:
    """x [..., n] as llama.cpp sees it in a packed product; n a multiple of 32."""
    blocks = x.unflatten(-1, (-1, BLOCK))
    exact = blocks.abs().amax(-1, keepdim=True) / LEVELS
    codes = torch.where(exact > 0, blocks / torch.where(exact > 0, exact, 1), 0).round()
    return (codes * exact.half().float()).flatten(-2)


def main() -> None:
    """Prints the table of differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--text", help="a text file to take the positions from; by default this script's own source")
    parser.add_argument("--positions", type=int, default=1000)
    options = parser.parse_args()
    path = alias_path(options.model, download=True) if options.model in PACKAGES else Path(options.model)
    lm = almanac.load(path)
    text = Path(options.text or __file__).read_text()
    ids = lm.tokenizer.encode(text)[: options.positions]
    prompt = lm.chat_tokens([{"role": "user", "content": PROMPT}])
    logits, greedy = {"almanac": ours(lm, ids)}, {"almanac": ours_greedy(lm, prompt)}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "dense"
        dense = almanac.load(path, packed=False)
        dense.export(folder, format="hf")
        logits["transformers"], greedy["transformers"] = transformers_answers(folder, ids, prompt)
        plain = dense.export(Path(scratch) / "plain.gguf", format="gguf", quantization="F32")
        logits["llama.cpp F32"], greedy["llama.cpp F32"] = llama_answers(plain, ids, prompt)
    logits["llama.cpp packed"], greedy["llama.cpp packed"] = llama_answers(path, ids, prompt)
    for site in [*select(lm.network, "**", of=Linear).values(), *select(lm.network, "head").values()]:
        site.wrap("rounded", RoundedInput())
    logits["almanac, 8-bit activations"] = ours(lm, ids)
    greedy["almanac, 8-bit activations"] = ours_greedy(lm, prompt)
    print(f"{len(ids)} positions; greedy: first token of {GREEDY_TOKENS} that differs\n")
    print("| a | b | max logit difference | mean KL, nats | same best token | greedy equal for |")
    print("|---|---|---|---|---|---|")
    names = list(logits)
    for first, second in ((a, b) for i, a in enumerate(names) for b in names[i + 1 :]):
        print(row(first, second, logits, greedy))


def row(first: str, second: str, logits: dict[str, Tensor], greedy: dict[str, list[int]]) -> str:
    """One line of the table."""
    a, b = logits[first], logits[second]
    kl = (a.softmax(-1) * (a.log_softmax(-1) - b.log_softmax(-1))).sum(-1).mean()
    same = (a.argmax(-1) == b.argmax(-1)).float().mean()
    pairs = zip(greedy[first], greedy[second], strict=False)
    equal = next((index for index, (x, y) in enumerate(pairs) if x != y), GREEDY_TOKENS)
    return f"| {first} | {second} | {(a - b).abs().max():.2g} | {kl:.2g} | {same:.1%} | {equal} |"


@torch.inference_mode()
def ours(lm: LanguageModel, ids: list[int]) -> Tensor:
    """Logits [positions, vocab]."""
    return lm.network(torch.tensor([ids]))[0]


def ours_greedy(lm: LanguageModel, prompt: list[int]) -> list[int]:
    """Greedy ids, stop tokens ignored."""
    from almanac.generate.engine import Request, run_all

    return run_all(lm.engine(), [Request(tokens=tuple(prompt), max_tokens=GREEDY_TOKENS)])[0]


@torch.inference_mode()
def transformers_answers(folder: Path, ids: list[int], prompt: list[int]) -> tuple[Tensor, list[int]]:
    """Logits and greedy ids of transformers in float32."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rows = torch.tensor([prompt])
    out = model.generate(
        rows, attention_mask=torch.ones_like(rows), max_new_tokens=GREEDY_TOKENS, do_sample=False,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return model(torch.tensor([ids])).logits[0], out[0, len(prompt) :].tolist()


def llama_answers(path: Path, ids: list[int], prompt: list[int]) -> tuple[Tensor, list[int]]:
    """Logits and greedy ids of llama.cpp, with its key-value cache in float32."""
    import llama_cpp

    kind = llama_cpp.GGML_TYPE_F32
    model = llama_cpp.Llama(
        str(path), n_ctx=2048, n_batch=512, logits_all=True, verbose=False, type_k=kind, type_v=kind, flash_attn=False
    )
    model.eval(ids)
    logits = torch.tensor(model.scores[: len(ids)].copy())
    model.reset()
    model.eval(prompt)
    out: list[int] = []
    for _ in range(GREEDY_TOKENS):
        out.append(int(model.scores[model.n_tokens - 1].argmax()))
        model.eval(out[-1:])
    return logits, out


if __name__ == "__main__":
    main()
