"""Pre-trains in forked children, one a line of input: ``TEXT FOLDER DELAY``; killed after DELAY seconds if that is above 0.

Answers with the child's exit status and its wall seconds. Forking saves importing torch every time.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # no pool of threads that a fork would lose

import torch

from almanac.models.family import Fields, family_for
from almanac.pretrain.run import pretrain
from almanac.pretrain.settings import PretrainSettings

TIME = 24
SIZES = {
    "vocab_size": 300, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": TIME, "tie_word_embeddings": True,
}  # fmt: skip


def settings() -> PretrainSettings:
    """Saves and measurements fall on steps of their own and together."""
    usual = PretrainSettings(vocab_size=300, time=TIME, held_out=0.2, evaluate_every=10, windows=4, sample_tokens=4)
    train = usual.train.with_(steps=60, step_tokens=8 * TIME, micro_tokens=4 * TIME, save_every=4)
    return usual.with_(train=train)


def child(text: str, folder: str) -> int:
    spec = family_for("llama").read(Fields(SIZES))
    pretrain([text], folder, spec=spec, settings=settings())
    return 0


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        text, folder, delay = line.split()
        began, pid = time.monotonic(), os.fork()
        if pid == 0:
            status = 1
            try:
                status = child(text, folder)
            finally:
                os._exit(status)
        killer = threading.Timer(float(delay), os.kill, (pid, signal.SIGKILL)) if float(delay) > 0 else None
        if killer is not None:
            killer.start()
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # still a zombie, so that a late kill harms nobody else
        if killer is not None:
            killer.cancel()
            killer.join()
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), time.monotonic() - began, flush=True)


if __name__ == "__main__":
    main()
