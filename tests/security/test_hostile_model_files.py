"""Model files made to hurt: whatever the bytes, a reader gives the right tensors or one AlmanacError, and nothing else.

Rows 16 to 27 of the incident list and requirements R15, R16, R17, R36. The mutations know the formats: they change a
declared figure, a description, or bytes. What still loads must be what the formats' own packages read. The number of
mutations is multiplied by the environment variable ALMANAC_FUZZ_FACTOR; each prints its seed if it fails.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import random
import resource
import struct
import sys
import tarfile
import time
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
import safetensors
import torch
from files import gguf_bytes as raw
from files.mutations import BOUNDARY, SOUND_DATA, mutated_gguf, mutated_safetensors, safetensors_bytes, sound_header

from almanac.core.errors import AlmanacError, FileFormatError, UnsafeFileError
from almanac.files.gguf import GGUF, read_gguf
from almanac.files.refuse import REFUSED_SUFFIXES
from almanac.files.safetensors import (
    SafetensorsFile,
    open_safetensors,
    read_header,
    read_sharded,
    write_safetensors,
)

FACTOR = float(os.environ.get("ALMANAC_FUZZ_FACTOR", "1"))
SECONDS_PER_INPUT = 1.0


@contextlib.contextmanager
def bounded(memory_bytes: int = 64 << 20) -> Iterator[None]:
    """Memory that the body may add: counted for Python and numpy, refused by the kernel for everything else."""
    own_pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 0
    limits = resource.getrlimit(resource.RLIMIT_AS)
    if own_pages:
        # four times the bound: the allocator takes address space in large steps
        resource.setrlimit(resource.RLIMIT_AS, (own_pages * resource.getpagesize() + 4 * memory_bytes, limits[1]))
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] <= memory_bytes
    finally:
        tracemalloc.stop()
        resource.setrlimit(resource.RLIMIT_AS, limits)


# --- safetensors -----------------------------------------------------------------------------------------------------


def read_all(path: Path) -> tuple[SafetensorsFile, dict[str, bytes]]:
    opened = open_safetensors(path)
    return opened, {name: opened[name].reshape(-1).view(torch.uint8).numpy().tobytes() for name in opened}


def check_safetensors(path: Path, data: bytes) -> bool:
    """Whether the file loaded; if so, as the library reads it."""
    path.write_bytes(data)
    started = time.perf_counter()
    try:
        opened, tensors = read_all(path)
    except AlmanacError as error:
        assert error.remedy and len(str(error)) < 2000
        return False
    finally:
        assert time.perf_counter() - started < SECONDS_PER_INPUT
    theirs = dict(safetensors.deserialize(data))
    assert tensors == {name: bytes(fields["data"]) for name, fields in theirs.items()}
    assert {n: list(e.shape) for n, e in opened.entries.items()} == {n: list(f["shape"]) for n, f in theirs.items()}
    return True


def test_mutated_safetensors_load_equal_or_fail_typed(tmp_path: Path) -> None:
    assert check_safetensors(tmp_path / "x.safetensors", safetensors_bytes(sound_header(), SOUND_DATA))
    loaded = 0
    count = int(3000 * FACTOR)
    for seed in range(count):
        data = mutated_safetensors(random.Random(seed))
        try:
            loaded += check_safetensors(tmp_path / "x.safetensors", data)
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {data[:600]!r}") from error
    assert 0.01 * count < loaded < 0.5 * count, "the mutations must be neither harmless nor all alike"


def test_boundary_grid_of_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    sound = safetensors_bytes(sound_header(), SOUND_DATA)
    with bounded():
        for value in BOUNDARY:
            assert not check_safetensors(path, safetensors_bytes(sound_header(), SOUND_DATA, length=value))
            for name in ("embed.weight", "norm", "mask", "none", "step"):
                for key in ("shape", "data_offsets"):
                    for place in range(len(sound_header()[name][key])):  # type: ignore[index, arg-type]
                        header = sound_header()
                        unchanged = header[name][key][place] == value  # type: ignore[index]
                        header[name][key][place] = value  # type: ignore[index]
                        changed = safetensors_bytes(header, SOUND_DATA)
                        hidden_by_zero = name == "none" and key == "shape" and 0 in header[name][key]  # type: ignore[index, operator]
                        assert not check_safetensors(path, changed) or unchanged or hidden_by_zero
    assert check_safetensors(path, sound)


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b'{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"__metadata__":{"a":1}}',
        b'{"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}}',
        b'{"a":{"dtype":"U8","shape":[true],"data_offsets":[0,1]}}',
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[false,true]}}',
        b'{"a":{"dtype":"U8","shape":[' + b"1," * 64 + b'1],"data_offsets":[0,1]}}',
        b'{"a":{"dtype":"U8","shape":[[1]],"data_offsets":[0,1]}}',
        b'[{"dtype":"U8","shape":[1],"data_offsets":[0,1]}]',
        b"{" * 5000,
        b'{"a":' * 2000 + b"1" + b"}" * 2000,
    ],
)
def test_headers_with_two_meanings_or_none_are_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(safetensors_bytes(text, b"\x01"))
    for read in (open_safetensors, read_header):
        with pytest.raises(FileFormatError):
            read(tmp_path / "x.safetensors")


def test_holes_overlaps_and_rests_in_safetensors_are_refused(tmp_path: Path) -> None:
    def header(first: list[int], second: list[int]) -> dict[str, object]:
        spans = {"a": first, "b": second}
        return {n: {"dtype": "U8", "shape": [e - s], "data_offsets": [s, e]} for n, (s, e) in spans.items()}

    cases = {"hole": ([0, 2], [3, 4]), "start": ([1, 2], [2, 4]), "overlap": ([0, 3], [2, 4]), "rest": ([0, 1], [1, 3])}
    assert check_safetensors(tmp_path / "x.safetensors", safetensors_bytes(header([0, 2], [2, 4]), b"abcd"))
    assert check_safetensors(tmp_path / "x.safetensors", safetensors_bytes(header([2, 4], [0, 2]), b"abcd"))
    for case, spans in cases.items():
        assert not check_safetensors(tmp_path / "x.safetensors", safetensors_bytes(header(*spans), b"abcd")), case


# --- GGUF ------------------------------------------------------------------------------------------------------------


def check_gguf(path: Path, data: bytes) -> bool:
    """Whether the file loaded; if so, as the package reads it."""
    path.write_bytes(data)
    started = time.perf_counter()
    try:
        opened = read_gguf(path)
        blocks = {name: tensor.blocks().numpy().tobytes() for name, tensor in opened.tensors.items()}
        for tensor in opened.tensors.values():
            assert tuple(tensor.dense().shape) == tensor.shape
    except AlmanacError as error:
        assert error.remedy and len(str(error)) < 2000
        return False
    finally:
        assert time.perf_counter() - started < SECONDS_PER_INPUT
    compare_with_the_package(path, opened, blocks)
    return True


def compare_with_the_package(path: Path, opened: GGUF, blocks: dict[str, bytes]) -> None:
    theirs = gguf.GGUFReader(path)
    assert {tensor.name: tensor.data.tobytes() for tensor in theirs.tensors} == blocks
    for tensor in theirs.tensors:
        assert tuple(reversed(tensor.shape.tolist())) == opened.tensors[tensor.name].shape
    keys = [key for key in theirs.fields if not key.startswith("GGUF.")]
    assert keys == list(opened.metadata)
    for key, ours in opened.metadata.items():
        want = theirs.fields[key].contents()
        if isinstance(ours, np.ndarray):
            assert np.array_equal(ours, np.asarray(want, dtype=ours.dtype), equal_nan=True)
        elif not (isinstance(ours, list) and want == []):
            assert ours == want or (ours != ours and want != want)


def test_mutated_gguf_load_equal_or_fail_typed(tmp_path: Path) -> None:
    assert check_gguf(tmp_path / "x.gguf", raw.sample().build())
    loaded = 0
    count = int(2000 * FACTOR)
    for seed in range(count):
        data = mutated_gguf(random.Random(seed))
        try:
            loaded += check_gguf(tmp_path / "x.gguf", data)
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {data[:1200]!r}") from error
    assert 0.01 * count < loaded < 0.5 * count, "the mutations must be neither harmless nor all alike"


def test_boundary_grid_of_gguf(tmp_path: Path) -> None:
    file = raw.sample()
    data = file.build()
    labels = {label for label, _, _ in file.figures}
    assert labels >= {"tensor count", "pair count", "key length", "value type", "string length", "array type"}
    assert labels >= {
        "array count",
        "first string length",
        "alignment",
        "name length",
        "dimensions",
        "dimension",
        "offset",
    }
    with bounded():
        for label, position, width in file.figures:
            for value in BOUNDARY:
                figure = (value % 2 ** (8 * width)).to_bytes(width, "little")
                unchanged = data[position : position + width] == figure
                changed = data[:position] + figure + data[position + width :]
                loaded = check_gguf(tmp_path / "x.gguf", changed)
                shrinks_within_padding = label == "dimension" and value in (0, 1)
                harmless = unchanged or shrinks_within_padding or label in ("array type", "value type")
                assert not loaded or harmless, (label, value)


# --- incidents -------------------------------------------------------------------------------------------------------


def test_incident_27_declared_tensor_larger_than_file(tmp_path: Path) -> None:
    """CVE-2026-7482: a server read past a tensor's real bytes into its own memory, then exported them."""
    for elements in (16, 2**20, 2**40, 2**60):
        file = raw.sample()
        file.tensors[-1].dims = [elements]  # 8 are there
        with bounded():
            assert not check_gguf(tmp_path / "x.gguf", file.build())
        header = {"a": {"dtype": "F32", "shape": [elements], "data_offsets": [0, 4 * elements]}}
        with bounded():
            assert not check_safetensors(tmp_path / "x.safetensors", safetensors_bytes(header, bytes(32)))


