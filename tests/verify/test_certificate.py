"""Faults planted on purpose: each is caught, and by the check that is meant for it, even with digests made anew."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from language_model import small
from torch import Tensor

from almanac.adapt.lora import Lora
from almanac.compress.quantize.int8 import Int8
from almanac.core.errors import FileFormatError, IntegrityError, NotFoundError, ParityError, UnsafeFileError
from almanac.core.technique import Technique
from almanac.files.gguf.reader import read_gguf
from almanac.files.gguf.writer import write_gguf
from almanac.files.safetensors import open_safetensors, write_safetensors
from almanac.files.store import sha256_file
from almanac.language_model.certify import verify_model
from almanac.language_model.load import load
from almanac.models.gguf_file import deinterleave
from almanac.tokenizers.chat_template import ChatTemplate
from almanac.verify import certificate as certificates
from almanac.verify.parity import EQUAL

NETWORK, TEMPLATE, TOKENIZER = "network answers otherwise", "chat template is not", "tokenizer reads"
Edit = Callable[[Path], None]


def edited_json(name: str, edit: Callable[[dict[str, Any]], Any]) -> Edit:
    def change(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        edit(values)
        (folder / name).write_text(json.dumps(values))

    return change


def edited_tensors(edit: Callable[[dict[str, Tensor]], Any]) -> Edit:
    def change(folder: Path) -> None:
        held = {name: tensor.clone() for name, tensor in open_safetensors(folder / "model.safetensors").items()}
        edit(held)
        write_safetensors(folder / "model.safetensors", {name: tensor.contiguous() for name, tensor in held.items()})

    return change


def both(*edits: Edit) -> Edit:
    def change(folder: Path) -> None:
        for edit in edits:
            edit(folder)

    return change


def in_layers(spec: dict[str, Any], edit: Callable[[dict[str, Any]], Any]) -> None:
    for layer in spec["layers"]:
        edit(layer.get("of", layer))


def swap(held: dict[str, Tensor], one: str, other: str) -> None:
    held[one], held[other] = held[other], held[one]


def flip(held: dict[str, Tensor], name: str, bit: int) -> None:
    """One bit of one weight."""
    flat = held[name].view(-1).view(torch.int32)
    flat[17] ^= 1 << bit


LAYER = "model.layers.1.self_attn."
LORA = Lora(rank=3, alpha=6.0)


@dataclass(frozen=True)
class Fault:
    """``caught`` is part of the message of the check that is meant for it."""

    edit: Edit
    caught: str
    techniques: tuple[Technique, ...] = ()
    variant: str = "llama"


FAULTS: dict[str, Fault] = {
    "another chat template": Fault(
        edited_json(
            "tokenizer_config.json",
            lambda c: c.update(chat_template=c["chat_template"].replace("<|im_end|>", "")),
        ),
        TEMPLATE,
    ),
    "a chat template that obeys the last word": Fault(
        lambda folder: (folder / "chat_template.jinja").write_text(small.TEMPLATE + "{{ 'Sure, ' }}") and None, TEMPLATE
    ),
    "no chat template": Fault(edited_json("tokenizer_config.json", lambda c: c.pop("chat_template")), TEMPLATE),
    "no bos": Fault(edited_json("tokenizer_config.json", lambda c: c.update(add_bos_token=False)), TOKENIZER),
    "an eos behind": Fault(edited_json("tokenizer_config.json", lambda c: c.update(add_eos_token=True)), TOKENIZER),
    "other merges": Fault(
        edited_json("tokenizer.json", lambda t: t["model"].update(merges=t["model"]["merges"][:40])), TOKENIZER
    ),
    "no adapter": Fault(
        both(
            edited_json("almanac.json", lambda m: m["plan"].pop("techniques")),
            edited_tensors(lambda held: [held.pop(name) for name in list(held) if ".around." in name]),
        ),
        NETWORK,
        (LORA,),
    ),
    "the adapter twice as strong": Fault(
        edited_json("almanac.json", lambda m: m["plan"]["techniques"][0].update(alpha=12.0)), NETWORK, (LORA,)
    ),
    "the adapter of another layer": Fault(
        edited_tensors(
            lambda held: [
                swap(held, f"layers.0.mixer.q.around.lora.{part}", f"layers.1.mixer.q.around.lora.{part}")
                for part in "ab"
            ]
        ),
        NETWORK,
        (LORA,),
    ),
    "q and k swapped": Fault(
        edited_tensors(lambda held: swap(held, LAYER + "q_proj.weight", LAYER + "k_proj.weight")), NETWORK
    ),
    "q transposed": Fault(
        edited_tensors(lambda held: held.update({LAYER + "q_proj.weight": held[LAYER + "q_proj.weight"].T})), NETWORK
    ),
    "rotary rows in another order": Fault(
        edited_tensors(
            lambda held: held.update({LAYER + "q_proj.weight": deinterleave(held[LAYER + "q_proj.weight"], 16)})
        ),
        NETWORK,
    ),
    "gate and up swapped": Fault(
        edited_tensors(
            lambda held: swap(held, "model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight")
        ),
        NETWORK,
    ),
    "another rope theta": Fault(
        both(
            edited_json("config.json", lambda c: c["rope_parameters"].update(rope_theta=1100.0)),
            edited_json(
                "almanac.json", lambda m: in_layers(m["spec"], lambda x: x["mixer"]["position"].update(theta=1100.0))
            ),
        ),
        NETWORK,
    ),
    "another norm epsilon": Fault(
        both(
            edited_json("config.json", lambda c: c.update(rms_norm_eps=1e-4)),
            edited_json(
                "almanac.json",
                lambda m: (
                    m["spec"]["norm"].update(epsilon=1e-4),
                    in_layers(m["spec"], lambda x: [x[name].update(epsilon=1e-4) for name in ("mixer_norm", "channel_norm")]),
                ),
            ),
        ),
        NETWORK,
    ),
    "a tied head untied": Fault(
        both(
            edited_json("config.json", lambda c: c.update(tie_word_embeddings=False)),
            edited_json(
                "almanac.json",
                lambda m: m["spec"].update(
                    head={
                        "kind": "nn.head.Head",
                        "projection": {
                            "kind": "nn.linear.Linear", "in_features": 64, "out_features": small.VOCAB,
                            "axes": ["vocab", "embed"],
                        },
                    }
                ),
            ),
            edited_tensors(
                lambda held: held.update({"lm_head.weight": held["model.embed_tokens.weight"].roll(1, dims=0)})
            ),
        ),
        NETWORK,
        variant="llama tied",
    ),
    "a bit of an exponent": Fault(edited_tensors(lambda held: flip(held, LAYER + "v_proj.weight", 29)), NETWORK),
    "a weight that is no number": Fault(
        edited_tensors(lambda held: held[LAYER + "v_proj.weight"].view(-1)[3].fill_(float("nan"))), NETWORK
    ),
}  # fmt: skip
every_fault = pytest.mark.parametrize("name", list(FAULTS))


def certified(folder: Path, fault: Fault) -> Path:
    """A saved model whose tokenizer puts a bos in front and whose keys are as wide as its queries."""
    lm = small.language_model(fault.variant, *fault.techniques, num_key_value_heads=4)
    lm.tokenizer = small.tokenizer(add_bos_token=True)
    return lm.save(folder)


def sealed_anew(place: Path, folder: Path, *names: str) -> None:
    """What somebody does who knows of the digests of files: computes them again."""
    certificate = json.loads(place.read_text())
    found = names or [path.name for path in folder.iterdir() if path != place]
    certificate["files"] = {name: sha256_file(folder / name) for name in found}
    place.write_text(json.dumps(certificate))


@every_fault
def test_a_planted_fault_is_caught_by_its_own_check(name: str, tmp_path: Path) -> None:
    fault = FAULTS[name]
    folder = certified(tmp_path / "m", fault)
    place = folder / certificates.NAME
    assert verify_model(folder)["relative"] <= 1e-6
    fault.edit(folder)
    with pytest.raises(IntegrityError):
        verify_model(folder)
    sealed_anew(place, folder)
    with pytest.raises(ParityError, match=fault.caught):
        verify_model(folder)
    with pytest.raises(ParityError, match=fault.caught):
        certificates.check(certificates.read(place), load(folder))


@pytest.mark.parametrize("epsilon", [1.0001e-5, 9.9e-6])
def test_a_change_too_small_for_the_probes_is_caught_by_its_digest(epsilon: float, tmp_path: Path) -> None:
    folder = certified(tmp_path / "m", Fault(lambda folder: None, ""))
    both(
        edited_json("config.json", lambda c: c.update(rms_norm_eps=epsilon)),
        edited_json(
            "almanac.json",
            lambda m: (
                m["spec"]["norm"].update(epsilon=epsilon),
                in_layers(
                    m["spec"], lambda x: [x[name].update(epsilon=epsilon) for name in ("mixer_norm", "channel_norm")]
                ),
            ),
        ),
    )(folder)
    sealed_anew(folder / certificates.NAME, folder)
    certificates.check(certificates.read(folder / certificates.NAME), load(folder))
    with pytest.raises(ParityError, match="spec is not the certified one"):
        verify_model(folder)


def test_the_last_bit_of_a_weight_is_caught_by_the_digest_of_its_file(tmp_path: Path) -> None:
    folder = certified(tmp_path / "m", Fault(lambda folder: None, ""))
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"model\.safetensors is not what was certified"):
        verify_model(folder)


@pytest.mark.parametrize(
    "edit",
    [
        edited_json("tokenizer_config.json", lambda c: c.update(stop_tokens=["<|im_start|>"])),
        edited_json("tokenizer.json", lambda t: t["pre_tokenizer"]["pretokenizers"].pop(0)),
    ],
    ids=["other tokens that stop", "digits together"],
)
def test_what_no_probe_shows_of_a_tokenizer_is_caught_by_its_digest(edit: Edit, tmp_path: Path) -> None:
    """With another end-of-turn token a model never stops, and no probe text would tell."""
    folder = certified(tmp_path / "m", Fault(lambda folder: None, ""))
    edit(folder)
    sealed_anew(folder / certificates.NAME, folder)
    certificates.check(certificates.read(folder / certificates.NAME), load(folder))
    with pytest.raises(ParityError, match="tokenizer is not the certified one"):
        verify_model(folder)


# --- GGUF


def rewritten(path: Path, *, metadata: dict[str, Any] | None = None, turn: str = "") -> None:
    """The file again, with metadata changed or one tensor's rotary rows left in the hub's order."""
    file = read_gguf(path)
    entries = {}
    for name, item in file.tensors.items():
        blocks = item.blocks().clone()
        entries[name] = (item.type, deinterleave(blocks, 16) if name == turn else blocks, item.shape)
    types = {key: kind for key, kind in file.types.items() if key not in (metadata or {})}
    write_gguf(path, {**file.metadata, **(metadata or {})}, entries, types=types)


GGUF_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "rows of q not put in ggml's order": ({"turn": "blk.1.attn_q.weight"}, NETWORK),
    "rows of k not put in ggml's order": ({"turn": "blk.0.attn_k.weight"}, NETWORK),
    "another rope theta": ({"metadata": {"llama.rope.freq_base": 1100.0}}, NETWORK),
    "another norm epsilon": ({"metadata": {"llama.attention.layer_norm_rms_epsilon": 1e-4}}, NETWORK),
    "another chat template": ({"metadata": {"tokenizer.chat_template": small.TEMPLATE + " "}}, TEMPLATE),
    "no bos": ({"metadata": {"tokenizer.ggml.add_bos_token": False}}, TOKENIZER),
}


@pytest.mark.parametrize("quantization", ["F32", "Q8_0"])
@pytest.mark.parametrize("name", list(GGUF_FAULTS))
def test_a_fault_in_a_gguf_file_is_caught_by_its_own_check(name: str, quantization: str, tmp_path: Path) -> None:
    edit, caught = GGUF_FAULTS[name]
    lm = small.language_model("llama")
    lm.tokenizer = small.tokenizer(add_bos_token=True)
    path = lm.export(tmp_path / "m.gguf", format="gguf", quantization=quantization)
    place = tmp_path / "m.gguf.certificate.json"
    result = verify_model(path)
    assert (result["certificate"], result["new"], result["agreement"]) == (str(place), False, 1.0)
    rewritten(path, **edit)
    with pytest.raises(IntegrityError):
        verify_model(path)
    sealed_anew(place, tmp_path, "m.gguf")
    with pytest.raises(ParityError, match=caught):
        verify_model(path)


# --- sound models


@pytest.mark.parametrize("techniques", [(), (LORA,), (Int8(targets="layers.**"), LORA)])
def test_an_unchanged_model_holds(techniques: tuple[Technique, ...], tmp_path: Path) -> None:
    lm = small.language_model("qwen2 windows", *techniques)
    lm.provenance["parity"] = [{"step": "made up", "bound": 1.0}]
    folder = lm.save(tmp_path / "m")
    before = small.files_in(tmp_path)
    for target in (folder, str(folder)):
        result = verify_model(target)
        assert result == {
            "certificate": str(folder / certificates.NAME), "new": False, "steps": [{"step": "made up", "bound": 1.0}],
            "relative": 0.0, "agreement": 1.0, "bound": EQUAL,
        }  # fmt: skip
    assert small.files_in(tmp_path) == before, "verifying writes nothing"


def test_a_foreign_model_gets_its_first_certificate(tmp_path: Path) -> None:
    saved = small.language_model("llama").save(tmp_path / "saved")
    folder = tmp_path / "m"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(saved / name, folder / name)
    first = verify_model(folder)
    assert first["new"] is True
    known = certificates.read(folder / certificates.NAME)
    assert set(known["files"]) == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert verify_model(folder)["new"] is False
    alone = tmp_path / "alone"
    alone.mkdir()
    path = alone / "m.gguf"
    small.language_model("llama").export(path, format="gguf", quantization="Q8_0")
    (alone / "m.gguf.certificate.json").unlink()
    (alone / "other.json").write_text("{}")
    assert verify_model(path)["new"] is True
    assert sorted(item.name for item in alone.iterdir()) == ["m.gguf", "m.gguf.certificate.json", "other.json"]
    assert verify_model(path)["new"] is False


def test_one_certificate_holds_for_every_form(tmp_path: Path) -> None:
    lm = small.language_model("llama", LORA)
    known = certificates.read(lm.save(tmp_path / "m") / certificates.NAME)
    exact = lm.export(tmp_path / "m.gguf", format="gguf", quantization="F32")
    assert certificates.check(known, load(exact))["agreement"] == 1.0
    certificates.check(known, load(lm.export(tmp_path / "hf", format="hf")))
    small_file = load(lm.export(tmp_path / "q.gguf", format="gguf", quantization="Q8_0"))
    with pytest.raises(ParityError, match=NETWORK):
        certificates.check(known, small_file)
    assert certificates.check(known, small_file, bound=0.1)["relative"] > EQUAL


def test_files_that_appear_are_noticed_when_loading_would_read_them(tmp_path: Path) -> None:
    """An index file overrules model.safetensors; a note beside the model does not matter."""
    folder = small.language_model("llama").save(tmp_path / "m")
    (folder / "README.md").write_text("notes")
    verify_model(folder)
    other = small.language_model("llama", seed=5).save(tmp_path / "other")
    shutil.copy(other / "model.safetensors", folder / "x.safetensors")
    names = list(open_safetensors(folder / "x.safetensors"))
    index = {"weight_map": dict.fromkeys(names, "x.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(IntegrityError, match="was not there"):
        verify_model(folder)
    (folder / "x.safetensors").unlink()
    (folder / "model.safetensors.index.json").unlink()
    (folder / "tokenizer.json").unlink()
    with pytest.raises(IntegrityError, match="missing"):
        verify_model(folder)


def test_a_template_that_writes_the_date_does_not_make_a_certificate_expire(tmp_path: Path) -> None:
    lm = small.language_model("llama")
    lm.tokenizer = small.tokenizer(chat_template="{{ strftime_now('%d %b %Y') }}")
    lm.template = ChatTemplate.of(lm.tokenizer)
    folder = lm.save(tmp_path / "m")
    known = certificates.read(folder / certificates.NAME)
    assert known["template"]["rendered"] == hashlib.sha256(b"03 Feb 2001").hexdigest()
    lm.template = None
    with pytest.raises(ParityError, match=TEMPLATE):
        certificates.check(known, lm)


def test_a_template_that_is_not_the_tokenizers_is_not_saved(tmp_path: Path) -> None:
    lm = small.language_model("llama")
    lm.template = ChatTemplate("{{ messages[0]['content'] }}")
    with pytest.raises(ParityError, match=TEMPLATE):
        lm.save(tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


# --- certificates that are none


def keep(*keys: str) -> Callable[[dict[str, Any]], Any]:
    return lambda c: [c.pop(key) for key in list(c) if key not in keys]


UNSOUND: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a later version": lambda c: c.update(version=2),
    "nothing": keep("version"),
    "no probes of the network": lambda c: c.update(network=[]),
    "half of the probes": lambda c: c.update(network=c["network"][:4]),
    "other texts": lambda c: c["tokenizer"]["answers"][0].update(text="hi"),
    "no texts": lambda c: c["tokenizer"].update(answers=[]),
    "ids of another row": lambda c: c["network"][0].update(ids=c["network"][1]["ids"]),
    "no logits": lambda c: c["network"][0].update(top_ids=[], top_logits=[]),
    "text for logits": lambda c: c["network"][0].update(top_logits=["1"] * 16),
    "short answers": lambda c: c["network"][0].update(best=[]),
    "no digests": lambda c: c.update(digests={}),
    "files that are a list": lambda c: c.update(files=[]),
    "steps that are text": lambda c: c.update(steps="fold"),
    "no word of a template": lambda c: c.pop("template"),
}


@pytest.mark.parametrize("case", list(UNSOUND))
def test_a_certificate_that_says_less_vouches_for_nothing(case: str, tmp_path: Path) -> None:
    folder = small.language_model("llama").save(tmp_path / "m")
    edited_json(certificates.NAME, UNSOUND[case])(folder)
    with pytest.raises(FileFormatError):
        verify_model(folder)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "..\\x", "a/../../x"])
def test_names_in_a_certificate_stay_in_its_folder(name: str, tmp_path: Path) -> None:
    folder = small.language_model("llama").save(tmp_path / "m")
    edited_json(certificates.NAME, lambda c: c["files"].update({name: "0" * 64}))(folder)
    with pytest.raises(UnsafeFileError):
        verify_model(folder)


def test_there_must_be_a_model() -> None:
    with pytest.raises(NotFoundError, match="no model"):
        verify_model("nowhere-at-all")
