"""What is done with a spoilt input, and what may come of it: success, or one line of refusal that leaves nothing half.

Runs in the worker process of ``fuzz.py``. A case is a folder with ``case.json``, which says what is to be done with the
other files in it. Success is held against the right answer for damaged runs alone: these have checksums. What a spoilt
image, table or COCO file says that can still be read is the answer, since nobody knows what it said before. Knows
nothing about how inputs were spoilt.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_bench import Bench, answer, small_parts, without_places
from fuzz_mutations import of_bytes

from maskloom.errors import UserError
from maskloom.files import OWNER, TEMPORARY_PREFIX

CASE = "case.json"
LONGEST = 2_020
"""Characters of a message that are still a line: one that was cut, and what the command line puts before it."""
UNHEARD = (
    "libpng error: bad adaptive filter value", "libpng error: Not enough image data", "libpng error: IDAT: ",
    "libpng warning: IDAT: ", "_tiffSeekProc: ",
)  # fmt: skip
"""Lines by libraries that offer no way to silence them: OpenCV's of pixels in a PNG that are damaged under a checksum
that is right, and GDAL's of a TIFF that points beyond what any file holds. Nothing but a spoilt input makes them."""
OK, REFUSED = "ok", "refused"
GOOD = (OK, REFUSED)


@dataclass
class Verdict:
    """What came of a case."""

    outcome: str
    """"ok", "refused", "traceback", "partial", "wrong", "noise", "long"; from the driver "hang", "crash", "memory"."""
    message: str = ""
    peak: int = 0
    """Bytes of memory beyond those held at the beginning."""
    noise: list[str] = field(default_factory=list)


# What is done --------------------------------------------------------------------------------------------------------


def _command(case: dict[str, Any], bench: Bench) -> None:
    """Runs the command line as it is; an exit code of 1 or 2 without one line of error is a defect."""
    from maskloom.cli import main

    sys.argv = ["maskloom", *case["arguments"]]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            main()
    except SystemExit as stop:
        if stop.code in (0, None):
            return
        lines = said.getvalue().splitlines()
        if stop.code == 2 and lines and lines[-1].startswith("error: "):
            raise UserError(lines[-1]) from None
        raise RuntimeError(f"exit code {stop.code}: {said.getvalue()[-500:]}") from stop
    finally:
        left = [line for line in said.getvalue().splitlines() if not line.startswith(("error: ", "> ", "= ", "  "))]
        if left:
            print("\n".join(left), file=sys.stderr)


def _plan(case: dict[str, Any], bench: Bench) -> None:
    from maskloom.registry import plan

    plan(case.get("recipe", "default"), case["data"], settings=case.get("settings", []), device="cpu")


def _predict(case: dict[str, Any], bench: Bench) -> None:
    bench.opened().predict(case["images"], out="out", to=case["to"], skip_bad=case["skip_bad"])


def _foreign(case: dict[str, Any], bench: Bench) -> None:
    from maskloom.models.foreign import read_foreign

    read_foreign(Path(case["file"]))


def _bundle(case: dict[str, Any], bench: Bench) -> None:
    """Loads a bundle, which must then be what was written: settings and weights, by the one at the bench."""
    import torch

    from maskloom.api import load_bundle
    from maskloom.models.bundle import is_sealed_bundle

    found, whole = load_bundle(case["file"]), load_bundle(bench.bundle)
    if not is_sealed_bundle(Path(case["file"])):
        return  # its checksum's name is spoilt: nothing tells it from one of an earlier version
    facts, before = ((each.task, each.policy, each.normalisation, each.network_settings) for each in (found, whole))
    state, weights = found.network.state_dict(), whole.network.state_dict()
    if facts != before or state.keys() != weights.keys():
        raise Wrong("the bundle that was loaded has other settings than were written")
    if changed := [name for name, tensor in state.items() if not torch.equal(tensor, weights[name])]:
        raise Wrong(f"the bundle that was loaded has other weights than were written: {changed[:3]}")


def _damaged_run(case: dict[str, Any], bench: Bench) -> None:
    """Asks a damaged run; an answer must be the undamaged one's, and ``verify`` must name what is damaged."""
    import maskloom
    from maskloom.api import status, verify

    run, asks = Path("run"), case["asks"]
    if asks == "verify":
        found = verify(run)
        if unsaid := set(case.get("begun", [])) - set(found.unfinished):
            raise Wrong(f"verify did not say that {sorted(unsaid)} are unfinished")
        told = named(run, found)
        missed = [name for name in unnamed(run, case["damaged"], told) if not same(bench.run, run, name)]
        if missed := [name for name in missed if not is_done_again(bench.run, run, name, found)]:
            raise Wrong(f"verify did not name {missed}, but {sorted(told)}")
        return
    if asks == "status":
        status(run).to_json()
        return
    opened = maskloom.open_run(run, device="cpu")
    if asks == "evaluate":
        found = opened.evaluate()
    elif asks == "report":
        opened.report()
        return
    elif asks == "compare":
        found = without_places(maskloom.compare(bench.run, run).to_json())
    else:
        opened.predict(bench.photos, out="out", to=asks)
        found = answer(Path("out"))
    if json.loads(json.dumps(found)) != bench.reference(asks):
        raise Wrong(f"{asks}: another result than the undamaged run's")


