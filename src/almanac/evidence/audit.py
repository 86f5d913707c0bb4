"""The claims audit: statements that survey texts pass on, and what holds of them, computed where it can be computed.

Energy is power × time × overhead of the building (PUE), carbon is energy × intensity of the grid: the arithmetic of
Strubell 2019 (arXiv 1906.02243, section 2), Patterson 2021 (arXiv 2104.10350, section 2.5), Touvron 2023 (arXiv
2302.13971, appendix) and Luccioni 2022 (arXiv 2211.02001). Inputs are the papers' own; a row holds if what they give is
within 2 % of what the paper prints.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from almanac.core.value import Value

KILOGRAMS_PER_POUND = 0.45359237  # exact, by definition of the pound
HOURS_PER_DAY, SECONDS_PER_DAY = 24, 86_400
CLOSE = 0.02  # share by which a recomputed number may differ from the printed one


@dataclass(frozen=True, kw_only=True)
class Training(Value):
    """A published training run: its inputs, and what its paper prints.

    ``watts`` of one device for ``device_hours`` in all; ``printed_kg`` in kilograms of CO2-equivalent.
    """

    name: str
    source: str
    device_hours: float
    watts: float
    pue: float
    kg_per_kwh: float
    printed_kwh: float
    printed_kg: float

    @property
    def kwh(self) -> float:
        """Energy: device-hours × kilowatts × PUE."""
        return self.device_hours * self.watts / 1000 * self.pue

    @property
    def kg(self) -> float:
        """Carbon dioxide equivalent: energy × intensity."""
        return self.kwh * self.kg_per_kwh

    @property
    def off_by(self) -> float:
        """The larger of the two relative differences to what is printed."""
        return max(abs(self.kwh / self.printed_kwh - 1), abs(self.kg / self.printed_kg - 1))


LLAMA = "Touvron 2023, arXiv 2302.13971, table 15"
TRAININGS = (
    Training(
        name="BERT base, 64 V100 for 79 hours",
        source="Strubell 2019, arXiv 1906.02243, table 3",
        device_hours=79,  # of the whole machine, whose power the paper states
        watts=12_041.51,
        pue=1.58,
        kg_per_kwh=0.954 * KILOGRAMS_PER_POUND,
        printed_kwh=1507,
        printed_kg=1438 * KILOGRAMS_PER_POUND,
    ),
    Training(
        name="GPT-3, 10,000 V100 for 14.8 days",
        source="Patterson 2021, arXiv 2104.10350, table 4",
        device_hours=10_000 * 14.8 * HOURS_PER_DAY,
        watts=330,
        pue=1.10,
        kg_per_kwh=0.429,
        printed_kwh=1_287_000,
        printed_kg=552_100,
    ),
    Training(
        name="LLaMA-7B",
        source=LLAMA,
        device_hours=82_432,
        watts=400,
        pue=1.1,
        kg_per_kwh=0.385,
        printed_kwh=36_000,
        printed_kg=14_000,
    ),
    Training(
        name="LLaMA-65B",
        source=LLAMA,
        device_hours=1_022_362,
        watts=400,
        pue=1.1,
        kg_per_kwh=0.385,
        printed_kwh=449_000,
        printed_kg=173_000,
    ),
    Training(
        name="OPT-175B, as if on LLaMA's grid",
        source=LLAMA,
        device_hours=809_472,
        watts=400,
        pue=1.1,
        kg_per_kwh=0.385,
        printed_kwh=356_000,
        printed_kg=137_000,
    ),
    Training(
        name="BLOOM-176B, power of the devices alone",
        source="Luccioni 2022, arXiv 2211.02001, section 4.2",
        device_hours=1_082_990,
        watts=400,
        pue=1.0,
        kg_per_kwh=0.057,
        printed_kwh=433_196,
        printed_kg=24_690,
    ),
)


def training_days(*, flop: float, devices: int, flop_per_second: float) -> float:
    """Days that ``devices`` at ``flop_per_second`` each take for ``flop`` operations."""
    return flop / (devices * flop_per_second) / SECONDS_PER_DAY


def utilisation(*, flop: float, devices: int, days: float, peak_flop_per_second: float) -> float:
    """Share of the peak at which ``devices`` do ``flop`` operations in ``days``."""
    return flop / (devices * days * SECONDS_PER_DAY * peak_flop_per_second)


@dataclass(frozen=True, kw_only=True)
class Adapted(Value):
    """A model's linear maps as (inputs, outputs) a layer, of those that LoRA is attached to."""

    name: str
    parameters: float
    layers: int
    maps: tuple[tuple[int, int], ...]
    rank: int

    @property
    def trained(self) -> int:
        """Parameters of both factors: layers × rank × Σ (inputs + outputs)."""
        return self.layers * self.rank * sum(inputs + outputs for inputs, outputs in self.maps)

    @property
    def ratio(self) -> float:
        """The model's parameters over those trained."""
        return self.parameters / self.trained


