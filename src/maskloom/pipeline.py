"""The stages of a run and their order; each is skipped when what it came from has not changed.

A stage's fingerprint covers the settings and data it reads and the outcomes of the stages before it, so a changed
recipe repeats what depends on the change and nothing else. A file that is no longer what its stage left is removed, and
its stage runs again; stages after it only if that gave other bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial, reduce
from pathlib import Path
from typing import Any

from maskloom.config import to_yaml
from maskloom.data.folds import FoldSettings
from maskloom.ensembling.precedence import numbered
from maskloom.executors.tasks import Call, Here, Ticket
from maskloom.files import checksum, fingerprint, remove_partial, write_text
from maskloom.integrity import Damaged, read_sealed, write_sealed
from maskloom.members import MemberSettings, OutsideMember
from maskloom.records import Record, Task
from maskloom.runtime import rank_devices
from maskloom.stages import data as data_stages
from maskloom.stages.alignment import align_polygons, shifts
from maskloom.stages.contest_score import Scorers
from maskloom.stages.context import Context
from maskloom.stages.ensemble import check_tree, fit_ensemble
from maskloom.stages.first_weights import check_first_weights
from maskloom.stages.fold_tables import FoldTables
from maskloom.stages.guides import check_guidance
from maskloom.stages.member_weights import check_member_weights
from maskloom.stages.oof import predict_out_of_fold
from maskloom.stages.outside import check_maps, map_files, take_in
from maskloom.stages.postprocess import check_postprocess, fit_postprocess
from maskloom.stages.prediction import predict_unlabelled
from maskloom.stages.pseudo import choose_pseudo_labels
from maskloom.stages.pseudo_views import check_pseudo, round_of, teachers_of
from maskloom.stages.registration import register_bands, registration_fingerprint, with_registration
from maskloom.stages.reporting import write_report
from maskloom.stages.rows import chunks_in
from maskloom.stages.stage import Left, forget, look_for, make_room, run_stage
from maskloom.stages.train import check_weights, train_fold, weights_mark
from maskloom.stages.tree_member import check_library
from maskloom.stages.unlabelled import check_unlabelled, unlabelled_fingerprint

RESULT_FORMAT = 2
"""Raise it when a stage computes something else from the same inputs: runs then repeat what depends on it."""

FITTED_WEIGHTS = (2,)
"""Raised when they follow otherwise from the same maps: records without a labelled pixel no longer have a say."""

_SINCE: dict[tuple[str, ...], Any] = {
    ("aligned",): True,
    ("input", "padding_at"): "both",
    ("network", "trees"): None,
    ("training", "sync_batch_norm"): False,
}
"""Settings that members had not at first, and what held then: where it still does, a training is not done again."""


def run_pipeline(context: Context, submit: Callable[[Context], Path] | None, scorers: Scorers | None = None) -> None:
    """Runs every stage of the context's recipe that is not finished; leaves the report last.

    ``submit`` writes the contest's table from what was predicted, where the data belongs to one. Raises ``Damaged`` for
    a file that is damaged again after it was made anew.
    """
    remove_partial(context.run.root)
    context.progress.note(data_stages.summary(context.source))
    _check_own(context)
    removed: set[Path] = set()
    while True:
        try:
            _run_stages(context, submit, scorers)
            break
        except Damaged as damage:  # which only reading showed, after its stage was found finished
            context.executor.drop()
            _remove(context, damage, removed)
    if context.executor.is_parallel:
        remove_partial(context.run.root)  # of workers that were lost


def _check_own(context: Context) -> None:
    """Removes what is damaged of the files that belong to the run as a whole, which every ``fit`` writes anew."""
    run = context.run
    try:
        if run.source.is_file():
            read_sealed(run.source)
    except Damaged as damage:
        forget(context, [damage.path])
    try:
        if run.decided.is_file():
            run.decision()
    except Damaged as damage:
        if damage.path != run.recipe:
            forget(context, [damage.path])
            return
        # Perhaps it was edited, and is what this ``fit`` was given: it is replaced only once all is checked.
        context.progress.note(f"not the recipe that the run was decided with: {run.recipe.name}")
        run.decided.unlink(missing_ok=True)


def _remove(context: Context, damage: Damaged, removed: set[Path]) -> None:
    """Removes a damaged file, and all others that its stage left damaged, so that the stage makes them anew."""
    stage = context.run.stage_of(damage.path)
    if stage is None or damage.path in removed:
        raise damage
    damaged = dict.fromkeys([damage.path, *context.run.damaged(stage, thorough=True)])
    forget(context, damaged)
    removed.update(damaged)


def _run_stages(context: Context, submit: Callable[[Context], Path] | None, scorers: Scorers | None) -> None:
    recipe = context.recipe
    context = _registered(context)
    channels = context.num_channels()  # by which the survey tells good images from bad ones; 3 is what it was at first
    data_mark = fingerprint(
        RESULT_FORMAT, data_stages.source_fingerprint(context.source), *([] if channels == 3 else [channels])
    )
    run_stage(context, "survey", data_mark, lambda: data_stages.survey_data(context))
    # On every fit: its notes, problems and images without truth are no part of the survey's fingerprint.
    write_sealed(context.run.source, context.source.to_json())
    context = data_stages.without_bad_records(context)

    aligned = _aligned(context, data_mark)
    tables = _folds(context, data_mark)
    recipe.partial_members(context.source.task)  # raises for classes that the data has not
    check_member_weights(recipe, context.source.task)
    check_tree(recipe, tables)
    check_guidance(recipe, tables)
    check_postprocess(recipe, context.source.task)
    check_pseudo(context)
    check_unlabelled(context)
    numbered(recipe.delivery.precedence or (), context.source.task)  # raises for classes that the data has not
    _write_recipe(context)
    members = _Members(context, data_mark, tables, aligned)
    for outside in recipe.outside:
        check_maps(outside, context.source.unlabelled, context.source.task)
        members.take_in(outside)
    for member in recipe.members:
        members.begin()
        members.label_for(member)
        members.begin()
        members.train(member)
        members.predict_out_of_fold(member)

    ensemble_mark = fingerprint(
        members.oof_marks,
        recipe.metric,
        recipe.ensemble.model_dump(mode="json"),
        recipe.ensemble_names,
        *(FITTED_WEIGHTS if recipe.ensemble.weights == "fitted" else ()),
    )
    decided_mark = run_stage(context, "ensemble", ensemble_mark, lambda: fit_ensemble(context))
    if recipe.postprocess.steps:
        postprocess_mark = fingerprint(decided_mark, recipe.postprocess.model_dump(mode="json"))
        decided_mark = run_stage(context, "postprocess", postprocess_mark, lambda: fit_postprocess(context))
    context.run.decide(decided_mark)
    if context.source.unlabelled:
        unlabelled = unlabelled_fingerprint(context.source)
        outside_maps = [_checksums(each, context.source.unlabelled, context.source.task) for each in recipe.outside]
        predict_mark = fingerprint(decided_mark, unlabelled, recipe.delivery.masks, *outside_maps)
        predicted_mark = run_stage(
            context, "predict", predict_mark, lambda: predict_unlabelled(context, fingerprint=predict_mark)
        )
        if recipe.delivery.water is not None and context.source.submission != "dstl":
            context.progress.note(f"delivery.water={recipe.delivery.water} is not used: the data is not Dstl's")
        if submit is not None and recipe.delivery.submission:
            stated = recipe.delivery.precedence  # None and no rules are not the same
            rules = None if stated is None else [rule.model_dump(mode="json") for rule in stated]
            sample = _checksum(context.source.sample_submission)
            submit_mark = fingerprint(predicted_mark, sample, rules, recipe.delivery.water)
            run_stage(context, "submit", submit_mark, lambda: _submitted(context, submit))
    reported = fingerprint(time.time_ns())  # always anew
    run_stage(context, "report", reported, lambda: [write_report(context.run, scorers)])


def _submitted(context: Context, submit: Callable[[Context], Path]) -> list[Path]:
    """Returns the contest's table, made of rows that are what the prediction left, and what was written beside it."""
    run = context.run
    run.check(chunks_in(run.predictions / "rows"))
    table = submit(context)
    beside = sorted({*run.root.glob("submission.*")} - {table})
    return [table, *beside, *sorted((run.predictions / "colours").rglob("*.png"))]


