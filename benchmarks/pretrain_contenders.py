"""Who trains in `benchmarks/pretrain.py`: almanac's `train()`, transformers' Trainer, and a plain loop over its own model.

Each takes (shape, text, steps, seed, gate) and returns tokens [rows, time] -> logits; ``gate()`` is called when the model is
made and gives what is called after every step. All see the same windows, rates, optimizer and clipping.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RATE, WARM_UP, BETAS, DECAY = 1e-3, 0.05, (0.9, 0.99), 0.1
StepOver = Callable[[], None]
Given = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Shape:
    """A GPT-2 and its step."""

    layers: int
    heads: int
    width: int
    time: int
    vocab_size: int
    rows: int

    @property
    def config(self) -> dict[str, Any]:
        """As transformers call it."""
        return {
            "n_layer": self.layers, "n_head": self.heads, "n_embd": self.width, "n_positions": self.time,
            "vocab_size": self.vocab_size, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
        }  # fmt: skip

    @property
    def parameters(self) -> int:
        """Without positions, the head being tied."""
        return self.layers * (12 * self.width**2 + 13 * self.width) + (self.vocab_size + 2) * self.width

    @property
    def token_flops(self) -> int:
        """Of a training step."""
        return 6 * self.parameters + 6 * self.layers * self.time * self.width


@dataclass
class Text:
    """A `TokenSource` in memory: one document."""

    ids: Tensor

    def __post_init__(self) -> None:
        self.num_tokens, self.ends, self.digest = len(self.ids), torch.tensor([len(self.ids)]), "benchmark"

    def read(self, start: int, length: int) -> Tensor:
        """int64 [length]."""
        return self.ids[start : start + length]


class Block(nn.Module):
    """The plain loop's own block."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.width
        self.heads = shape.heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Plain(nn.Module):
    """The plain loop's own GPT-2; those maps that add to the residual stream start smaller, as in its paper."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(shape.vocab_size, shape.width), nn.Embedding(shape.time, shape.width)
        self.blocks = nn.ModuleList([Block(shape) for _ in range(shape.layers)])
        self.norm = nn.LayerNorm(shape.width)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                adds = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * shape.layers) ** 0.5 if adds else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.places(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.embed.weight)


def windows(text: Text, shape: Shape, steps: int, seed: int) -> Any:
    """The steps, the same for every contender."""
    from almanac.data.windows import WindowBatches

    return WindowBatches(text, time=shape.time, rows=shape.rows, micro_rows=shape.rows, steps=steps, seed=seed)


def train_almanac(shape: Shape, text: Text, steps: int, seed: int, gate: Callable[[], StepOver]) -> Given:
    """`train()`."""
    from almanac.models.family import Fields, family_for
    from almanac.pretrain.initial import initial
    from almanac.train.events.event import Event, StepDone
    from almanac.train.loop import train
    from almanac.train.optimizers.adamw import AdamW
    from almanac.train.settings import TrainSettings

    network: Any = initial(family_for("gpt2").read(Fields(shape.config)).build(), seed=seed)
    settings = TrainSettings(
        learning_rate=RATE, warmup=WARM_UP, seed=seed,
        optimizer=AdamW(beta1=BETAS[0], beta2=BETAS[1], weight_decay=DECAY),
    )  # fmt: skip
    step_over = gate()

    def listen(event: Event) -> None:
        if isinstance(event, StepDone):
            step_over()

    train(network, windows(text, shape, steps, seed), settings=settings, listeners=[listen])
    return network.eval()


def train_trainer(shape: Shape, text: Text, steps: int, seed: int, gate: Callable[[], StepOver]) -> Given:
    """transformers' Trainer."""
    import transformers

    transformers.logging.set_verbosity_error()
    torch.manual_seed(seed)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape.config))

    class Rows(torch.utils.data.IterableDataset[dict[str, Tensor]]):
        def __iter__(self) -> Iterator[dict[str, Tensor]]:
            for (batch,) in windows(text, shape, steps, seed):
                yield from ({"input_ids": row, "labels": row} for row in batch.tokens)

    step_over = gate()

    class Turn(transformers.TrainerCallback):
        def on_step_end(self, *given: Any, **named: Any) -> None:
            step_over()

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder, use_cpu=True, max_steps=steps, per_device_train_batch_size=shape.rows, seed=seed,
            learning_rate=RATE, adam_beta1=BETAS[0], adam_beta2=BETAS[1], weight_decay=DECAY, max_grad_norm=1.0,
            warmup_steps=round(WARM_UP * steps), lr_scheduler_type="cosine_with_min_lr",
            lr_scheduler_kwargs={"min_lr_rate": 0.1}, save_strategy="no", report_to="none", disable_tqdm=True,
            logging_strategy="no", dataloader_pin_memory=False,
        )  # fmt: skip
        transformers.Trainer(model, arguments, train_dataset=Rows(), callbacks=[Turn()]).train()
    model.eval()
    return lambda tokens: model(tokens).logits


def train_plain(shape: Shape, text: Text, steps: int, seed: int, gate: Callable[[], StepOver]) -> Given:
    """A loop of twenty lines."""
    from almanac.train.schedules.cosine import Cosine
    from almanac.train.schedules.schedule import learning_rate

    torch.manual_seed(seed)
    model = Plain(shape)
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": DECAY},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, fused=True)
    step_over = gate()
    for step, (batch,) in enumerate(windows(text, shape, steps, seed)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak=RATE, warmup=WARM_UP, schedule=Cosine(floor=0.1))
        logits = model(batch.tokens[:, :-1])
        F.cross_entropy(logits.flatten(0, 1), batch.tokens[:, 1:].flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step_over()
    return model.eval()


TRAIN = {"almanac": train_almanac, "trainer": train_trainer, "plain": train_plain}