def test_incident_27_the_declared_sizes_are_the_file(tmp_path: Path) -> None:
    """Every tensor lies within the file, but two claim the same bytes, or bytes are left that none claims."""
    file = raw.sample()
    file.tensors[1].offset = 0
    assert not check_gguf(tmp_path / "x.gguf", file.build())
    assert not check_gguf(tmp_path / "x.gguf", raw.sample().build() + b"secret" * 50)
    assert not check_safetensors(tmp_path / "x.safetensors", safetensors_bytes(sound_header(), SOUND_DATA + b"s"))


@pytest.mark.parametrize(
    "dims",
    [[2**32, 2**32], [2**33, 2**31], [2**31, 2**31, 4], [2**63, 2], [2**62, 4], [2**64 - 32, 1], [32, 2**59, 1, 2**59]],
    ids=str,
)
@pytest.mark.parametrize("type_id", [0, 2, 12])
def test_incident_26_products_that_wrap_around(tmp_path: Path, dims: list[int], type_id: int) -> None:
    """CVE-2025-53630, CVE-2026-27940: sizes whose product or sum passes 2^64 looked small to the check."""
    for hidden in ([], [0]):
        file = raw.sample()
        file.tensors[0].dims, file.tensors[0].type_id = (dims[-3:] + hidden)[:4], type_id
        file.tensors[0].data = b"" if hidden else file.tensors[0].data
        with bounded():
            assert not check_gguf(tmp_path / "x.gguf", file.build())
        header = sound_header()
        header["none"] = {"dtype": "I64", "shape": dims + hidden, "data_offsets": [36, 36]}
        with bounded():
            assert not check_safetensors(tmp_path / "x.safetensors", safetensors_bytes(header, SOUND_DATA))


