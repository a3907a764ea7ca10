"""The programs that disturb runs and spoil inputs: that a fault comes where it should, and what counts as a defect."""

from __future__ import annotations

import errno
import json
import sys
import time
import zlib
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from maskloom.models.bundle import tensors_checksum


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return __import__(name)


@pytest.fixture
def campaign(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("campaign", monkeypatch)


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("fuzz", monkeypatch)


# Where a fault comes -------------------------------------------------------------------------------------------------


def heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **spec: Any) -> Any:
    faulty = load("faulty", monkeypatch)
    return faulty.Faulty({"root": str(tmp_path), "log": str(tmp_path / "log"), **spec})


def test_changes_of_the_folder_are_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = heard(tmp_path, monkeypatch)
    for event, *arguments in [
        ("open", str(tmp_path / ".partial-ab12.json"), "wb", 0),
        ("os.rename", str(tmp_path / ".partial-ab12.json"), str(tmp_path / "a.json"), -1, -1),
        ("open", str(tmp_path / "a.json"), "rb", 0),
        ("open", str(tmp_path / "status" / "host-1.json"), "w", 0),
        ("open", str(tmp_path.parent / "b.json"), "w", 0),
        ("import", "os", None),
    ]:
        watch.hear(event, tuple(arguments))
    lines = (tmp_path / "log").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["open .partial.json", "os.rename a.json"]


@pytest.mark.parametrize(("do", "number"), [("full", errno.ENOSPC), ("readonly", errno.EROFS)])
def test_a_disk_stays_full_from_its_moment_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, do: str, number: int
) -> None:
    order = {"open a": 0, "open b": 1, "open c": 2}
    watch = heard(tmp_path, monkeypatch, do=do, order=order, at=1)
    watch.hear("open", (str(tmp_path / "a"), "w", 0))
    for name in ("c", "a"):  # b was written before, so the next one is where it begins
        with pytest.raises(OSError) as refused:
            watch.hear("open", (str(tmp_path / name), "w", 0))
        assert refused.value.errno == number


def test_a_refusal_names_the_files_as_the_system_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = heard(tmp_path, monkeypatch, do="readonly", order={"os.rename a.json": 0})
    paths = [str(tmp_path / name) for name in (".partial-ab12.json", "a.json")]
    with pytest.raises(OSError, match="Read-only") as refused:
        watch.hear("os.rename", (*paths, -1, -1))
    assert [refused.value.filename, refused.value.filename2] == paths


def test_a_clock_that_is_set_back_dates_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its moment on; two changes later the process is killed. What the run says is noted at both."""
    faulty, killed = load("faulty", monkeypatch), []
    monkeypatch.setattr(faulty.os, "kill", lambda pid, number: killed.append(number))
    clock, root, log = faulty.Clock(100.0), tmp_path / "run", tmp_path / "log"
    spec = {"root": str(root), "do": "clock", "order": {"os.rename b": 1}, "at": 1, "set_back": 3600.0, "changes": 2}
    watch = faulty.Faulty({**spec, "log": str(log)}, clock)
    root.mkdir()
    behind = []
    for name in "abcd":
        (root / f".partial-{name}").write_text(name)
        watch.hear("os.rename", (str(root / f".partial-{name}"), str(root / name), -1, -1))
        behind.append(round(time.time() - (root / f".partial-{name}").stat().st_mtime, -1))
        assert bool(killed) == (name == "d")
    assert behind == [100, 100, 3700, 3700], "b was written just before"
    assert clock.date().now().timestamp() == pytest.approx(time.time() - 3700, abs=10)
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [event["key"] for event in events] == ["os.rename b", "status", "status"]
    assert events[1]["status"]["state"] == "stopped" and events[1]["texts"]


def test_times_that_cannot_be_are_told(campaign: ModuleType) -> None:
    stage = {"name": "survey", "seconds": 3.0, "left": None, "ends": None}
    status = {"at": 1e9, "seconds": None, "left": 20.0, "stages": [stage]}
    told = {"status": status, "texts": ["train/unet/fold0", "about 20 s", "2027-01-15", "-"]}
    assert list(campaign.impossible(told)) == []
    late = stage | {"ends": 1e9 + 3600, "left": -2.0}
    told = {"status": status | {"left": 3620.0, "stages": [late]}, "texts": ["took -3 s"], "error": "none"}
    assert list(campaign.impossible(told)) == [
        "status: none",
        "status says 'took -3 s'",
        "status: run left 3620.0 s",
        "status: survey left -2.0 s",
        "status: survey ends 3600.0 s",
    ]


def test_a_disk_that_fills_up_cuts_a_file_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its moment seven bytes are left, for whatever is written; what lies elsewhere has all it needs."""
    watch = heard(
        tmp_path / "run", monkeypatch, do="torn", order={"open b": 1}, at=1, bytes=7, log=str(tmp_path / "log")
    )
    (tmp_path / "run").mkdir()

    def write(name: str, content: str) -> None:
        with watch.opened(tmp_path / name, "w", encoding="utf-8") as stream:
            stream.write(content)

    write("run/a", "before its moment")
    watch.hear("open", (str(tmp_path / "run" / "b"), "w", 0))
    write("run/b", "four")
    with pytest.raises(OSError, match="No space left") as refused, watch.opened(tmp_path / "run/c", "wb") as stream:
        stream.write(b"five of which three")
    assert refused.value.errno == errno.ENOSPC and refused.value.filename is None, "as the system says it"
    with pytest.raises(OSError, match="No space left"):
        write("run/d", "none")
    write("elsewhere", "all of it")
    found = {path.name: path.read_text() for path in tmp_path.rglob("*") if path.is_file() and path.name != "log"}
    assert found == {"a": "before its moment", "b": "four", "c": "fiv", "d": "", "elsewhere": "all of it"}
    with watch.opened(tmp_path / "run" / "b") as stream:
        assert stream.read() == "four"