def _write_recipe(context: Context) -> None:
    """Writes the resolved recipe; what an earlier one decided counts no more."""
    path, text = context.run.recipe, to_yaml(context.recipe)
    if not path.is_file() or path.read_bytes() != text.encode():
        context.run.decided.unlink(missing_ok=True)
        write_text(path, text)


def _registered(context: Context) -> Context:
    """Returns the context whose records' bands lie on their images, where the recipe asks for it."""
    settings = context.recipe.registration
    if settings is None:
        return context
    mark = registration_fingerprint(context, settings)
    run_stage(context, "register", mark, lambda: register_bands(context, settings, fingerprint=mark))
    return with_registration(context)


def _aligned(context: Context, data_mark: str) -> list[str]:
    """Returns the mark of how polygons are moved where they are learnt from; none where none of them is."""
    settings = context.recipe.alignment
    if settings is None:
        return []
    mark = fingerprint(data_mark, settings.model_dump(mode="json"))
    run_stage(context, "align", mark, lambda: align_polygons(context, settings, fingerprint=mark))
    moved = shifts(context, context.source.records)
    return [fingerprint(moved)] if moved else []


def _folds(context: Context, data_mark: str) -> FoldTables:
    """Makes or checks every fold table of the run, and returns them."""

    def make(name: str, settings: FoldSettings, path: Path) -> None:
        mark = fingerprint(data_mark, settings.model_dump(mode="json"), _checksum(settings.table))
        if context.run.accept(name, path, mark):
            context.progress.note(f"edited since it was made, and taken as it is: {path.relative_to(context.run.root)}")
        run_stage(context, name, mark, lambda: data_stages.write_folds(context, settings, path))
        data_stages.check_folds(context, path)

    make("folds", context.recipe.folds, context.run.folds)
    for member in context.recipe.members:
        if member.folds is not None:
            make(f"folds/{member.name}", member.folds, context.run.member_folds(member.name))
    return context.fold_tables()


