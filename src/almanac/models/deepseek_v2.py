"""DeepSeek V2 (DeepSeek-AI 2024, arXiv 2405.04434): latent attention, softmax routing, perhaps limited to groups."""

from __future__ import annotations

from dataclasses import replace

from almanac.core.errors import UnsupportedError
from almanac.files.quoting import quoted
from almanac.models.deepseek_v3 import GGUF, TINY, keys, read_latent, to_gguf, write_latent
from almanac.models.expert_decoder import mixture_of
from almanac.models.family import Config, Family, Fields
from almanac.nn.channel.moe.routing import Groups, SoftmaxTop
from almanac.nn.stack import Decoder

DEFAULTS: Config = {
    "num_experts_per_tok": 6, "n_routed_experts": 64, "moe_intermediate_size": 1407, "n_shared_experts": 2,
    "first_k_dense_replace": 0,
    "max_position_embeddings": 2048, "q_lora_rank": 1536,
}  # fmt: skip
"""What the hub's configuration class assumes where a file is silent."""
GREEDY, LIMITED = "greedy", "group_limited_greedy"


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    method = fields.text("topk_method", GREEDY)
    if method not in (GREEDY, LIMITED) or fields.text("scoring_func", "softmax") != "softmax":
        raise UnsupportedError(
            f"{fields.origin}: topk_method {quoted(method)}", remedy=f"{GREEDY} and {LIMITED} by softmax are read."
        )
    if fields.flag("norm_topk_prob", False):
        raise UnsupportedError(
            f"{fields.origin}: norm_topk_prob in a DeepSeek V2, which its two reference codes take differently",
            remedy="Set it to false if the model was not trained with it.",
        )
    groups = None
    sizes = [fields.any(name) for name in ("n_group", "topk_group", "moe_layer_freq")]
    if method == LIMITED and all(sizes[:2]):
        groups = Groups(count=fields.integer("n_group"), kept=fields.integer("topk_group"))
    rule = SoftmaxTop(scale=fields.number("routed_scaling_factor", 1.0), groups=groups)
    return read_latent(fields, DEFAULTS, lambda router: router.with_(rule=rule), interleaved=True)


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no DeepSeek V2."""
    mixture = mixture_of(spec)
    if mixture is None or not isinstance(rule := mixture.router.rule, SoftmaxTop):
        return None
    if (shared := write_latent(spec)) is None:
        return None
    return shared | {
        "topk_method": GREEDY if rule.groups is None else LIMITED,
        "n_group": rule.groups.count if rule.groups is not None else None,
        "topk_group": rule.groups.kept if rule.groups is not None else None,
        "routed_scaling_factor": rule.scale,
    }


FAMILY = Family(
    "deepseek_v2",
    "DeepseekV2ForCausalLM",
    read,
    write,
    keys,
    gguf="deepseek2",
    gguf_fields=replace(GGUF, outward=lambda config: {**to_gguf(config), "gating": 1}, needs=()),
    tiny={**TINY, "topk_method": LIMITED, "routed_scaling_factor": 2.0},
)
