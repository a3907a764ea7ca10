"""Feeds spoilt inputs to every reader: nothing but success or one line of refusal may come of it.

10,000 by default, seeded: images of every format, TIFF tags, run lengths, WKT, COCO, vector files, tables, YAML,
checkpoints, runs with flipped bits, and what interrupted predictions left. Each is judged in a worker process with a
memory cap and a time limit; a defect is kept in a folder of its own, from which ``--replay FOLDER`` repeats it. Ends
with 1 where there was one, or where an input could not be written.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

SECONDS = 60.0
"""An input that takes longer is a hang."""
CAP = 2 * 2**30
"""Bytes of memory beyond those of the loaded program that an input may take."""
ADDRESSES = 8 * 2**30
"""Bytes of addresses beyond those; what asks for more is refused by the system."""
START_SECONDS = 300.0
"""For a worker to import, and to make its first case."""


def worker(bench_folder: Path, seed: int, numbers: list[int], results: Path) -> None:
    """Judges cases one by one and writes down each as it begins and as it ends."""
    from fuzz_bench import Bench
    from fuzz_cases import kind_of, written
    from fuzz_judge import GOOD, judged

    import maskloom.api  # noqa: F401

    bench = Bench(bench_folder)
    os.environ["OMP_NUM_THREADS"] = "1"
    import numpy as np
    import torch

    torch.set_num_threads(1)
    bench.opened().predict_array(np.zeros((32, 48, 3), np.uint8))  # so that opening counts for no case
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + ADDRESSES, held + ADDRESSES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with results.open("a", buffering=1) as stream:
        for number in numbers:
            kind = kind_of(number)
            with tempfile.TemporaryDirectory(prefix=f"fuzz-{number}-") as name:
                folder = Path(name) / "case"
                folder.mkdir()
                stream.write(json.dumps({"number": number, "kind": kind, "folder": str(folder)}) + "\n")
                written(kind, seed, number, folder, bench)
                stream.write(json.dumps({"number": number, "written": True}) + "\n")
                inputs = Path(name).with_suffix(".inputs")
                shutil.copytree(folder, inputs, copy_function=_linked)
                began = time.perf_counter()
                verdict = judged(folder, bench)
                seconds = time.perf_counter() - began
                if verdict.outcome in GOOD and verdict.peak > CAP:
                    verdict.outcome = "memory"
                line = {"number": number, "kind": kind, "seconds": round(seconds, 3), **asdict(verdict)}
                if verdict.outcome not in GOOD:
                    keep(inputs, results.parent / "kept", line)
                shutil.rmtree(inputs)
                stream.write(json.dumps(line) + "\n")


def _linked(source: str, target: str) -> None:
    os.link(source, target)  # commands replace files, and do not write into them


def keep(folder: Path, kept: Path, line: dict[str, Any]) -> Path:
    """Copies a case to where it can be replayed from, with what came of it."""
    target = kept / f"{line['kind']}-{line['number']}"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target)
    (target / "verdict.json").write_text(json.dumps(line, indent=1))
    return target


class Worker:
    """A worker process, and what it has said so far."""

    def __init__(self, bench: Path, seed: int, numbers: list[int], results: Path) -> None:
        self._start = (bench, seed)
        self._results = results
        self.left = numbers
        self._run()

    def _run(self) -> None:
        arguments = [sys.executable, __file__, "--worker", str(self._start[0]), str(self._results)]
        arguments += ["--seed", str(self._start[1])]
        self._process = subprocess.Popen(arguments, stdin=subprocess.PIPE, text=True)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(self.left))
        self._process.stdin.close()
        self._since, self._read, self._begun = time.monotonic(), 0, {}
        if self._results.exists():
            self._read = self._results.stat().st_size

    def look(self) -> list[dict[str, Any]]:
        """Returns what was judged since the last look; takes a hanging or dead worker's case down and goes on."""
        status = self._process.poll()
        found = []
        with self._results.open("a+") as stream:
            stream.seek(self._read)
            for text in stream.readlines():
                if not text.endswith("\n"):
                    break
                self._read += len(text.encode())
                line = json.loads(text)
                self._since = time.monotonic()
                if "outcome" in line:
                    found.append(line)
                    self._begun = {}
                    self.left = [number for number in self.left if number != line["number"]]
                else:
                    self._begun |= line
        limit = SECONDS if self._begun.get("written") else START_SECONDS
        hangs = time.monotonic() - self._since > limit
        if self.left and (hangs or status is not None):
            self._process.kill()
            status = self._process.wait()
            if not self._begun:
                raise SystemExit(f"a worker ended with {status} before its first case; see what it said above")
            outcome = "hang" if hangs else "crash"
            found.append(self._taken_down(outcome if self._begun.get("written") else "not written", status))
            self._run()
        return found

    def _taken_down(self, outcome: str, status: int) -> dict[str, Any]:
        number, kind, folder = (self._begun[name] for name in ("number", "kind", "folder"))
        how = signal.Signals(-status).name if status < 0 else f"exit code {status}"
        line = {
            "number": number,
            "kind": kind,
            "outcome": outcome,
            "message": how,
            "peak": 0,
            "seconds": SECONDS if outcome == "hang" else 0.0,
            "noise": [],
        }
        inputs = Path(folder).parent.with_suffix(".inputs")
        if inputs.is_dir():
            keep(inputs, self._results.parent / "kept", line)
            shutil.rmtree(inputs)
        shutil.rmtree(Path(folder).parent, ignore_errors=True)
        self.left = [each for each in self.left if each != number]
        return line

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def summary(lines: list[dict[str, Any]], seed: int, first: int) -> dict[str, Any]:
    """Returns the report: counts by kind and outcome, the largest memory and time, and the defects."""
    by_kind: dict[str, Counter[str]] = {}
    for line in lines:
        by_kind.setdefault(line["kind"], Counter())[line["outcome"]] += 1
    bad = [line for line in lines if line["outcome"] not in ("ok", "refused")]
    return {
        "benchmark": "fuzz",
        "seed": seed,
        "first": first,
        "inputs": len(lines),
        "outcomes": dict(Counter(line["outcome"] for line in lines)),
        "by_kind": {kind: dict(counts) for kind, counts in sorted(by_kind.items())},
        "cap_mib": CAP // 2**20,
        "largest_mib": round(max((line["peak"] for line in lines), default=0) / 2**20),
        "longest_seconds": max((line["seconds"] for line in lines), default=0.0),
        "defects": sorted(bad, key=lambda line: (line["outcome"], line["kind"], line["number"])),
    }