class _Members:
    """The stages of the members, one after the other, and the marks that later ones depend on."""

    def __init__(self, context: Context, data_mark: str, tables: FoldTables, aligned: list[str]) -> None:
        self._context, self._data_mark, self._tables, self._aligned = context, data_mark, tables, aligned
        self._weights = {member.name: weights_mark(member.network) for member in context.recipe.members}
        check_first_weights(context, tables, self._weights)
        self._training_marks: dict[str, list[str]] = {}
        self._pseudo_marks: dict[int, str] = {}
        self._begun: dict[str, Ticket] = {}
        self.oof_marks: dict[str, str] = {}
        for member in context.recipe.members:
            if member.network.trees is not None:
                check_library(context.run, member, self._marks(member))

    def take_in(self, outside: OutsideMember) -> None:
        """Checks and stores the maps of a member from outside."""
        context = self._context
        mark = fingerprint(self._data_mark, _checksums(outside, context.source.records, context.source.task))
        self.oof_marks[outside.name] = run_stage(
            context, f"oof/{outside.name}", mark, lambda: take_in(context, outside, fingerprint=mark)
        )

    def _guides(self, member: MemberSettings) -> list[str]:
        """Returns the marks of the maps that guide a member."""
        return [self.oof_marks[name] for name in member.guidance.needed] if member.guidance else []

    def label_for(self, member: MemberSettings) -> None:
        """Labels images without truth before the first member that learns from them."""
        context, recipe = self._context, self._context.recipe
        number = round_of(recipe, member.name)
        if number is None or number in self._pseudo_marks:
            return
        settings = recipe.pseudo[number]
        teachers = [recipe.member(name) for name in teachers_of(recipe, number)]
        mark = fingerprint(
            self._data_mark,
            settings.model_dump(mode="json"),
            recipe.data.skip_bad,
            unlabelled_fingerprint(context.source),
            [self._table_mark(recipe.member(name)) for name in settings.members],
            [
                [self._training_marks[teacher.name], teacher.keep, self._asked(teacher), self._table_mark(teacher)]
                for teacher in teachers
            ],
        )
        self._pseudo_marks[number] = run_stage(
            context, f"pseudo/{number}", mark, lambda: choose_pseudo_labels(context, number, fingerprint=mark)
        )

    def _table_mark(self, member: MemberSettings) -> str:
        run = self._context.run
        return checksum(run.folds if member.folds is None else run.member_folds(member.name))

    def _asked(self, member: MemberSettings) -> dict[str, object]:
        """Returns how a member's networks are asked about images."""
        return member.views_of(self._context.recipe.inference).model_dump(mode="json", exclude={"seams"})

    def train(self, member: MemberSettings) -> None:
        """Trains the network of every fold."""
        marks = []
        for fold, mark in enumerate(self._marks(member)):
            name = _training(member, fold)
            train, is_begun = partial(self._train, member, fold, mark), name in self._begun
            marks.append(run_stage(self._context, name, mark, train, is_begun=is_begun))
        self._training_marks[member.name] = marks

    def begin(self) -> None:
        """Hands out all trainings that depend on nothing that is not there yet, where several run at once.

        Each is finished when its turn comes, as if it had been done then.
        """
        context = self._context
        if not context.executor.is_parallel:
            return
        for member in context.recipe.members:
            if member.name in self._training_marks or not self._is_ready(member):
                continue
            for fold, mark in enumerate(self._marks(member)):
                name = _training(member, fold)
                if name in self._begun:
                    continue
                found = look_for(context, name, mark)
                if found.marker is None:
                    make_room(context, name, found)
                    self._begun[name] = context.executor.submit(self._call(member, fold, mark))

    def _is_ready(self, member: MemberSettings) -> bool:
        """Returns whether all that a member learns from is there."""
        number = round_of(self._context.recipe, member.name)
        return (
            (member.start is None or member.start in self._training_marks)
            and all(name in self.oof_marks for name in (member.guidance.needed if member.guidance else ()))
            and (number is None or number in self._pseudo_marks)
        )

    def _marks(self, member: MemberSettings) -> Iterator[str]:
        """Yields what the training of every fold comes from."""
        context = self._context
        trained = [context.recipe.seed, context.recipe.metric, _training_part(member), self._weights[member.name]]
        table_mark = self._table_mark(member)
        number = round_of(context.recipe, member.name)
        taught = [] if number is None else [self._pseudo_marks[number]]
        for fold in range(self._tables.of(member.name).num_folds):
            before = [
                *self._start(member, fold),
                *self._guides(member),
                *taught,
                *(self._aligned if member.aligned else []),
            ]
            yield fingerprint(self._data_mark, table_mark, fold, trained, *before)

    def _train(self, member: MemberSettings, fold: int, mark: str) -> Left:
        """Returns what the training of a fold left, once it is done."""
        context = self._context
        ticket = self._begun.pop(_training(member, fold), None)
        if ticket is None:
            ticket = context.executor.submit(self._call(member, fold, mark))
        return Left(context.executor.collect(ticket, progress=context.progress), ticket.seconds)

    def _call(self, member: MemberSettings, fold: int, mark: str) -> Call:
        return Call(
            name=_training(member, fold),
            function=_train_fold,
            shared=self._context.executor.share(self._context),
            arguments=(member.name, fold, mark, self._weights[member.name]),
            order=self._context.turn(member.name),
            is_exclusive=True,
        )

    def _start(self, member: MemberSettings, fold: int) -> list[str]:
        """Returns the marks of the weights that a member begins with."""
        if member.start is None:
            return []
        return [self._training_marks[member.start][fold], self._context.recipe.member(member.start).keep]

    def predict_out_of_fold(self, member: MemberSettings) -> None:
        """Predicts every labelled record by the network that never saw its group."""
        context = self._context
        marks = self._training_marks[member.name]
        mark = fingerprint(marks, member.keep, self._asked(member), *self._guides(member))
        self.oof_marks[member.name] = run_stage(
            context, f"oof/{member.name}", mark, lambda: predict_out_of_fold(context, member, fingerprint=mark)
        )


