"""From raw files to a corpus: everything planted is found and told, and nothing that happens to the run changes a byte."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from curate.conftest import prose

from almanac.core.errors import LockedError, NotFoundError, PreflightError, RequestError
from almanac.curate import run
from almanac.curate.recipe import QUALITY, Recipe
from almanac.curate.run import Curated, curate
from almanac.curate.sources import Source
from almanac.data.dedup.substring import RepeatedSubstrings
from almanac.data.filters.decontaminate import Decontaminate
from almanac.data.filters.licence import LicenceAllowed
from almanac.data.filters.personal_data import PersonalDataPolicy
from almanac.data.filters.readable import Readable
from almanac.data.mixture.weights import Mixture
from almanac.files.stages import StageEvent
from almanac.files.store import Lock
from almanac.tokenizers.train.corpus import Corpus

RECIPE = Recipe(
    steps=(Readable(), *QUALITY["gopher-english"], PersonalDataPolicy()), substring=RepeatedSubstrings(min_bytes=80)
)


def sources(raw: Path) -> list[Source]:
    return [
        Source(path=str(raw / "texts"), licence="CC0-1.0"),
        Source(path=str(raw / "crawl.warc.gz")),
        Source(path=str(raw / "records.jsonl.gz"), name="jsonl records"),
    ]


def documents(folder: Path) -> list[dict[str, Any]]:
    shards = sorted((folder / "text").iterdir())
    return [json.loads(line) for shard in shards for line in gzip.open(shard, "rt", encoding="utf-8")]


def removed(folder: Path) -> dict[str, str]:
    with gzip.open(folder / "removed.jsonl.gz", "rt", encoding="utf-8") as lines:
        return {line["id"]: f"{line['step']}: {line['reason']}" for line in map(json.loads, lines)}


def digest(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def made(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Curated:
    return curate(sources(raw), tmp_path_factory.mktemp("made") / "out", recipe=RECIPE)


def test_everything_planted_is_found(made: Curated) -> None:
    kept = {record["id"]: record for record in documents(made.folder)}
    gone = removed(made.folder)
    assert gone["texts/good-2.txt"] == "exact copies: exact copy"  # copy.txt stands before it
    assert gone["texts/near.txt"] == "near copies: near copy" and "texts/near-copy.txt" in kept
    assert gone["jsonl_records/records.jsonl.gz:10"] == "GopherQuality: too few words"
    assert not set(kept) & set(gone) and len(gone) == 3
    names = [
        f"texts/{name}"
        for name in ("archive.zip/in/inner.txt", "archive.zip/in/lines.jsonl:1", "mixed.txt", "notes.md")
    ]
    assert set(names) < set(kept) and "texts/archive.zip/../outside.html" in kept
    assert kept["texts/mixed.txt"]["text"].startswith("Café né. ")
    assert kept["texts/page.html"]["metadata"] == {"licence": "CC0-1.0"}
    crawled = [record for record in kept.values() if record["source"] == "crawl"]
    assert [record["metadata"]["url"][-3:] for record in crawled] == ["/70", "/71", "wet"]
    assert crawled[0]["text"].startswith("Café 70") and "x()" not in crawled[0]["text"]
    assert kept["jsonl_records/records.jsonl.gz:11"]["text"].endswith("[EMAIL]")
    assert kept["jsonl_records/records.jsonl.gz:2"]["metadata"]["licence"] == "MIT"


def test_the_report_adds_up_and_names_what_could_not_be_read(raw: Path, made: Curated) -> None:
    report = made.report
    total = {name: sum(entry["documents"] for entry in report[name].values()) for name in ("read", "kept")}
    reasons = [counts for step in report["steps"].values() for counts in step["reasons"].values()]
    assert total["read"] == total["kept"] + sum(counts["documents"] for counts in reasons)
    assert total["kept"] == len(documents(made.folder)) and len(removed(made.folder)) == total["read"] - total["kept"]
    size = sum(len(record["text"].encode()) for record in documents(made.folder))
    assert size == sum(entry["bytes"] for entry in report["kept"].values())
    faults = dict(map(tuple, report["faults"]["first"]))
    for name, why in {
        "texts/binary.txt": "binary", "texts/empty.txt": "is empty",
        "texts/picture.xyz": "kind", "texts/archive.zip/bomb.txt": "unfolds",
        "texts/archive.zip/in/lines.jsonl:2": "JSON", "jsonl_records/records.jsonl.gz:9": "JSON",
    }.items():  # fmt: skip
        assert why in faults[name]
    assert any("gzip member is damaged" in why for why in faults.values())
    assert report["steps"]["PersonalDataPolicy"]["changed"] == 1
    card = (made.folder / "data_card.md").read_text()
    assert "| near copies | near copy | 1 |" in card and "texts/binary.txt" in card and "fernweh" not in card
    manifest = json.loads((made.folder / "manifest.json").read_text())
    assert manifest["files"] == {name: value for name, value in digest(made.folder).items() if name != "manifest.json"}
    assert {Path(each["name"]).name for each in manifest["inputs"]} == {
        path.name for path in raw.rglob("*") if path.is_file() and path.name != ".hidden.txt"
    }
    assert not (made.folder / run.WORK).exists()


def test_pretraining_reads_the_text_and_nothing_else(made: Curated) -> None:
    texts = ["".join(document) for document in Corpus.of_files([made.text]).documents()]
    assert texts == [record["text"] for record in documents(made.folder)]


def test_workers_and_a_second_run_change_nothing(
    raw: Path, made: Curated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.folder.rglob("*")}
    events: list[StageEvent] = []
    again = curate(sources(raw), made.folder, recipe=RECIPE, report=events.append)
    assert not events and again.report == made.report
    assert {path: path.stat().st_mtime_ns for path in made.folder.rglob("*")} == before
    with monkeypatch.context() as patch:
        patch.setattr("almanac.curate.units.UNIT_FILES", 4)
        patch.setattr("almanac.curate.run.SHARD_BYTES", 3000)
        curate(sources(raw), tmp_path / "units", recipe=RECIPE, workers=2)
    assert documents(tmp_path / "units") == documents(made.folder)
    assert removed(tmp_path / "units") == removed(made.folder)
    assert len(list((tmp_path / "units" / "text").iterdir())) > 5
    (made.folder / "text" / "crawl-00000.jsonl.gz").unlink()  # a damaged output is made again
    curate(sources(raw), made.folder, recipe=RECIPE)
    assert (made.folder / "text" / "crawl-00000.jsonl.gz").is_file()


CHILD = """
import json, sys
from pathlib import Path
import almanac.curate.units as units
from almanac.curate.recipe import Recipe
from almanac.curate.run import curate
from almanac.curate.sources import Source
units.UNIT_FILES = 3
given = json.loads(sys.argv[1])
curate([Source.from_dict(each) for each in given["sources"]], given["output"], recipe=Recipe.from_dict(given["recipe"]),
       report=lambda event: print(event.stage, flush=True))