def _resumed(case: dict[str, Any], bench: Bench) -> None:
    """Goes on with a prediction whose folder was spoilt: the answer must be the undisturbed one's, and there is one.

    Only a folder that no longer says whose it is may be refused.
    """
    to, out = case["to"], Path("out")
    try:
        with small_parts():
            bench.opened().predict(bench.source(to), out=out, to=to)
    except UserError as error:
        if OWNER in case["spoilt"]:
            raise
        raise Wrong(f"{to}: refused what can be made again: {error}") from error
    if answer(out) != bench.reference(to):
        raise Wrong(f"{to}: another result than the undisturbed prediction's")


def _storage(case: dict[str, Any], bench: Bench) -> None:
    """Opens a store in memory, again after the mirror's notes were spoilt; what is read must be what lies there."""
    from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

    from maskloom.run_directory import RunDirectory
    from maskloom.run_status import read_status
    from maskloom.storage import mirror, remote, remote_lock
    from maskloom.storage.placeholders import at_hand, forget_roots
    from maskloom.storage.places import local_data, readable_run, working_run

    objects = {name: base64.b64decode(text) for name, text in case["objects"].items()}
    url, asks = f"memory://bucket/{case['asks']}", case["asks"]
    MemoryFileSystem.store.clear()  # as an instance would not take such names
    for name, data in objects.items():
        path = f"/bucket/{asks}/{name}"
        MemoryFileSystem.store[path] = MemoryFile(MemoryFileSystem(), path, data)
    os.environ |= {"MASKLOOM_CACHE": str(Path("cache").absolute()), "MASKLOOM_STORAGE_WAIT": "0"}
    remote_lock._SETTLE_SECONDS = 0.0
    if asks == "status":
        read_status(RunDirectory.existing(readable_run(url))).to_json()
        return
    if asks == "work":
        remote_lock.GONE_SECONDS = -1.0
        with working_run(url) as root:
            RunDirectory.existing(root).decision()
        return
    for seed in (None, *case["spoils"]):
        if seed is not None:
            notes = sorted(Path("cache").glob("*/*.json"))
            note = notes[seed % len(notes)]
            note.write_bytes(of_bytes(np.random.default_rng(seed), note.read_bytes()))
            mirror._mirrors.clear()  # as in another process
            remote._stores.clear()
            forget_roots()
        root = local_data(url)
        for file in (file for file in sorted(root.rglob("*")) if file.is_file()):
            if at_hand(file).read_bytes() != objects.get(file.relative_to(root).as_posix()):
                raise Wrong(f"{file}: another content than its object's")


def named(run: Path, found: Any) -> set[str]:
    """Returns what a verification names: what is damaged or missing, and of unfinished stages what has no checksum."""
    from maskloom.run_directory import RunDirectory

    folder = RunDirectory(run)
    markers = {folder.marker(stage).relative_to(run).as_posix() for stage in found.unfinished}
    open_files = {name for files in found.stages.values() for name, state in files.items() if state == "unfinished"}
    return {*found.bad, *markers, *open_files}


def unnamed(run: Path, damaged: Iterable[str], bad: Collection[str]) -> list[str]:
    """Returns the damaged files that are not among the ``bad`` ones, nor of a stage whose ledger is one."""
    from maskloom.run_directory import RunDirectory

    folder = RunDirectory(run)

    def is_named(name: str) -> bool:
        stage = folder.stage_of(run / name)
        return name in bad or (stage is not None and folder.sums(stage).relative_to(run).as_posix() in bad)

    return [name for name in damaged if not is_named(name)]


def is_done_again(before: Path, run: Path, name: str, found: Any) -> bool:
    """Returns whether a file is the ledger of an unfinished stage, of whose files each that is there is told of.

    A damaged line of such a ledger cannot be told from one that a killed process left, and is none: its file is told to
    have no checksum, or compared with the one that it carries itself, and ``fit`` makes it anew.
    """
    from maskloom.run_directory import RunDirectory

    folder = RunDirectory(run)
    stage = next((stage for stage in found.unfinished if run / name == folder.sums(stage)), None)
    files = RunDirectory(before).ledger(stage).names() if stage is not None else []
    return stage is not None and all(file in found.stages[stage] for file in files if (run / file).is_file())


