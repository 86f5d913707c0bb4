"""Several hundred things that a model loader might be handed, each made to do something when it is opened the wrong way.

Everything a payload does is to make the canary file. Pickles are written out by hand, so that nothing here needs the
module. Each case carries the numbers of the incidents (reliability list, section 1) that it repeats.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from language_model import small
from security.test_hostile_templates import ESCAPES, FILES

from almanac.files.gguf.reader import read_gguf
from almanac.files.gguf.writer import write_gguf
from almanac.files.refuse import REFUSED_SUFFIXES

NEUTRAL_SUFFIXES = (
    "", ".safetensors", ".gguf", ".GGUF", ".json", ".model", ".onnx", ".pb", ".py", ".zip", ".tar", ".gz", ".bin.gguf",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """``expect``: ``refused`` by load, ``refused rendering``, or ``harmless`` (it may load; nothing may happen)."""

    name: str
    incidents: tuple[int, ...]
    path: str
    expect: str = "refused"


def safetensors_bytes(header: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def payloads(canary: Path) -> dict[str, tuple[tuple[int, ...], bytes]]:
    """Contents by name, with their incidents."""
    command = b"touch " + os.fsencode(canary)
    counted = struct.pack("<I", len(command)) + command
    old = b"cposix\nsystem\n(S'" + command + b"'\ntR."
    new = b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00cposix\nsystem\n(X" + counted + b"tR."
    two = b"\x80\x02cposix\nsystem\nq\x00X" + counted + b"\x85q\x01Rq\x02."
    by_getattr = b"\x80\x02cbuiltins\ngetattr\ncposix\n__dict__\nX\x06\x00\x00\x00system\x86R."
    by_exec = b"cbuiltins\nexec\n(S'open(\"" + os.fsencode(canary) + b'", "w")\'\ntR.'
    by_pip = b"cpip\nmain\n(lS'install'\natR."
    by_setitem = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NK\x00(t(ttR(X\x01\x00\x00\x00aK\x01u."
    return {
        "pickle 0": ((16, 20), old), "pickle 2": ((16, 20), two), "pickle 4": ((16, 20), new),
        "pickle 5": ((16, 20), b"\x80\x05" + new[2:]), "pickle by exec": ((20,), by_exec),
        "pickle by getattr": ((20,), by_getattr), "pickle by pip": ((20,), by_pip),
        "pickle that rebuilds a tensor": ((16,), by_setitem),
        "torch zip": ((16,), _zip({"archive/data.pkl": two, "archive/version": b"3", "archive/data/0": bytes(64)})),
        "torch script zip": ((16,), _zip({"a/code/__torch__.py": b"import os", "a/constants.pkl": two})),
        "torch zip, flags broken": ((20,), _zip({"archive/data.pkl": two}).replace(b"PK\x01\x02", b"PK\x01\x03")),
        "torch tar": ((16,), _tar({"pickle": old, "storages": old, "sys_info": b""})),
        "nemo tar": ((16, 23), _tar({"../../escaped": b"x", "model_weights.ckpt": old})),
        "keras zip": ((21,), _zip({"config.json": _keras(canary), "metadata.json": b"{}", "model.weights.h5": b"\x89HDF"})),
        "hdf5": ((22,), b"\x89HDF\r\n\x1a\n" + bytes(8) + _keras(canary)),
        "numpy of objects": ((20,), _npy(two)), "numpy zip of objects": ((20,), _zip({"a.npy": _npy(two)})),
        "joblib": ((20,), zlib.compress(two)), "gzip": ((20,), gzip.compress(two, mtime=0)),
        "bzip2": ((20,), bz2.compress(two)), "xz": ((20,), lzma.compress(two)), "7z": ((20,), b"7z\xbc\xaf'\x1c" + two),
        "zip in zip in zip": ((20,), _zip({"a.zip": _zip({"b.zip": _zip({"c.pkl": two})})})),
        "python": ((31,), b"import os\nos.system('" + command + b"')\n"), "shell": ((31,), b"#!/bin/sh\n" + command),
        "compiled python": ((31,), b"\xa7\x0d\x0d\x0a" + bytes(12) + b"\xe3" + bytes(40)),
        "onnx with data elsewhere": ((25,), b"\x08\x07:\x20location\x12\x10../../etc/passwd"),
        "gguf that is a pickle": ((16,), b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + two),
        "safetensors that is a zip": ((20,), safetensors_bytes({}, _zip({"archive/data.pkl": two}))),
        "safetensors with a pickle for a header": ((18, 20), len(two).to_bytes(8, "little") + two),
        "safetensors with reserved words": ((58,), safetensors_bytes({"__metadata__": {"lc": 1, "type": "constructor"}})),
    }  # fmt: skip


def _zip(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def _tar(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _npy(content: bytes) -> bytes:
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def _keras(canary: Path) -> bytes:
    code = {"class_name": "__lambda__", "config": {"code": f"open({str(canary)!r}, 'w')"}}
    layer = {"module": "os", "class_name": "function", "config": "system", "registered_name": "system"}
    return json.dumps({"class_name": "Sequential", "layers": [{"class_name": "Lambda", **code}, layer]}).encode()


class Planter:
    """Writes the cases below ``root``; ``root/outside`` is where nothing may be read or written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.canary = root / "outside" / "canary"
        (root / "outside").mkdir()
        (root / "outside" / "secret.json").write_text('{"secret": 1}')
        self.payloads = payloads(self.canary)
        saved = small.language_model("llama").save(root / "saved")
        self.sound = root / "sound"
        self.sound.mkdir()
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(saved / name, self.sound / name)
        self.own = saved
        self.gguf = small.language_model("llama").export(root / "sound.gguf", format="gguf", quantization="Q8_0")
        shutil.copy(saved / "model.safetensors", root / "outside" / "model.safetensors")
        self.cases: list[Case] = []

    def plant(self) -> list[Case]:
        """Everything; returns the cases."""
        for step in (self._files, self._folders, self._indices, self._configs, self._manifests, self._links,
                     self._names, self._templates):  # fmt: skip
            step()
        return self.cases

    def _add(self, name: str, incidents: tuple[int, ...], path: Path, expect: str = "refused") -> None:
        self.cases.append(Case(name, incidents, str(path), expect))

    def _folder(self, *, own: bool = False) -> Path:
        folder = self.root / "folders" / f"{len(self.cases):04d}"
        return Path(shutil.copytree(self.own if own else self.sound, folder))

    def _edited(self, name: str, *, own: bool = False, **changes: Any) -> Path:
        folder = self._folder(own=own)
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**values, **changes}))
        return folder

    def _files(self) -> None:
        """Every content under every name."""
        for index, (name, (incidents, content)) in enumerate(self.payloads.items()):
            place = self.root / "files" / str(index)
            place.mkdir(parents=True)
            for suffix in sorted([*REFUSED_SUFFIXES, *NEUTRAL_SUFFIXES]):
                path = place / f"model{suffix}"
                path.write_bytes(content)
                self._add(f"{name} as model{suffix}", incidents, path)

    def _folders(self) -> None:
        """A sound folder whose weights are something else, alone or under the right name."""
        for name, (incidents, content) in self.payloads.items():
            folder = self._folder()
            (folder / "model.safetensors").write_bytes(content)
            self._add(f"{name} for weights", incidents, folder)
        pickle = self.payloads["pickle 2"][1]
        for suffix in sorted(REFUSED_SUFFIXES):
            folder = self._folder()
            (folder / "model.safetensors").unlink()
            (folder / f"pytorch_model{suffix}").write_bytes(pickle)
            self._add(f"only pytorch_model{suffix}", (18, 20), folder)
        for name in ("training_args.bin", "rng_state.pth", "optimizer.pt", "scheduler.pt", "pytorch_model.bin"):
            folder = self._folder()
            (folder / name).write_bytes(pickle)
            self._add(f"{name} beside sound weights", (15, 16), folder, "harmless")

    def _indices(self) -> None:
        leaving = (
            "../outside/model.safetensors", "/etc/passwd", "..", "a/../../outside/model.safetensors", "C:\\x.safetensors",
            "\\\\host\\x.safetensors", "x.safetensors:stream", "file:///etc/passwd", "https://example.org/x.safetensors",
            "~/x.safetensors", "pytorch_model.bin", "model.pt", "..\u2215x.safetensors", "\uff0e\uff0e/x.safetensors",
            "con.safetensors", "x\0.safetensors", "x\u202e.safetensors", "sub/x.safetensors",
        )  # fmt: skip
        for shard in leaving:
            folder = self._folder()
            (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
            (folder / "pytorch_model.bin").write_bytes(self.payloads["pickle 2"][1])
            self._add(f"index to {shard!a}", (25, 60, 62), folder)

    def _configs(self) -> None:
        code = "import os\nos.system('touch " + str(self.canary) + "')\n"
        remote = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": "evil.Words"}
        for name, changes, expect in (
            ("auto_map of an unknown type", {"auto_map": remote, "model_type": "evil"}, "refused"),
            ("auto_map across repositories", {"auto_map": {"AutoModel": "x/y--evil.M"}, "model_type": "y"}, "refused"),
            ("auto_map alone", {"auto_map": remote, "model_type": None}, "refused"),
            ("auto_map beside a known type", {"auto_map": remote}, "harmless"),
            ("trust_remote_code", {"trust_remote_code": True, "auto_map": remote}, "harmless"),
            ("custom pipelines", {"custom_pipelines": {"x": {"impl": "evil.P"}}}, "harmless"),
            ("a quantizer of its own", {"quantization_config": {"quant_method": "evil", "modules": "evil"}}, "refused"),
            ("a type that is a path", {"model_type": "../../outside/evil"}, "refused"),
            ("a type that is a module", {"model_type": "os"}, "refused"),
            ("an activation that is a call", {"hidden_act": "__import__('os').system('true')"}, "refused"),
            ("a rope that is a class", {"rope_parameters": {"rope_type": "os.system"}}, "refused"),
            ("weights elsewhere", {"transformers_weights": "../outside/model.safetensors"}, "harmless"),
            ("a base elsewhere", {"_name_or_path": "https://example.org/model"}, "harmless"),
        ):
            folder = self._edited("config.json", **changes)
            for script in ("evil.py", "modeling_evil.py", "setup.py", "__init__.py", "almanac.py"):
                (folder / script).write_text(code)
            self._add(name, (31,), folder, expect)
        for name in (
            "dataset.py",
            "dataset_infos.json",
            "loading_script.py",
            "conftest.py",
            "sitecustomize.py",
            "x.pth",
        ):
            folder = self._folder()
            (folder / name).write_text(code)
            self._add(f"{name} beside a model", (31,), folder, "harmless")
        for name, changes in (
            ("a tokenizer class of its own", {"auto_map": {"AutoTokenizer": ["evil.Words", None]}}),
            ("a tokenizer of another module", {"tokenizer_class": "os.system"}),
            ("a tokenizer file elsewhere", {"tokenizer_file": "/etc/passwd", "vocab_file": "../outside/secret.json"}),
        ):
            self._add(name, (24, 31), self._edited("tokenizer_config.json", **changes), "harmless")
        for name, part in (
            ("a cutting rule without end", {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"},
             "behavior": "Isolated", "invert": False}}),
            ("a vocabulary of huge ids", {"model": {"type": "BPE", "vocab": {"a": 2**62}, "merges": []}}),
            ("a tokenizer of an unknown type", {"model": {"type": "os.system", "vocab": {}}}),
            ("a tokenizer that adds nothing", {"added_tokens": [{"id": -1, "content": "x"}]}),
        ):  # fmt: skip
            self._add(name, (28,), self._edited("tokenizer.json", **part))

    def _manifests(self) -> None:
        """Kinds in almanac.json name classes: nothing but our own values may come of them."""
        kinds = (
            "os.system", "builtins.eval", "subprocess.Popen", "posix.system", "importlib.import_module", "..os", "",
            "core.value.Value", "core.spec.Spec", "language_model.load.load", "files.store.Lock", "core.errors.os",
            "tokenizers.template_child.Renderer", "__main__.X", "core.catalog.importlib", "language_model.save.shutil",
            "almanac.core.site.Site", "adapt.lora.LowRank", "nn.stack.Decoder.__init__", "nn.stack.torch.Tensor",
        )  # fmt: skip
        for kind in kinds:
            manifest = json.loads((self.own / "almanac.json").read_text())
            for part in ("spec", "plan"):
                edited = {**manifest, part: {"kind": kind, "command": "true"}}
                self._add(f"{part} of kind {kind!r}", (58, 59), self._edited("almanac.json", own=True, **edited))
        reviver = {"lc": 1, "type": "constructor", "id": ["os", "system"], "kwargs": {"command": "true"}}
        self._add("a reviver for a plan", (58, 59), self._edited("almanac.json", own=True, plan=reviver))
        self._add(
            "a reviver in the provenance",
            (58, 59),
            self._edited("almanac.json", own=True, provenance=reviver),
            "harmless",
        )

    def _links(self) -> None:
        """Files of a folder that are links to elsewhere, and things that are no files."""
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
                     "almanac.json"):  # fmt: skip
            for target in ("../../outside/secret.json", str(self.root / "outside" / "model.safetensors"), "/dev/zero"):
                folder = self._folder()
                (folder / name).unlink(missing_ok=True)
                (folder / name).symlink_to(target)
                self._add(f"{name} linked to {Path(target).name}", (25, 60, 62), folder)
        folder = self._folder()
        (folder / "model.safetensors").rename(folder / "x.safetensors")
        names = ["a"]
        (folder / "x.safetensors").unlink()
        (folder / "x.safetensors").symlink_to("../../outside/model.safetensors")
        index = {"weight_map": dict.fromkeys(names, "x.safetensors")}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        self._add("a shard linked elsewhere", (25,), folder)
        for suffix in ("", ".gguf"):
            os.mkfifo(self.root / f"pipe{suffix}")
            self._add(f"a pipe{suffix}", (62,), self.root / f"pipe{suffix}")
        for device in ("/dev/zero", "/dev/null", "/dev/tty"):
            self._add(device, (62,), Path(device))
        (self.root / "loop").symlink_to("loop")
        self._add("a loop of links", (62,), self.root / "loop")

    def _names(self) -> None:
        """Tensor names are keys, never paths."""
        for name in (
            "../../outside/x",
            "/etc/x",
            "layers.0.mixer.q.weight",
            "__class__",
            "model.layers.0.__init__",
            "a\0b",
        ):
            folder = self._folder()
            entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
            (folder / "model.safetensors").write_bytes(safetensors_bytes({name: entry}, bytes(4)))
            self._add(f"a tensor called {name!a}", (23,), folder)
        for name in ("../../outside/x", "blk.0.__class__.weight", "token_embd"):
            path = self.root / f"names-{len(self.cases)}.gguf"
            self._rewritten_gguf(path, extra=name)
            self._add(f"a GGUF tensor called {name!r}", (23,), path)

    def _rewritten_gguf(self, path: Path, *, extra: str = "", template: str = "") -> None:
        file = read_gguf(self.gguf)
        entries = {name: (item.type, item.blocks().clone(), item.shape) for name, item in file.tensors.items()}
        if extra:
            entries[extra] = ("F32", next(iter(file.tensors.values())).dense()[:1, :4].clone(), (1, 4))
        metadata = {**file.metadata, **({"tokenizer.chat_template": template} if template else {})}
        write_gguf(path, metadata, entries, types=file.types)

    def _templates(self) -> None:
        """Hostile templates by each of the three ways a template comes with a model."""
        for index, (name, source) in enumerate({**ESCAPES, **FILES}.items()):
            template = source.replace("CANARY", str(self.canary))
            if index % 3 == 0:
                path = self._edited("tokenizer_config.json", chat_template=template)
            elif index % 3 == 1:
                path = self._folder()
                (path / "chat_template.jinja").write_text(template)
            else:
                path = self.root / f"template-{index}.gguf"
                self._rewritten_gguf(path, template=template)
            self._add(f"template: {name}", (29, 30), path, "refused rendering")


def as_json(cases: list[Case]) -> str:
    return json.dumps([asdict(case) for case in cases])


def sound_first(planter: Planter) -> Iterator[str]:
    """Models that are as they should be, to warm the loader up before anything is counted."""
    yield from (str(planter.sound), str(planter.own), str(planter.gguf))