def llama_maps(hidden: int, intermediate: int, *, keys: int | None = None) -> tuple[tuple[int, int], ...]:
    """The seven maps of a LLaMA layer: query, key, value, output, gate, up, down; ``keys`` is the keys' width."""
    keys = hidden if keys is None else keys
    channel = ((hidden, intermediate), (hidden, intermediate), (intermediate, hidden))
    return ((hidden, hidden), (hidden, keys), (hidden, keys), (hidden, hidden), *channel)


ADAPTED = (
    Adapted(name="GPT-3, query and value only", parameters=175e9, layers=96, maps=((12_288, 12_288),) * 2, rank=4),
    Adapted(name="GPT-3, query and value only", parameters=175e9, layers=96, maps=((12_288, 12_288),) * 2, rank=64),
    Adapted(name="LLaMA-7B, every map", parameters=6.738e9, layers=32, maps=llama_maps(4096, 11_008), rank=16),
    Adapted(
        name="SmolLM2-135M, every map (our default)",
        parameters=134.5e6,
        layers=30,
        maps=llama_maps(576, 1536, keys=192),
        rank=8,
    ),
)

GPT3_FLOP = 3.14e23
V100_PEAK, A100_ACHIEVED = 125e12, 140e12
GPT3_TOKENS, GPT3_PARAMETERS = 300e9, 175e9


def megatron_days() -> float:
    """Narayanan 2021's estimate for GPT-3: 8 × tokens × parameters (activations computed again) on 1,024 A100."""
    return training_days(flop=8 * GPT3_TOKENS * GPT3_PARAMETERS, devices=1024, flop_per_second=A100_ACHIEVED)


def softmax_slope(gap: float) -> float:
    """The derivative p (1 - p) of a two-way softmax whose logits are ``gap`` apart."""
    return math.exp(-gap) / (1 + math.exp(-gap)) ** 2


def page() -> str:
    """The page as Markdown."""
    parts = [_head(), _energy(), _gpt3(), _lora(), _widths(), _positions(), _unsupported()]
    return "\n\n".join(parts) + "\n"


def _head() -> str:
    return (
        "# Claims audit\n\n"
        "Quoting a survey is no evidence. These statements stand in texts about language models and are wrong, half\n"
        "right or without a source. Numbers in the column “computed” come from the inputs shown, in\n"
        "`evidence/audit.py`, each time that this page is drawn; none of it was measured here."
    )


def _energy() -> str:
    rows = [
        (
            item.name,
            f"{item.device_hours:,.0f} h × {item.watts:,.0f} W × {item.pue:g}",
            f"{item.kwh / 1000:,.4g} MWh",
            f"{item.printed_kwh / 1000:,.4g} MWh",
            f"{item.kg_per_kwh:.3f}",
            f"{item.kg / 1000:,.3g} t",
            f"{item.printed_kg / 1000:,.3g} t",
            f"{item.off_by:.1%}",
            item.source,
        )
        for item in TRAININGS
    ]
    columns = ("run", "inputs", "computed", "printed", "kg/kWh", "computed", "printed", "off by", "source")
    llama, bert = TRAININGS[3], TRAININGS[0]
    return (
        "## How much did training emit?\n\n"
        f"“LLaMA-65B emitted about 449 t of CO₂.” {llama.printed_kwh / 1000:.0f} is the energy in **MWh**; the carbon is "
        f"{llama.kg / 1000:.0f} t.\n\n"
        f"“Training BERT emitted 79 kg of CO₂.” 79 is the number of **hours** on 64 V100; the paper reports 1,438 lb, "
        f"which are {bert.printed_kg:.0f} kg.\n\n"
        f"{_table(columns, rows)}\n\n"
        "The devices' power is their rated or a measured mean power, the intensity that of the paper's grid: the same run "
        f"emits {0.954 * KILOGRAMS_PER_POUND / 0.057:.1f} times as much on the grid of the first row as on that of the last."
    )