def test_moments_are_spread_over_stages_and_follow_from_the_seed(campaign: ModuleType) -> None:
    work = campaign.Work(name="w", command=lambda out: [], results=(), stage_of=lambda name: name)
    events = [campaign.Event(seconds=at, key=f"open {at}", stage=f"s{at // 10}") for at in range(40)]
    events += [campaign.Event(seconds=10.0 * n, key="10.0", stage=f"> s{n}") for n in range(4)]
    order = {f"open {at}": at for at in range(40)}
    first, again = (campaign.draw(work, events, order, 24, np.random.default_rng(5)) for _ in range(2))
    assert first == again and [moment.at for moment in first] == sorted(moment.at for moment in first)
    assert Counter(moment.stage for moment in first) == {f"s{n}": 6 for n in range(4)}
    assert sum(bool(moment.key) for moment in first) == 12
    assert all(0 <= moment.delay < 10 for moment in first)


def test_what_differs_is_a_failure_and_so_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    common = load("common", monkeypatch)
    assert common.differences({"x": "1"}, {"x": "1"}) == []
    assert common.differences({"x": "1"}, {"x": "2", "y": "1"}) == ["differs: x", "differs: y"]
    assert common.differences({}, {}) == ["no files were compared"]


def landing(campaign: ModuleType, stage: str, landed: bool = True) -> Any:
    moment = campaign.Moment(work="fit", stage=stage, at=0.0)
    return campaign.Landing(moment=moment, landed=landed, where=stage)


def test_faults_that_did_not_happen_are_a_failure(campaign: ModuleType) -> None:
    here, missed = landing(campaign, "oof/unet"), landing(campaign, "oof/unet", landed=False)
    assert campaign.missing([here] * 99 + [missed]) == []
    assert campaign.missing([here] * 95 + [missed] * 5) == []
    assert campaign.missing([here] * 94 + [missed] * 6) == ["only 94 of 100 faults happened"]
    assert campaign.missing([here] * 8 + [landing(campaign, "report", landed=False)]) == [
        "fit: nothing happened in stage report"
    ]
    assert campaign.missing([missed] * 3) == ["fit: nothing happened in stage oof/unet", "only 0 of 3 faults happened"]
    assert campaign.missing([]) == ["there were no moments"]