def same(before: Path, after: Path, name: str) -> bool:
    """Returns whether a file is unchanged, holds the same otherwise written, or may be gone without being missed.

    That is so of what a stage leaves beside its results, and of the files of a stage whose ledger is gone, too.
    """
    from maskloom.files import read_json
    from maskloom.run_directory import RunDirectory, is_beside

    folder, file = RunDirectory(after), after / name
    if not file.is_file():
        if name.startswith("stages/"):
            stage: str | None = name.removeprefix("stages/").removesuffix(".sums")
        elif (stage := folder.stage_of(file)) is None:
            return file == folder.decided  # as before an ensemble is decided
        forgotten = stage in folder.stages() or (folder.sums(stage).is_file() and not name.endswith(".sums"))
        return is_beside(file) or not forgotten
    if (before / name).read_bytes() == file.read_bytes():
        return True
    if name.endswith(".safetensors"):
        return tensors_in(before / name) == tensors_in(file)
    try:
        return bool(read_json(before / name) == read_json(file))
    except UserError:
        return False


def tensors_in(path: Path) -> Any:
    """Returns what a file of tensors holds, as far as it can be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as stream:
            tensors = {name: (stream.get_tensor(name).tobytes()) for name in stream.keys()}  # noqa: SIM118
            return {key: json.loads(text) for key, text in stream.metadata().items()}, tensors
    except (SafetensorError, OSError, ValueError, AttributeError) as error:
        return str(error)


ACTIONS: dict[str, Callable[[dict[str, Any], Bench], None]] = {
    "command": _command,
    "plan": _plan,
    "predict": _predict,
    "foreign": _foreign,
    "bundle": _bundle,
    "run": _damaged_run,
    "resumed": _resumed,
    "storage": _storage,
}


class Wrong(Exception):
    """A damaged artefact was used, or not named."""


# What may come of it -------------------------------------------------------------------------------------------------


def judged(folder: Path, bench: Bench) -> Verdict:
    """Returns what came of the case in ``folder``, which becomes the working directory meanwhile."""
    case = json.loads((folder / CASE).read_text())
    before = set(folder.rglob("*"))
    here = Path.cwd()
    os.chdir(folder)
    held = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from now on
    with _heard() as noise:
        try:
            ACTIONS[case["do"]](case, bench)
            verdict = Verdict(OK)
        except UserError as error:
            verdict = Verdict(REFUSED if len(str(error)) <= LONGEST else "long", str(error)[:LONGEST])
        except Wrong as error:
            verdict = Verdict("wrong", str(error))
        except OSError as error:  # what the command line says in a line
            verdict = Verdict(REFUSED if error.filename else "traceback", _last_lines())
        except BaseException:
            verdict = Verdict("traceback", _last_lines())
    os.chdir(here)
    verdict.peak = max(_memory("VmHWM") - held, 0)
    verdict.noise = noise
    if verdict.outcome in GOOD and (half := list(_half_written(folder, before, verdict.outcome))):
        verdict.outcome, verdict.message = "partial", f"{half}; {verdict.message}"
    if verdict.outcome in GOOD and (outside := sorted(path.name for path in folder.parent.iterdir() if path != folder)):
        verdict.outcome, verdict.message = "wrong", f"wrote outside its folder: {outside}"
    if verdict.outcome in GOOD and noise:
        verdict.outcome = "noise"
    return verdict


def _last_lines() -> str:
    return "".join(traceback.format_exc().splitlines(keepends=True)[-14:])


def _memory(name: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith(name)).split()[1]) * 1024


def _half_written(folder: Path, before: set[Path], outcome: str) -> Iterator[str]:
    """Yields the new files that are temporary, cannot be read, or were left by a conversion to one file that failed."""
    for path in sorted(set(folder.rglob("*")) - before):
        name = path.relative_to(folder).as_posix()
        if path.name.startswith(TEMPORARY_PREFIX):
            yield name
        elif path.is_file() and not name.startswith(("run/", "cache/")):
            if outcome == REFUSED and path.name.startswith(("single.", "page.html")):
                yield name
            elif not _is_whole(path):
                yield f"{name} (cannot be read)"


def _is_whole(path: Path) -> bool:
    import cv2

    if path.suffix == ".png":
        return cv2.imread(str(path), cv2.IMREAD_UNCHANGED) is not None
    if path.suffix in (".json", ".geojson"):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return False
    return True


@contextlib.contextmanager
def _heard() -> Iterator[list[str]]:
    """Yields a list that then holds what was written to standard error by whomever, and warnings that are not ours."""
    noise: list[str] = []
    with tempfile.TemporaryFile() as said, warnings.catch_warnings():
        warnings.simplefilter("always", RuntimeWarning)
        warnings.showwarning = lambda message, kind, file, line, *_: (
            None
            if issubclass(kind, UserWarning) and "maskloom" in file
            else noise.append(f"{kind.__name__}: {message}")
        )
        sys.stderr.flush()
        kept, kept_out = os.dup(2), os.dup(1)
        os.dup2(said.fileno(), 2)
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
            sys.stdout.flush()
            os.dup2(nowhere.fileno(), 1)
        try:
            yield noise
        finally:
            sys.stderr.flush()
            sys.stdout.flush()
            os.dup2(kept, 2)
            os.dup2(kept_out, 1)
            os.close(kept)
            os.close(kept_out)
            said.seek(0)
            lines = said.read().decode("utf-8", "replace").splitlines()
            noise += [line for line in lines if not line.startswith(("warning: ", *UNHEARD))][:10]