def _gpt3() -> str:
    share = utilisation(flop=GPT3_FLOP, devices=10_000, days=34, peak_flop_per_second=V100_PEAK)
    real = utilisation(flop=GPT3_FLOP, devices=10_000, days=14.8, peak_flop_per_second=V100_PEAK)
    return (
        "## How long did GPT-3 train?\n\n"
        "“About 34 days on 10,000 V100.” The 34 days are an estimate for 1,024 A100 (Narayanan 2021, arXiv 2104.04473, "
        f"section 5.1): 8 × {GPT3_TOKENS:.0e} tokens × {GPT3_PARAMETERS:.2e} parameters at 140 TFLOP/s a device take "
        f"{megatron_days():.1f} days. On 10,000 V100 of 125 TFLOP/s, {GPT3_FLOP:.3g} FLOP in 34 days would be a "
        f"utilisation of {share:.1%}; the 14.8 days of Patterson 2021 are {real:.1%}."
    )


def _lora() -> str:
    rows = [
        (item.name, str(item.rank), f"{item.trained / 1e6:,.2f} M", f"{item.ratio:,.0f}", f"{1 / item.ratio:.3%}")
        for item in ADAPTED
    ]
    columns = ("model and maps", "rank r", "trained", "one in", "share")
    return (
        "## Does LoRA train 10,000 times fewer parameters?\n\n"
        "Of GPT-3 with rank 4 on two maps a layer, yes, nearly (Hu 2021, arXiv 2106.09685). The number is no property of "
        "the method: trained = layers × r × Σ (inputs + outputs) of the maps, so for square maps a weight of d² costs "
        f"2dr, a ratio of d / 2r each.\n\n{_table(columns, rows)}\n\n"
        "What low rank can and cannot follow is tested in [adapt.lora](adapt.lora.md)."
    )


def _widths() -> str:
    return (
        "## Which architecture is it?\n\n"
        "“PaLM is a prefix language model.” PaLM is causal (Chowdhery 2022, arXiv 2204.02311); U-PaLM continues its "
        "training with a mixture of denoisers (Tay 2022, arXiv 2210.11399).\n\n"
        f"“LLaMA's 70-billion model has a width of 12,288.” Its width is {64 * 128:,}: 64 heads of 128 (Touvron 2023, "
        "arXiv 2307.09288). 12,288 is GPT-3's: 96 heads of 128.\n\n"
        "“T5 uses sinusoidal positions.” T5 learns a bias for each bucket of relative positions (Raffel 2019, arXiv "
        "1910.10683, section 2.1)."
    )


def _positions() -> str:
    slopes = ", ".join(f"{softmax_slope(gap):.1e} at {gap}" for gap in (5, 10, 20))
    return (
        "## What do attention and its relatives promise?\n\n"
        "“Sinusoidal positions extrapolate well, rotary ones excellently.” Both fail beyond the length of training "
        "(Press 2021, arXiv 2108.12409); the cards below `nn.positions` measure it.\n\n"
        "“Self-attention has no vanishing gradients and takes sequences of any length.” A softmax saturates: its slope "
        f"between two logits falls to {slopes} of difference, which is why scores are divided by √d. And length is "
        "bounded by positions, as above.\n\n"
        "“Prompt and prefix tuning match full tuning with less than 0.1 % of the parameters.” Prompt tuning does so only "
        "near ten billion parameters, and is far behind below (Lester 2021, arXiv 2104.08691, figure 1)."
    )


def _unsupported() -> str:
    rows = [
        ("“Filtering data gains 5-10 %.”", "of what, for which filter and model, is not said"),
        ("“Retrieval cuts hallucination from 15 % to 5 %.”", "no task, no model, no definition of a hallucination"),
        (
            "“GPT-4 hallucinates in 3-5 % of answers.”",
            "no task and no version; rates of one task are not those of another",
        ),
        ("“A query costs 4-10 g of CO₂.”", "depends on model, length, hardware and grid; none is given"),
    ]
    return (
        "## Which numbers have no source?\n\n"
        "These cannot be tested as they stand, and no text of this project repeats them as facts.\n\n"
        + _table(("statement", "what is missing"), rows)
    )


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