def test_incident_26_an_offset_that_wraps_around(tmp_path: Path) -> None:
    for offset in (2**64 - 32, 2**63, 2**63 - 32, 2**32):
        file = raw.sample()
        file.tensors[2].offset = offset
        assert not check_gguf(tmp_path / "x.gguf", file.build())


def test_incident_26_counts_that_would_be_allocated_first(tmp_path: Path) -> None:
    for count in (2**20, 2**32, 2**40, 2**61, 2**64 - 1):
        for kind in (raw.STRING, raw.ARRAY, raw.U8, raw.U64, raw.BOOL):
            file = raw.sample()
            file.pairs.append(("x", raw.ARRAY, struct.pack("<IQ", kind, count)))
            with bounded():
                assert not check_gguf(tmp_path / "x.gguf", file.build())
        for change in ({"tensor_count": count}, {"pair_count": count}):
            (tmp_path / "x.gguf").write_bytes(raw.RawFile(**change).build())
            with bounded(), pytest.raises(FileFormatError, match="it declares"):
                read_gguf(tmp_path / "x.gguf")


# protocol 0 and 2: os.system("touch CANARY"), written out by hand so that nothing here needs the pickle module
PLANTED = [
    b"cos\nsystem\n(S'touch %s'\ntR.",
    b"\x80\x02cos\nsystem\nq\x00X%s\x85q\x01Rq\x02.",
    b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00cos\nsystem\n(S'touch %s'\ntR.",
]


def planted(canary: Path) -> dict[str, bytes]:
    """Pickles that would make `canary`, bare and in every wrapping that loaders unpack."""
    command = b"touch " + os.fsencode(canary)
    counted = struct.pack("<I", len(command)) + command
    bare = {f"pickle{i}": body % (counted if b"X%s" in body else os.fsencode(canary)) for i, body in enumerate(PLANTED)}
    archive, tar = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writer:
        writer.writestr("archive/data.pkl", bare["pickle1"])
        writer.writestr("archive/version", "3")
    with tarfile.open(fileobj=tar, mode="w") as writer:
        writer.addfile(tarfile.TarInfo("../../escape"))
    npy_header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n"
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(npy_header)) + npy_header + bare["pickle1"]
    return bare | {
        "zip": archive.getvalue(),
        "zip behind a header": safetensors_bytes({}, archive.getvalue()),
        "tar": tar.getvalue(),
        "gzip": gzip.compress(bare["pickle1"]),
        "npy": npy,
        "hdf5": b"\x89HDF\r\n\x1a\n" + bare["pickle0"],
        "empty zip": b"PK\x05\x06" + bytes(18),
    }


