"""The training of a library: fragment after fragment, each kept as soon as it is done, so that it can be resumed."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import openmm
from openmm import app
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from openmm_cgflow.errors import InvalidInputError, MismatchError
from openmm_cgflow.proteins.fragments.capped import FRAGMENTS, Capped, Fragment, build_capped, fragment_named
from openmm_cgflow.proteins.fragments.learned import (
    RECIPE,
    SETTINGS,
    Lesson,
    budget_of,
    learn,
    load_lesson,
    save_lesson,
)
from openmm_cgflow.storage import digest_of, system_to_xml
from openmm_cgflow.version import __version__

__all__ = ["train_fragments"]

_log = logging.getLogger("openmm_cgflow")
_LEAST = ("ALA", "GLY", "PRO")  # without which there is no library


def train_fragments(
    forcefield: str | Sequence[str],
    solvent: str | None,
    folder: Path,
    fragments: Iterable[str] | None = None,
    temperature: float = 300.0,
    share: float = 1.0,
    progress: bool = True,
) -> tuple[list[Lesson], dict[str, Any]]:
    """Train fragments on energies alone; see `FragmentLibrary.train`.

    Each fragment is kept in the folder when it is done, and a checkpoint while it is trained: called again, the
    training goes on where it was.

    Arguments:
        forcefield: XML files of OpenMM.
        solvent: the same of an implicit solvent; None for vacuum.
        folder: of the fragments; it is made if it does not exist.
        fragments: names of `FRAGMENTS`; all by default.
        temperature: K.
        share: of the usual number of energies.
        progress: draw a bar.

    Returns:
        what was learned of each, and what describes all of it.

    Raises:
        InvalidInputError: for an unknown fragment, or one that the force field lacks; for files that cannot be read.
        MismatchError: parts in the folder are of another force field, temperature or number of energies.
    """
    chosen = [fragment_named(name) for name in (FRAGMENTS if fragments is None else fragments)]
    missing = [name for name in _LEAST if name not in {fragment.name for fragment in chosen}]
    if missing:
        raise InvalidInputError(f"a library needs the fragments {', '.join(missing)} too; name them as well")
    files = [forcefield] if isinstance(forcefield, str) else list(forcefield)
    every = [*files, *([solvent] if solvent else [])]
    try:
        field = app.ForceField(*every)
    except Exception as error:  # OpenMM raises whatever it meets
        raise InvalidInputError(
            f"{', '.join(map(str, every))} cannot be read as a force field ({' '.join(str(error).split())[:300]}); "
            "give XML files of OpenMM, such as amber14-all.xml and implicit/obc2.xml"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    described = {"forcefield": files, "solvent": solvent, "temperature": temperature, "share": share}
    lessons: list[Lesson] = []
    with _bar(progress) as bar:
        task = bar.add_task("fragments", total=len(chosen), figures="")
        for fragment in chosen:
            bar.update(task, description=f"fragment {fragment.name}")
            try:
                lessons.append(_lesson(fragment, field, folder, temperature, share))
            except InvalidInputError as error:
                if fragment.before and fragment.after:
                    raise
                _log.warning("left out: %s", error)  # of charged ends CHARMM36 makes none of a single residue
                continue
            done = lessons[-1].figures
            bar.update(
                task, advance=1, figures=f"{fragment.name}: ESS {100 * done['conditional']:.0f} % given the beads"
            )
    figures = {lesson.fragment.name: lesson.figures for lesson in lessons}
    versions = {"version": __version__, "openmm": openmm.Platform.getOpenMMVersion()}
    return lessons, {**described, **versions, "fragments": figures}


def _bar(progress: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TextColumn("{task.fields[figures]}"), disable=not progress)


def _lesson(fragment: Fragment, field: app.ForceField, folder: Path, kelvin: float, share: float) -> Lesson:
    """One fragment, from its file if it was trained already."""
    capped = build_capped(fragment, field)
    evaluations = max(1, int(share * budget_of(fragment)))
    identity = _identity(capped, kelvin, evaluations)
    path, checkpoint = folder / f"{fragment.name}.fragment", folder / f"{fragment.name}.checkpoint"
    if path.exists():
        lesson, of = load_lesson(path)
        if of != identity and of != _identity(capped, kelvin, evaluations, with_version=True):
            raise MismatchError(
                f"{path} is of another force field, temperature, size or number of energies than what is asked for; "
                "remove the folder, or give another file for the library"
            )
        return lesson
    lesson = learn(fragment, capped, kelvin, evaluations, checkpoint, progress=False)
    save_lesson(lesson, path, identity)
    for left in (checkpoint, checkpoint.with_name(f"{checkpoint.name}.lock")):
        left.unlink(missing_ok=True)
    figures = lesson.figures
    _log.info(
        "%s: ESS %.1f %%, given the beads %.1f %%, after %d energies in %.0f s",
        fragment.name, 100 * figures["ess"], 100 * figures["conditional"], figures["evaluations"], figures["seconds"],
    )  # fmt: skip
    return lesson


def _identity(capped: Capped, kelvin: float, evaluations: int, with_version: bool = False) -> str:
    parts = [system_to_xml(capped.system), kelvin, evaluations, SETTINGS.as_dict(), RECIPE.as_dict()]
    return digest_of(parts, with_version)
