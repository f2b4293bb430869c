"""In which encoding a text file of a user is: readers take marks and wide letters for data, and lose lines by it."""

import codecs
from pathlib import Path

from openmm_cgflow.errors import InvalidInputError

__all__ = ["check_encoding"]

_MARKS = {
    codecs.BOM_UTF8: "UTF-8 with a byte order mark",
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_LOOKED_AT = 256  # bytes


def check_encoding(path: str | Path, marked: bool = False) -> None:
    """See that a file is plain text, or no text at all.

    Arguments:
        path: of a file that is there.
        marked: whether its reader knows the byte order mark of UTF-8.

    Raises:
        InvalidInputError: it is in another encoding than ASCII or UTF-8; the message names it.
        OSError: it cannot be read.
    """
    with Path(path).open("rb") as file:
        head = file.read(_LOOKED_AT)
    found = next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)
    if found is None and _wide(head):
        found = "UTF-16"
    if found is None or (marked and head.startswith(codecs.BOM_UTF8)):
        return
    raise InvalidInputError(
        f"{path} is in {found}, which the readers of its format take for something else: save it again as plain UTF-8 "
        "without a byte order mark"
    )


def _wide(head: bytes) -> bool:
    """Whether every other byte is zero, and none of the others: letters of two bytes."""
    first, second = head[::2], head[1::2]
    return len(head) > 3 and ((not any(first) and all(second)) or (not any(second) and all(first)))