class Watch:
    """Audit events of the process while active: opened paths, and anything that runs or connects."""

    FORBIDDEN = (
        "pickle.find_class",
        "os.system",
        "subprocess.Popen",
        "os.exec",
        "os.posix_spawn",
        "os.fork",
        "socket.connect",
    )

    def __init__(self) -> None:
        self.active = False
        self.opened: list[str] = []
        self.ran: list[str] = []
        sys.addaudithook(self._hook)  # for the life of the process; idle unless active

    def _hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.active and event == "open":
            self.opened.append(str(arguments[0]))
        elif self.active and event in self.FORBIDDEN:
            self.ran.append(event)

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        self.active, self.opened, self.ran = True, [], []
        try:
            yield
        finally:
            self.active = False


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


READERS = {"safetensors": open_safetensors, "header": read_header, "gguf": read_gguf}


def test_incident_16_17_20_pickles_are_never_opened(tmp_path: Path, watch: Watch) -> None:
    """CVE-2025-32434, CVE-2026-24747, scanner bypasses: no name and no wrapping gets a pickle near an unpickler."""
    canary, tried = tmp_path / "canary", 0
    for suffix in sorted({*REFUSED_SUFFIXES, ".PT", ".Bin", ".safetensors.pt"}):
        for kind, content in planted(canary).items():
            path = tmp_path / f"{kind}{suffix}"
            path.write_bytes(content)
            for read in READERS.values():
                with watch(), pytest.raises(UnsafeFileError, match="safetensors") as caught:
                    read(path)
                assert str(path) not in watch.opened and not watch.ran
                tried += 1
            assert path.name[:40] in str(caught.value)
    assert tried > 300 and not canary.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "model.gguf", "model", "model.pt.safetensors"])
def test_incident_16_22_the_content_counts_under_any_name(tmp_path: Path, watch: Watch, name: str) -> None:
    canary = tmp_path / "canary"
    for kind, content in planted(canary).items():
        (tmp_path / name).write_bytes(content)
        for read in READERS.values():
            # protocol 0 has no mark of its own, and a header with bytes behind it is a header that does not cover them
            error = FileFormatError if kind in ("pickle0", "zip behind a header") else UnsafeFileError
            with watch(), pytest.raises(error):
                read(tmp_path / name)
            assert not watch.ran
    assert not canary.exists()


def test_incident_18_36_a_folder_with_only_pickles_is_refused_not_read(tmp_path: Path, watch: Watch) -> None:
    """No fallback: beside a broken safetensors file a working pickle is not even looked at."""
    pickle = tmp_path / "pytorch_model.bin"
    pickle.write_bytes(planted(tmp_path / "canary")["pickle1"])
    with watch(), pytest.raises(UnsafeFileError, match=r"pytorch_model\.bin"):
        read_sharded(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"broken file")
    with watch(), pytest.raises(FileFormatError):
        read_sharded(tmp_path)
    assert str(pickle) not in watch.opened and not watch.ran and not (tmp_path / "canary").exists()


def test_incident_24_opening_a_model_reads_that_file_and_no_other(tmp_path: Path, watch: Watch) -> None:
    """CVE-2025-12058: loading a model read local files or addresses that its configuration named."""
    secret = tmp_path / "secret"
    secret.write_text("x")
    texts = {"path": str(secret), "url": "http://127.0.0.1:9/", "template": "{{ ''.__class__ }}"}
    [path] = write_safetensors(tmp_path / "a.safetensors", {str(secret): torch.ones(2)}, metadata=texts)
    with watch():
        assert read_all(path)[0].metadata["path"] == str(secret)
    assert set(watch.opened) == {str(path)} and not watch.ran


