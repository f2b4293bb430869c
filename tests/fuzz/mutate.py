"""Damage: of bytes, of text by the words of its language, and of trees of JSON."""

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

XML_WORDS = [
    '<!-- > <Force type="PythonForce"/> -->', "<?x > ?>", "<![CDATA[", "]]>", '<!DOCTYPE a [<!ENTITY b "c">]>', "&b;",
    "&#80;", "&#x50;", "&amp;", "&lt;", 'type="PythonForce"', "type='TorchForce'", 'type="CustomCVForce"', 'type="3"',
    'xmlns:x="y"', "x:Force", "<Force>", "</Force>", "<System>", "</System>", "<Force", "/>", ">", '"', "'", "\x00",
    "\ufeff", "nan", "inf", "-inf", "1e999", "-1", "4", "2147483648", "99999999999999999999", "1e-320", "0x10", "\n\t",
    '<?xml version="1.0" encoding="UTF-7"?>', '<?xml version="1.0" encoding="UTF-16"?>', "<a>" * 60, "é\U0001f600",
    'version="99"', "<Particles>" + '<Particle mass="1"/>' * 20, "(" * 300, "a;" * 50,
]  # fmt: skip
JSON_WORDS = [
    "null", "NaN", "Infinity", "-Infinity", "1e999", "-1", "9" * 30, "9" * 5000, "true", '"', "[" * 2000, "{", "}", "]",
    '"a":1,', "\\u0000", "\\ud800", "1e9", "0.5", "1000000000", '"F32"', '"F16"', '"shape"', '"__metadata__":{}', ",",
]  # fmt: skip
EXPRESSION_WORDS = [
    "(", ")", ",", ";", "=", "^", "-", "+", "*", "/", "**", "//", "lambda", "or", "if", "__import__('os')", "[0]", ".",
    "0x1", "1e999", "9" * 400, "1_0", "é", "\x00", "\n", "#", "'a'", "f(", "sin(", "select(", "(" * 300, "-" * 300,
    ";a=b", ";b=a+a", "r", "1e", "2(3)", "x.y", ":=", "a,b", "True", "None", "...", "^" * 5, "+r" * 400,
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 3, 10**9, 2**31, 2**63, 10**30, -(10**9), 0.5, 1e308, float("nan"), float("inf"), "",
    "x", "1", "é\ud800", [], {}, [0], [[0]], [None] * 5, {"a": 1}, [1e9] * 3, "a" * 5000,
]  # fmt: skip


def damaged(data: bytes, words: Sequence[str], rng: random.Random) -> bytes:
    """One to four changes of bytes: flipped, cut, doubled, moved, words put in or in place of others."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        n = len(made)
        i = rng.randrange(n + 1)
        length = rng.choice((1, 1, 2, 4, 8, 64, max(1, n // 4)))
        kind = rng.randrange(8)
        if kind == 0 and n:
            made[i % n] ^= 1 << rng.randrange(8)
        elif kind == 1 and n:
            made[i % n] = rng.randrange(256)
        elif kind == 2:
            del made[i : i + length]
        elif kind == 3:
            made[i:i] = made[i : i + length] * rng.choice((1, 2, 20))
        elif kind == 4:
            piece = made[i : i + length]
            del made[i : i + length]
            j = rng.randrange(len(made) + 1)
            made[j:j] = piece
        elif kind == 5:
            made[i : i + rng.choice((0, length))] = rng.choice(words).encode("utf-8", "surrogatepass")
        elif kind == 6:
            del made[i:]
        else:
            quote = made.find(b'"', i)  # a whole value in quotes
            end = made.find(b'"', quote + 1)
            if 0 <= quote < end:
                made[quote + 1 : end] = rng.choice(words).encode("utf-8", "surrogatepass")
    return bytes(made[:4_000_000])


def damaged_tree(text: str, rng: random.Random) -> Any:
    """What JSON says, with one value replaced, changed, removed, doubled, or taken from somewhere else."""
    tree = json.loads(text)
    holder, key = _place(tree, rng)
    kind = rng.randrange(6)
    if kind <= 1:
        holder[key] = rng.choice(VALUES)
    elif kind == 2 and type(holder[key]) in (int, float):
        holder[key] = holder[key] + rng.choice((-1, 1, -0.5, 100, 1e6)) if rng.random() < 0.8 else -holder[key]
    elif kind == 3:
        del holder[key]
    elif kind == 4:
        other, name = _place(tree, rng)
        holder[key] = json.loads(json.dumps(other[name]))
    elif isinstance(holder, list):
        holder.insert(key, holder[key])
    else:
        holder[rng.choice(("unknown", "version", "", key + " "))] = holder[key]
    return tree


def _place(tree: Any, rng: random.Random) -> tuple[Any, Any]:
    """A value in a tree, as what holds it and where."""
    while True:
        key = rng.choice(list(tree)) if isinstance(tree, dict) else rng.randrange(len(tree))
        inner = tree[key]
        if not isinstance(inner, dict | list) or not inner or rng.random() < 0.2:
            return tree, key
        tree = inner


def put(*keys: Any, value: Any) -> Callable[[dict, dict], None]:
    """A change of a file's tensors and header: a value in the place that the keys lead to."""

    def change(tensors: dict, header: dict) -> None:
        place = header
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change
