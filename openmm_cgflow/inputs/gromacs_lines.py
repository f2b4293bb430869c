"""The lines of a GROMACS topology after its preprocessor, by section."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from openmm_cgflow.errors import InvalidInputError
from openmm_cgflow.text_files import check_encoding

__all__ = ["Line", "read_lines"]

DEPTH = 50  # files and macros that refer to one another for ever end here
FILES, FIELDS = 1000, 10_000  # and so do those that refer twice to one another
DEFINES = {"FLEXIBLE": "1"}
"""As OpenMM does: molecules have bonds where a file offers bonds or constraints."""


class Line(NamedTuple):
    """One line of data.

    Attributes:
        section: name of its section, lower case, without brackets.
        fields: what stands in it, with macros replaced.
        where: file and number of the line, for messages.
    """

    section: str
    fields: list[str]
    where: str


def read_lines(path: Path) -> list[Line]:
    """Run the preprocessor and return the lines of data.

    Includes are looked for beside the including file, beside the topology, and where GROMACS keeps its force fields.

    Arguments:
        path: a .top file.

    Raises:
        InvalidInputError: an include that is missing; conditions or lines that cannot be understood.
    """
    return list(_Preprocessor(path).lines(path, 0))


def _library() -> list[Path]:
    """Where GROMACS keeps its force fields."""
    places = [Path(place) for place in os.environ.get("GMXLIB", "").split(os.pathsep) if place]
    if "GMXDATA" in os.environ:
        places.append(Path(os.environ["GMXDATA"]) / "top")
    return [*places, Path("/usr/share/gromacs/top"), Path("/usr/local/gromacs/share/gromacs/top")]


class _Preprocessor:
    """The state that goes through all files: macros, open conditions, the section."""

    def __init__(self, path: Path) -> None:
        self.folders = [path.parent, *_library()]
        self.defines = dict(DEFINES)
        self.conditions: list[bool] = []
        self.section = ""
        self.files = 0

    def lines(self, path: Path, depth: int) -> Iterator[Line]:
        self.files += 1
        if depth > DEPTH or self.files > FILES:
            raise InvalidInputError(f"{path}: files include one another without end; look for a circle")
        opened = len(self.conditions)
        for number, text in _joined(path):
            where = f"{path}, line {number}"
            if text.startswith("#"):
                yield from self._command(text[1:].split(maxsplit=1), path, where, depth)
            elif not all(self.conditions):
                continue
            elif text.startswith("["):
                if not text.endswith("]"):
                    raise InvalidInputError(f"{where}: {text} is no section: close the bracket")
                self.section = text[1:-1].strip().lower().replace("-", "_")
            elif not self.section:
                raise InvalidInputError(f"{where}: {text!r} stands before the first section")
            else:
                yield Line(self.section, self._expanded(text.split(), where, 0), where)
        if len(self.conditions) != opened:
            raise InvalidInputError(f"{path}: an #ifdef without #endif")

    def _expanded(self, fields: list[str], where: str, depth: int) -> list[str]:
        if depth > DEPTH:
            raise InvalidInputError(f"{where}: macros refer to one another without end")
        found: list[str] = []
        for field in fields:
            if field in self.defines:
                found += self._expanded(self.defines[field].split(), where, depth + 1)
            else:
                found.append(field)
            if len(found) > FIELDS and depth:
                raise InvalidInputError(f"{where}: macros refer to one another without end")
        return found

    def _command(self, words: list[str], path: Path, where: str, depth: int) -> Iterator[Line]:
        command, rest = words[0] if words else "", words[1] if len(words) > 1 else ""
        if command in ("ifdef", "ifndef"):
            self.conditions.append((rest.split()[0] in self.defines) == (command == "ifdef") if rest else False)
        elif command == "else" and self.conditions:
            self.conditions[-1] = not self.conditions[-1]
        elif command == "endif" and self.conditions:
            self.conditions.pop()
        elif command in ("else", "endif"):
            raise InvalidInputError(f"{where}: #{command} without #ifdef")
        elif not all(self.conditions):
            return
        elif command == "define" and rest:
            name, *value = rest.split(maxsplit=1)
            self.defines[name] = value[0] if value else ""
        elif command == "undef" and rest:
            self.defines.pop(rest.split()[0], None)
        elif command == "include" and rest:
            yield from self.lines(self._found(rest.strip().strip('"<>'), path, where), depth + 1)
        else:
            raise InvalidInputError(f"{where}: #{' '.join(words)} is not understood: run grompp -pp, give its output")

    def _found(self, name: str, path: Path, where: str) -> Path:
        for folder in (path.parent, *self.folders):
            if (folder / name).is_file():
                return folder / name
        raise InvalidInputError(
            f"{where}: the included file {name} is missing: put it beside {path.name}, set GMXLIB to the folder of "
            "GROMACS' force fields, or run grompp -pp and give its output"
        )


def _joined(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with what they continue, without comments and blank lines."""
    check_encoding(path, marked=True)
    kept = ""
    for number, raw in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), start=1):
        text = kept + raw.split(";")[0].strip()
        kept = text[:-1] + " " if text.endswith("\\") else ""
        if text and not kept and not text.startswith("*"):
            yield number, text
