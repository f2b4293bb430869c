"""How large an expression may be: beyond that parsing it takes OpenMM minutes, or the stack."""

import re
from collections import Counter

from openmm_cgflow.errors import UnsupportedForceError

__all__ = ["check_size"]

MOST_CHARACTERS = 100_000
MOST_TOKENS = 2_000
MOST_EXPANDED = 50_000  # with every definition written out, as OpenMM does
MOST_LEVELS = 100
_TOKEN = re.compile(r"[A-Za-z_]\w*|[\d.]+|\S")
_CHAINED = re.compile(r"[-+]{100}|(\^[\w.]+){20}")  # signs, and powers of powers, are nested too


def check_size(text: str) -> None:
    """See that an expression can be parsed in a reasonable time.

    Arguments:
        text: in OpenMM's language, with definitions after `;`. Other text passes if it is not huge.

    Raises:
        UnsupportedForceError: if it is longer, or nested deeper, than any that is in use.

    Example:
        >>> check_size("a*r^2; a=2*b")
    """
    if len(text) < 64 and ";" not in text:
        return
    if len(text) > MOST_CHARACTERS:
        raise _too_large(text, f"{len(text):,} characters", MOST_CHARACTERS)
    parts = [_TOKEN.findall(part) for part in text.split(";")]
    tokens = sum(map(len, parts))
    if tokens > MOST_TOKENS:
        raise _too_large(text, f"{tokens:,} names, numbers and signs", MOST_TOKENS)
    level = deepest = 0
    for character in text:
        level += (character == "(") - (character == ")")
        deepest = max(deepest, level)
    if deepest > MOST_LEVELS or _CHAINED.search("".join(text.split())):
        raise _too_large(text, "too many levels", MOST_LEVELS)
    if len(parts) > 1:
        _check_expanded(text, parts)


def _check_expanded(text: str, parts: list[list[str]]) -> None:
    """Sizes of the definitions with those written out that stand after them."""
    sizes: dict[str, int] = {}
    for number, part in reversed(list(enumerate(parts))):
        defined, body = (part[0], part[2:]) if number and part[1:2] == ["="] else (None, part)
        size = sum(count * sizes.get(word, 1) for word, count in Counter(body).items())
        if size > MOST_EXPANDED:
            raise _too_large(text, f"{size:.2g} names, numbers and signs when its definitions are written out",
                             MOST_EXPANDED)  # fmt: skip
        if defined is not None:
            sizes[defined] = size


def _too_large(text: str, what: str, most: int) -> UnsupportedForceError:
    return UnsupportedForceError(f"the expression {text[:60]!r}... has {what}; up to {most:,} are read")