"""


def test_killed_at_any_stage_it_goes_on_to_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    def start(name: str) -> subprocess.Popen[str]:
        given = {
            "sources": [source.to_dict() for source in sources(raw)], "output": str(tmp_path / name),
            "recipe": RECIPE.to_dict(),
        }  # fmt: skip
        return subprocess.Popen(
            [sys.executable, "-c", CHILD, json.dumps(given)], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
        )

    whole = start("whole")
    output, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0
    kills = 0
    for after in [2, 9, 12, 15, 99]:
        child = start("killed")
        assert child.stdout is not None
        for _ in range(after):
            if not child.stdout.readline():
                break
        if after < 99:
            time.sleep(0.02)
            child.send_signal(signal.SIGKILL)
        child.communicate(timeout=300)
        kills += child.returncode == -signal.SIGKILL
    assert child.returncode == 0 and kills >= 2
    assert digest(tmp_path / "killed") == digest(tmp_path / "whole") and output


def test_licences_evaluations_and_mixture(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(json.dumps({"question": prose(72).split("\n")[3]}))
    recipe = Recipe(
        steps=(Readable(), LicenceAllowed(), Decontaminate(evaluations=(str(tmp_path / "test.jsonl"),))),
        mixture=Mixture(weights=(("texts", 1.0), ("jsonl_records", 1.0))),
        near=None,
    )  # fmt: skip
    given = [Source(path=str(raw / "texts"), licence="MIT"), sources(raw)[2]]
    done = curate(given, tmp_path / "out", recipe=recipe)
    assert done.report["mixture"]["shares"] == {"jsonl_records": 0.5, "texts": 0.5}
    assert done.report["mixture"]["part_kept"]["jsonl_records"] == 1 > done.report["mixture"]["part_kept"]["texts"]
    gone = removed(tmp_path / "out")
    assert sum(why == "LicenceAllowed: no licence told" for why in gone.values()) == 6
    assert sum(why == "mixture: beyond its source's share" for why in gone.values()) >= 4
    other = curate(
        [Source(path=str(raw / "crawl.warc.gz"), licence="MIT")], tmp_path / "two", recipe=recipe.with_(mixture=None)
    )
    assert list(removed(other.folder).values()) == ["Decontaminate: overlaps test.jsonl"]
    (tmp_path / "test.jsonl").write_text(
        json.dumps({"question": prose(99)})
    )  # another evaluation: the work is done again
    assert not removed(curate([Source(path=str(raw / "crawl.warc.gz"), licence="MIT")], tmp_path / "two",
                              recipe=recipe.with_(mixture=None)).folder)  # fmt: skip


def test_bad_input_ends_in_a_clear_error_and_loses_nothing(raw: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(NotFoundError, match="holds no files"):
        curate([empty], tmp_path / "out")
    with pytest.raises(NotFoundError, match="does not exist"):
        curate([tmp_path / "none"], tmp_path / "out")
    (empty / "a.txt").write_text(" \n")
    (empty / "b.txt").write_bytes(b"\x00" * 5000)
    with pytest.raises(PreflightError, match=r"none is left.*1 empty.*b\.txt"):
        curate([empty], tmp_path / "out")
    for number in range(20):
        (empty / f"same-{number}.txt").write_text(prose(1))
    done = curate([empty], tmp_path / "out")
    assert len(documents(done.folder)) == 1 and len(removed(done.folder)) == 20
    long = tmp_path / "long"
    long.mkdir()
    (long / "line.txt").write_text(prose(5, 20_000).replace("\n", " "))
    done = curate([long], tmp_path / "long-out", recipe=Recipe(steps=(Readable(),)))
    assert sum(len(record["text"]) for record in documents(done.folder)) == (long / "line.txt").stat().st_size
    with pytest.raises(RequestError, match="something else"):
        curate([raw / "texts"], empty)
    with pytest.raises(RequestError, match="own name"):
        curate([raw / "texts", Source(path=str(long), name="texts")], tmp_path / "x")
    with pytest.raises(RequestError, match="within its source"):
        curate([long], long / "out")
    assert not (tmp_path / "x").exists() and not (long / "out").exists()
    (tmp_path / "locked" / run.WORK).mkdir(parents=True)
    with Lock(tmp_path / "locked" / run.WORK), pytest.raises(LockedError):
        curate([raw / "texts"], tmp_path / "locked")


def test_a_changed_source_or_recipe_is_noticed(raw: Path, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    shutil.copytree(raw / "texts", folder)
    first = curate([folder], tmp_path / "out")
    (folder / "good-0.txt").write_text(prose(1000))
    second = curate([folder], tmp_path / "out")
    assert prose(1000) in [record["text"] for record in documents(second.folder)]
    assert first.report["recipe"] == second.report["recipe"]
    third = curate([folder], tmp_path / "out", recipe=Recipe(exact=False, near=None))
    assert third.report["kept"]["texts"]["documents"] > second.report["kept"]["texts"]["documents"]


def test_a_full_disk_is_told_before_the_work(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(run.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(PreflightError, match="10 are free"):
        curate([raw / "texts"], tmp_path / "out")


def test_a_recipe_is_a_value_and_refuses_what_is_no_step() -> None:
    assert Recipe.from_dict(json.loads(json.dumps(RECIPE.to_dict()))) == RECIPE
    assert RECIPE.names == ("Readable", "GopherRepetition", "GopherQuality", "PersonalDataPolicy")
    assert Recipe(steps=(Readable(), Readable(min_characters=5))).names == ("Readable", "Readable 2")
    with pytest.raises(RequestError, match="no step"):
        Recipe(steps=(Mixture(),))  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="8 at least"):
        Recipe(substring=RepeatedSubstrings(min_bytes=2))