def _training(member: MemberSettings, fold: int) -> str:
    """Returns the name of a stage."""
    return f"train/{member.name}/fold{fold}"


def _train_fold(here: Here, shared: Context, name: str, fold: int, mark: str, weights: str) -> list[Path]:
    """Returns the files that a training left, wherever it is done; ``weights`` is the mark of the first weights."""
    context = shared.at(here)
    member = context.recipe.member(name)
    check_weights(member.network, weights)
    devices = rank_devices(context.device, context.devices_per_network)
    return train_fold(context, member, fold, fingerprint=mark, devices=devices)


def _training_part(member: MemberSettings) -> dict[str, Any]:
    """Returns what decides a trained network: everything but what is read only afterwards."""
    found = member.model_dump(
        mode="json",
        exclude={
            "keep": True,
            "in_ensemble": True,
            "views": True,
            "view_merge": True,
            "training": {"checkpoint_seconds", "tensorboard"},
        },
    )
    for (*parts, name), former in _SINCE.items():
        place = reduce(dict.__getitem__, parts, found)
        if place[name] == former:
            del place[name]
    return found


def _checksums(outside: OutsideMember, records: Sequence[Record], task: Task) -> list[tuple[str, str]]:
    """Returns the names and checksums of a member's maps that are there."""
    return [(str(path), checksum(path)) for path in map_files(outside, records, task)]


def _checksum(path: Path | None) -> str:
    return checksum(path) if path is not None and path.is_file() else ""