def test_a_campaign_whose_faults_never_happen_ends_with_1(
    campaign: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where a process is not killed, but ends by itself and well."""
    work = campaign.Work(name="fit", command=lambda out: [], results=("x",), stage_of=lambda name: "oof/unet")
    events = [campaign.Event(seconds=1.0, key="open x", stage="oof/unet")]
    is_there = True
    monkeypatch.setattr(sys, "argv", ["campaign", "--moments", "4", "--out", str(tmp_path)])
    monkeypatch.setattr(campaign, "works", lambda folder: [work])
    monkeypatch.setattr(campaign, "undisturbed", lambda *_: (events, {"open x": 0}))
    monkeypatch.setattr(
        campaign,
        "chain",
        lambda work, moments, *_: ([landing(campaign, each.stage, is_there) for each in moments], []),
    )
    assert campaign.main() == 0
    is_there = False
    assert campaign.main() == 1
    report = json.loads((tmp_path / "report-kill.json").read_text())
    assert (report["landed"], report["missed"]) == (0, 4) and "only 0 of 4 faults happened" in report["wrong"]
    capsys.readouterr()


def test_a_work_that_ended_before_its_moment_is_compared_and_begun_anew(
    campaign: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second moment comes too late twice, and the first of these ends with another result."""
    out, tries = tmp_path / "out", []
    codes = iter([-9, 0, 0, -9])

    def disturbed(work: Any, out: Path, folder: Path, moment: Any, *_: Any) -> Any:
        tries.append((moment.delay, out.exists()))
        out.mkdir(exist_ok=True)
        code = next(codes)
        (out / "x").write_text("other" if len(tries) == 2 else "same")
        return campaign.Landing(moment=moment, landed=code == -9, where="s", code=code)

    class Ended:
        def __init__(self, *_: Any) -> None: ...

        def end(self) -> int:
            return 0

    monkeypatch.setattr(campaign, "disturbed", disturbed)
    monkeypatch.setattr(campaign, "Process", Ended)
    work = campaign.Work(name="png", command=lambda out: [], results=("x",), stage_of=lambda name: "s")
    moments = [campaign.Moment(work="png", stage="s", at=at, delay=at) for at in (2.0, 8.0)]
    out.mkdir()
    (out / "x").write_text("same")
    whole = work.digests(out)
    landings, wrong = campaign.chain(work, moments, out, tmp_path, whole, {}, "kill")
    assert tries == [(2.0, True), (8.0, True), (4.0, False), (2.0, False)]
    assert [landing.landed for landing in landings] == [True, True]
    assert wrong == ["png: differs: x"]


def test_what_is_compared_and_what_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common = load("common", monkeypatch)
    for name in ("oof/a.map", "oof/checkpoint.safetensors", "oof/.partial-1", "log.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert list(common.digests(tmp_path, ("oof/[!.]*", "folds.csv"))) == ["oof/a.map"]
    assert common.left_behind(tmp_path) == ["oof/.partial-1"]


def test_files_belong_to_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    stage_of = load("fault_works", monkeypatch).stage_of_run
    assert [stage_of(name) for name in ("stages/oof/unet.sums", "members/unet/fold0/last.safetensors")] == [
        "oof/unet",
        "train/unet/fold0",
    ]
    assert [stage_of(name) for name in ("stages/train/unet/.partial.json", "recipe.yaml")] == ["train/unet", ""]


# Spoilt inputs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["images", "rle", "wkt", "coco", "tables", "yaml"])
def test_inputs_follow_from_seed_and_number(
    fuzz: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    cases = load("fuzz_cases", monkeypatch)
    bench: Any = type("Bench", (), {"run": tmp_path})()
    (tmp_path / "recipe.yaml").write_text("{members: [{name: a}], seed: 0}")
    made = []
    for name in ("a", "b"):
        for number in range(4):
            (tmp_path / name / str(number)).mkdir(parents=True)
            cases.written(kind, 3, number, tmp_path / name / str(number), bench)
        found = (path for path in (tmp_path / name).rglob("*") if path.is_file())
        made.append({path.relative_to(tmp_path / name).as_posix(): path.read_bytes() for path in found})
    assert made[0] == made[1] and len({content for name, content in made[0].items() if "case" in name}) == 4


def test_an_input_that_could_not_be_written_is_no_fault_of_the_reader(
    fuzz: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: Any = type("Ended", (), {"poll": lambda self: 1, "kill": lambda self: None, "wait": lambda self: 1})
    monkeypatch.setattr(fuzz.Worker, "_run", lambda self: vars(self).update(_process=ended(), _since=0.0, _read=0))
    outcomes = []
    for is_written in (False, True):
        results = tmp_path / f"{is_written}.jsonl"
        folder = str(tmp_path / "none" / "case")
        begun = [{"number": 5, "kind": "rle", "folder": folder}, {"number": 5, "written": True}]
        results.write_text("".join(json.dumps(line) + "\n" for line in begun[: 1 + is_written]))
        worker = fuzz.Worker(tmp_path, 0, [5, 6], results)
        worker._begun = {}
        monkeypatch.setattr(fuzz.time, "monotonic", lambda: 1.0)
        outcomes += [line["outcome"] for line in worker.look()]
        assert worker.left == [6]
    assert outcomes == ["not written", "crash"]


def test_texts_grow_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    mutations = load("fuzz_mutations", monkeypatch)
    monkeypatch.setattr(mutations, "MOST_LETTERS", 5_000)
    lengths = [len(mutations.of_runs(np.random.default_rng(seed), "11 22 33 44")) for seed in range(300)]
    assert sorted(lengths)[-20] > 2_500 and max(lengths) <= 5_000 + 2 * 100_001  # and two of the longest words


def test_every_kind_has_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = load("fuzz_cases", monkeypatch)
    turns = sum(weight for _, weight in cases.KINDS.values())
    counts = Counter(cases.kind_of(number) for number in range(turns))
    assert counts == {kind: weight for kind, (_, weight) in cases.KINDS.items()}


def test_only_success_and_refusal_are_good(fuzz: ModuleType) -> None:
    outcomes = ["ok", "refused", "traceback", "hang", "partial", "wrong", "noise"]
    lines = [
        {"number": n, "kind": "yaml", "outcome": each, "peak": n * 2**20, "seconds": 1.0, "message": "", "noise": []}
        for n, each in enumerate(outcomes)
    ]
    report = fuzz.summary(lines, seed=0, first=0)
    assert [line["outcome"] for line in report["defects"]] == sorted(outcomes[2:])
    assert report["largest_mib"] == 6 and "yaml" in fuzz.text_of(report)


def test_a_case_is_judged_by_what_the_command_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = load("fuzz_judge", monkeypatch)
    monkeypatch.setattr(sys, "argv", ["test"])
    outcomes = []
    for name, text in (("good", "img,rle_mask\na,3 2\n"), ("bad", "img,rle_mask\na,3\n")):
        folder = tmp_path / name / "case"
        folder.mkdir(parents=True)
        (folder / "table.csv").write_text(text)
        arguments = ["convert", "table.csv", "single.json", "--size", "4x4"]
        (folder / "case.json").write_text(json.dumps({"do": "command", "arguments": arguments}))
        outcomes.append(judge.judged(folder, judge.Bench(tmp_path)).outcome)
    assert outcomes == ["ok", "refused"]

    def broken(case: dict[str, Any], bench: Any) -> None:
        Path("single.json").write_text("{")
        print("TIFFReadDirectory: unknown tag", file=sys.stderr)
        if case["arguments"]:
            raise KeyError("a defect")

    monkeypatch.setitem(judge.ACTIONS, "command", broken)
    assert judge.judged(tmp_path / "good" / "case", judge.Bench(tmp_path)).outcome == "traceback"


def test_a_bundle_that_loads_must_be_the_one_that_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge, bench_room = load("fuzz_judge", monkeypatch), load("fuzz_bench", monkeypatch)
    bench = bench_room.Bench(tmp_path)
    bench_room.write_bundle(bench.bundle, architecture="unet_scratch", width=0.125)
    outcomes = []
    for name, checksum in (("same", True), ("other", True), ("nameless", False)):
        folder = tmp_path / name / "case"
        folder.mkdir(parents=True)
        tensors = load_file(bench.bundle)
        with safe_open(bench.bundle, framework="pt") as stream:
            config = json.loads(stream.metadata()["maskloom"])
        if name != "same":
            first = next(key for key, tensor in tensors.items() if tensor.is_floating_point())
            tensors[first] = tensors[first] + 1
        stated = config.pop("crc32")
        if checksum:
            text = json.dumps(config, sort_keys=True, ensure_ascii=False)
            config["crc32"] = tensors_checksum(tensors, zlib.crc32(text.encode()))
            assert name != "same" or config["crc32"] == stated
        save_file(tensors, folder / "b.safetensors", metadata={"maskloom": json.dumps(config)})
        (folder / "case.json").write_text(json.dumps({"do": "bundle", "file": "b.safetensors"}))
        outcomes.append(judge.judged(folder, bench).outcome)
    assert outcomes == ["ok", "wrong", "ok"], "one without a checksum may be an earlier version's"


def test_what_may_be_gone_without_being_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = load("fuzz_judge", monkeypatch)
    before, after = tmp_path / "before", tmp_path / "after"
    names = ["stages/oof/unet.json", "stages/oof/unet.sums", "oof/unet/attempt.json", "oof/unet/maps/a.map"]
    for folder in (before, after):
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(name)
    attempt, mapped = names[2:]
    assert judge.same(before, after, attempt)
    (after / attempt).write_text("changed")
    assert not judge.same(before, after, attempt)
    (after / attempt).unlink()
    (after / mapped).unlink()
    assert judge.same(before, after, attempt) and not judge.same(before, after, mapped)
    for name in names[:2]:
        (after / name).unlink()
    assert judge.same(before, after, mapped), "nothing remembers it"


def test_a_damaged_ledger_excuses_its_own_stage_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = load("fuzz_judge", monkeypatch)
    mine, other, whole = "members/unet/fold0/last.safetensors", "oof/unet/maps/a.map", "recipe.yaml"
    damaged = [mine, other, whole, "stages/oof/unet.sums"]
    bad = {"stages/train/unet/fold0.sums": "damaged"}
    assert judge.unnamed(tmp_path, damaged, bad) == [other, whole, "stages/oof/unet.sums"]
    assert judge.unnamed(tmp_path, damaged, {*bad, *damaged}) == []