def text_of(report: dict[str, Any]) -> str:
    """Returns the report in lines."""
    lines = [f"{report['inputs']:,} inputs, seed {report['seed']}: {report['outcomes']}"]
    lines += [f"  {kind:<12} {counts}" for kind, counts in report["by_kind"].items()]
    lines.append(
        f"  most memory {report['largest_mib']} MiB (cap {report['cap_mib']}), longest {report['longest_seconds']} s"
    )
    for line in report["defects"]:
        said = (line["message"].strip().splitlines() or line["noise"] or [""])[-1]
        lines.append(f"  {line['outcome']}: {line['kind']}-{line['number']}: {said[:200]}")
    return "\n".join(lines)


def replay(folder: Path, bench_folder: Path) -> int:
    """Judges a kept case again, in this process, and prints what comes of it."""
    from fuzz_bench import make_bench
    from fuzz_judge import GOOD, judged

    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "case"
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("verdict.json"))
        verdict = judged(copy, make_bench(bench_folder))
    print(json.dumps(asdict(verdict), indent=1, ensure_ascii=False))
    return int(verdict.outcome not in GOOD)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="Number of the first input, to go on where one stopped.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--kinds", help="Only these, as in images,yaml.")
    parser.add_argument("--out", type=Path, default=Path("fuzz"), help="Folder of the report, kept inputs, the bench.")
    parser.add_argument("--replay", type=Path, help="A kept input's folder.")
    parser.add_argument("--worker", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker[0], options.seed, json.loads(sys.stdin.read()), options.worker[1])
        return 0
    from fuzz_bench import make_bench
    from fuzz_cases import kind_of

    options.out.mkdir(parents=True, exist_ok=True)
    bench = (options.out / "bench").resolve()
    if options.replay:
        return replay(options.replay, bench)
    make_bench(bench)
    kinds = options.kinds.split(",") if options.kinds else None
    numbers: list[int] = []
    number = options.first
    while len(numbers) < options.inputs:
        if kinds is None or kind_of(number) in kinds:
            numbers.append(number)
        number += 1
    folder = options.out.resolve()
    for old in folder.glob("results-*.jsonl"):
        old.unlink()
    jobs = [
        Worker(bench, options.seed, numbers[job :: options.jobs], folder / f"results-{job}.jsonl")
        for job in range(min(options.jobs, len(numbers)))
    ]
    lines: list[dict[str, Any]] = []
    try:
        while any(job.left for job in jobs):
            time.sleep(0.2)
            for job in jobs:
                lines += job.look()
    finally:
        for job in jobs:
            job.stop()
        report = summary(lines, options.seed, options.first)
        (folder / "report.json").write_text(json.dumps(report, indent=1))
        print(text_of(report))
    return int(bool(report["defects"]))


if __name__ == "__main__":
    sys.exit(main())