def test_incident_23_tensor_names_are_keys_and_never_paths(tmp_path: Path) -> None:
    """CVE-2026-12479: layer names were used as paths."""
    names = ["../../escape", "/etc/passwd", "C:\\x", "a/../../b", "nul", "a\nb"]
    folder = tmp_path / "model"
    folder.mkdir()
    written = write_safetensors(
        folder / "model.safetensors", {name: torch.ones(3) for name in names}, max_shard_bytes=12
    )
    assert len(written) == len(names) + 1 and all(path.parent == folder for path in written)
    assert set(read_sharded(folder)) == set(names)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


NAMES_THAT_LEAVE = """
../x.safetensors ../../x.safetensors a/../../x.safetensors ./x.safetensors a/./x.safetensors a//x.safetensors .. . /
/etc/passwd /x.safetensors //server/share/x.safetensors ~/x.safetensors ~root/x.safetensors sub/x.safetensors
..\\x.safetensors a\\..\\x.safetensors \\x.safetensors \\\\server\\share\\x.safetensors C:x.safetensors
C:\\x.safetensors c:/x.safetensors file:///x.safetensors x.safetensors:stream http://host/x.safetensors
nul.safetensors NUL con.safetensors aux.x.safetensors COM1.safetensors lpt9.safetensors com¹.safetensors
x.safetensors. x.safetensors\0 x\0.safetensors x\u202etensors.safetensors x\u200b.safetensors \ufeffx.safetensors
．．/x.safetensors x／y.safetensors ‥/x.safetensors ＼x.safetensors x：y.safetensors ℀.safetensors
*.safetensors ?.safetensors <x>.safetensors x|y.safetensors "x".safetensors .lock .almanac-1.partial
pytorch_model.bin model.pt model.safetensors.pkl model.gguf model up/x.safetensors up outside.safetensors
""".split()
NAMES_THAT_LEAVE += [
    "",
    " ",
    "x.safetensors ",
    " x.safetensors",
    "x\n.safetensors",
    "x\t.safetensors",
    "\x1b[2J.safetensors",
]
NAMES_THAT_LEAVE += ["a" * 300 + ".safetensors", "a/" * 3000 + "x.safetensors", "é" * 150 + ".safetensors"]


@pytest.mark.parametrize("name", NAMES_THAT_LEAVE, ids=lambda name: ascii(name)[:40])
def test_incident_25_shard_names_stay_in_the_folder(tmp_path: Path, watch: Watch, name: str) -> None:
    """CVE-2022-25882: external data paths left the model's folder."""
    folder = tmp_path / "model"
    folder.mkdir()
    good = {"a": torch.ones(1)}
    for place in (tmp_path / "x.safetensors", folder / "model-1.safetensors"):
        write_safetensors(place, good)
    (folder / "up").symlink_to("..")
    (folder / "outside.safetensors").symlink_to("../x.safetensors")
    index = {"weight_map": {"a": name, "b": "model-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with watch(), pytest.raises(UnsafeFileError):
        read_sharded(folder)
    assert not any("x.safetensors" in path for path in watch.opened)


def test_incident_25_the_index_and_the_single_file_may_not_be_links_that_leave(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write_safetensors(tmp_path / "x.safetensors", {"a": torch.ones(1)})
    (folder / "model.safetensors").symlink_to("../x.safetensors")
    with pytest.raises(UnsafeFileError, match="link"):
        read_sharded(folder)
    (tmp_path / "i.json").write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    (folder / "model.safetensors.index.json").symlink_to("../i.json")
    with pytest.raises(UnsafeFileError, match="link"):
        read_sharded(folder)


def test_case_and_unicode_twins_among_shards_are_refused(tmp_path: Path) -> None:
    twins = [("A", "a"), ("\u00e9", "e\u0301"), ("\ufb01", "fi"), ("ſ", "s")]
    for first, second in ((f"{one}.safetensors", f"{other}.safetensors") for one, other in twins):
        for name in (first, second):
            write_safetensors(tmp_path / name, {name: torch.ones(1)})
        index = {"weight_map": {first: first, second: second}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(UnsafeFileError, match="one file"):
            read_sharded(tmp_path)


def test_a_named_pipe_does_not_hang_the_reader(tmp_path: Path) -> None:
    for name, read in (("x.safetensors", open_safetensors), ("y.gguf", read_gguf)):
        os.mkfifo(tmp_path / name)
        with pytest.raises(FileFormatError, match="regular"):
            read(tmp_path / name)
