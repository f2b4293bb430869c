"""Docstrings and signatures as Sphinx takes them: scripts under `Example:` as code, and attributes as text."""

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx


def scripts_as_code(lines: list[str]) -> list[str]:
    """The lines of a docstring, with a directive for code in every `Example:` section that holds a script.

    Example:
        >>> scripts_as_code(["What it is.", "", "Example:", "    flow.train()"])
        ['What it is.', '', 'Example:', '    .. code-block:: python', '', '        flow.train()']
    """
    found: list[str] = []
    inside = code = False
    for line in lines:
        if inside and line.strip() and not line.startswith(" "):
            inside = code = False
        if inside and not code and line.strip():
            code = not line.lstrip().startswith(">>>")
            inside = code
            found += ["    .. code-block:: python", ""] if code else []
        inside = inside or line.rstrip() == "Example:"
        found.append(f"    {line}" if code and line.strip() else line)
    return found


def names_as_one(line: str) -> str:
    """An entry of several names: Sphinx takes all but the last word for a type.

    Example:
        >>> names_as_one("    low, high: nm.")
        '    low,high: nm.'
    """
    return re.sub(r"^    \w+(, \w+)+(?=: )", lambda found: found[0].replace(", ", ","), line)


def _process(app: "Sphinx", what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:  # noqa: ANN401
    lines[:] = [names_as_one(line) for line in scripts_as_code(lines)]
    if what in ("attribute", "property"):
        lines[:0] = ["..", ""]  # an empty comment, or napoleon takes what stands before a colon for a type


def _sign(
    app: "Sphinx",
    what: str,
    name: str,
    obj: Any,  # noqa: ANN401
    options: Any,  # noqa: ANN401
    signature: str | None,
    returns: str | None,
) -> tuple[str | None, str | None]:
    """A default that a dataclass makes anew is written `<factory>`, which no Python parser reads."""
    return signature and signature.replace("<factory>", "..."), returns


def setup(app: "Sphinx") -> dict[str, bool]:
    """What Sphinx calls."""
    app.connect("autodoc-process-docstring", _process, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", _sign)
    return {"parallel_read_safe": True}
