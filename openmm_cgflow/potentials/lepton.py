"""OpenMM's expression language (Lepton) evaluated on torch tensors, parsed with Python's own `ast`.

The grammars agree but for `^` (power), the definitions after `;`, and names that are Python keywords (`or`, `lambda`).
Precedence and associativity of `^` and of unary minus are the same in both languages.
"""

import ast
import math
import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from openmm_cgflow.errors import UnsupportedForceError
from openmm_cgflow.potentials.limits import check_size

__all__ = ["Expression", "Value"]

Value = Tensor | float
_NAME = re.compile(r"(?<![\w.])[A-Za-z_]\w*")
_NUMBER = re.compile(r"(?<![\w.])0+(?=\d)")
_PREFIX = "v_"


def _unary(tensor: Callable[[Tensor], Tensor], number: Callable[[float], float]) -> Callable[[Value], Value]:
    return lambda v: tensor(v) if isinstance(v, Tensor) else float(number(v))


def _binary(
    tensor: Callable[[Tensor, Tensor], Tensor], number: Callable[[float, float], float]
) -> Callable[..., Value]:
    def apply(a: Value, b: Value) -> Value:
        if not isinstance(a, Tensor) and not isinstance(b, Tensor):
            return float(number(a, b))
        like = a if isinstance(a, Tensor) else b
        assert isinstance(like, Tensor)
        ta = a if isinstance(a, Tensor) else torch.full_like(like[:1, :1] if like.dim() == 2 else like, a)
        tb = b if isinstance(b, Tensor) else torch.full_like(like[:1, :1] if like.dim() == 2 else like, b)
        return tensor(ta, tb)

    return apply


def _max(a: Value, b: Value) -> Value:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.where(a >= b, a, b)
    if isinstance(a, Tensor):
        return a.clamp(min=float(b))
    return b.clamp(min=a) if isinstance(b, Tensor) else max(a, b)


def _min(a: Value, b: Value) -> Value:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.where(a <= b, a, b)
    if isinstance(a, Tensor):
        return a.clamp(max=float(b))
    return b.clamp(max=a) if isinstance(b, Tensor) else min(a, b)


def _step(v: Value) -> Value:
    return (v >= 0).to(v.dtype) if isinstance(v, Tensor) else float(v >= 0)


def _delta(v: Value) -> Value:
    return (v == 0).to(v.dtype) if isinstance(v, Tensor) else float(v == 0)


def _select(condition: Value, a: Value, b: Value) -> Value:
    if not isinstance(condition, Tensor):
        return a if condition != 0 else b
    like = condition
    ta = a if isinstance(a, Tensor) else torch.full((), a, dtype=like.dtype, device=like.device)
    tb = b if isinstance(b, Tensor) else torch.full((), b, dtype=like.dtype, device=like.device)
    return torch.where(condition != 0, ta, tb)


def _integer_power(base: Tensor, n: int) -> Tensor:
    result: Tensor | None = None
    square = base
    while n:
        if n & 1:
            result = square if result is None else result * square
        n >>= 1
        if n:
            square = square * square
    assert result is not None
    return result


def _power(base: Value, exponent: Value) -> Value:
    if isinstance(exponent, Tensor):
        return torch.pow(base, exponent)
    if not isinstance(base, Tensor):
        try:
            return math.pow(base, exponent)
        except (ValueError, OverflowError):
            return math.nan
    if exponent == 0:
        return 1.0
    if float(exponent).is_integer() and abs(exponent) <= 64:
        result = _integer_power(base, int(abs(exponent)))
        return result if exponent > 0 else 1.0 / result
    return torch.sqrt(base) if exponent == 0.5 else torch.pow(base, exponent)


def _divide(a: Value, b: Value) -> Value:
    if not isinstance(a, Tensor) and not isinstance(b, Tensor) and b == 0:
        return math.nan if a == 0 else math.copysign(math.inf, a)
    return a / b


FUNCTIONS: dict[str, Callable[..., Value]] = {
    "sqrt": _unary(torch.sqrt, math.sqrt),
    "exp": _unary(torch.exp, math.exp),
    "log": _unary(torch.log, math.log),
    "sin": _unary(torch.sin, math.sin),
    "cos": _unary(torch.cos, math.cos),
    "tan": _unary(torch.tan, math.tan),
    "sec": _unary(lambda v: 1 / torch.cos(v), lambda v: 1 / math.cos(v)),
    "csc": _unary(lambda v: 1 / torch.sin(v), lambda v: 1 / math.sin(v)),
    "cot": _unary(lambda v: 1 / torch.tan(v), lambda v: 1 / math.tan(v)),
    "asin": _unary(torch.asin, math.asin),
    "acos": _unary(torch.acos, math.acos),
    "atan": _unary(torch.atan, math.atan),
    "atan2": _binary(torch.atan2, math.atan2),
    "sinh": _unary(torch.sinh, math.sinh),
    "cosh": _unary(torch.cosh, math.cosh),
    "tanh": _unary(torch.tanh, math.tanh),
    "erf": _unary(torch.erf, math.erf),
    "erfc": _unary(torch.erfc, math.erfc),
    "abs": _unary(torch.abs, abs),
    "floor": _unary(torch.floor, math.floor),
    "ceil": _unary(torch.ceil, math.ceil),
    "square": lambda v: v * v,
    "cube": lambda v: v * v * v,
    "recip": lambda v: _divide(1.0, v),
    "min": _min,
    "max": _max,
    "step": _step,
    "delta": _delta,
    "select": _select,
}


class Expression:
    """One Lepton expression, with its definitions after `;`.

    Arguments:
        text: The expression as OpenMM stores it.
        functions: Further functions by name, for instance tabulated ones.
        symbolic: Names of functions whose arguments are names (particles), such as `distance(p1, p2)`: they are looked
            up in the environment as `"distance(p1,p2)"`.

    Attributes:
        names: The free variables (and symbolic calls) that must be in the environment.

    Raises:
        UnsupportedForceError: The text uses something that has no translation; the message shows it.

    Example:
        >>> Expression("a*r^2; a=2*b")({"r": 3.0, "b": 0.5})
        9.0
    """

    def __init__(
        self,
        text: str,
        functions: Mapping[str, Callable[..., Value]] | None = None,
        symbolic: frozenset[str] = frozenset(),
    ) -> None:
        check_size(text)
        self.text = text
        self._functions = {**FUNCTIONS, **(functions or {})}
        self._symbolic = symbolic
        parts = [p for p in (piece.strip() for piece in text.split(";")) if p]
        if not parts:
            raise UnsupportedForceError(f"empty expression {text!r}")
        scope: dict[str, str] = {}
        self._definitions: dict[str, ast.expr] = {}
        # A definition sees only those that stand after it, so they are read from the last to the first.
        for number, part in reversed(list(enumerate(parts[1:]))):
            name, equals, body = part.partition("=")
            if not equals:
                raise UnsupportedForceError(f"cannot read the definition {part!r} in the expression {text!r}")
            unique = f"{name.strip()}@{number}"
            self._definitions[unique] = self._parse(body, scope)
            scope[name.strip()] = unique
        self._root = self._parse(parts[0], scope)
        try:
            self.names = frozenset(self._free(self._root))
        except RecursionError as error:
            raise UnsupportedForceError(f"the expression {text[:60]!r}... is nested too deep") from error

    def _parse(self, text: str, scope: Mapping[str, str]) -> ast.expr:
        mangled = _NAME.sub(lambda m: _PREFIX + m.group(), _NUMBER.sub("", text)).replace("^", "**")
        try:
            tree = ast.parse(mangled.strip(), mode="eval").body
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            raise UnsupportedForceError(f"cannot read {text!r} in the expression {self.text!r}") from error
        called = {id(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Name):
                plain = node.id.removeprefix(_PREFIX)
                node.id = plain if id(node) in called else scope.get(plain, plain)
        for node in ast.walk(tree):
            self._check(node)
        return tree

    def _check(self, node: ast.AST) -> None:
        allowed = (
            ast.BinOp, ast.UnaryOp, ast.Call, ast.Name, ast.Constant, ast.Load,
            ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.USub, ast.UAdd,
        )  # fmt: skip
        if not isinstance(node, allowed) or (
            isinstance(node, ast.Constant) and not isinstance(node.value, int | float)
        ):
            raise UnsupportedForceError(f"the expression {self.text!r} uses {type(node).__name__}")
        if isinstance(node, ast.Constant) and isinstance(node.value, int) and node.value.bit_length() > 1000:
            raise UnsupportedForceError(f"the expression {self.text[:60]!r}... has a number of too many digits")
        if isinstance(node, ast.Call):
            if not isinstance(node.func, ast.Name):
                raise UnsupportedForceError(f"the expression {self.text!r} calls what is not a function")
            if node.func.id not in self._functions and node.func.id not in self._symbolic:
                raise UnsupportedForceError(f"the expression {self.text!r} calls the unknown function {node.func.id!r}")

    def _call_name(self, node: ast.Call) -> str:
        assert isinstance(node.func, ast.Name)
        return f"{node.func.id}({','.join(ast.unparse(a) for a in node.args)})"

    def _free(self, node: ast.expr) -> set[str]:
        if isinstance(node, ast.Name):
            return self._free(self._definitions[node.id]) if node.id in self._definitions else {node.id}
        if isinstance(node, ast.Call):
            assert isinstance(node.func, ast.Name)
            if node.func.id in self._symbolic:
                return {self._call_name(node)}
        found: set[str] = set()
        children = node.args if isinstance(node, ast.Call) else list(ast.iter_child_nodes(node))
        for child in children:
            if isinstance(child, ast.expr):
                found |= self._free(child)
        return found

    def __call__(self, environment: Mapping[str, Value]) -> Value:
        """Evaluate with `environment` giving a number or tensor for every name; equal parts are computed once."""
        return self._value(self._root, environment, {})

    def _value(self, node: ast.expr, environment: Mapping[str, Value], known: dict[str, Value]) -> Value:
        if isinstance(node, ast.Constant):
            return float(node.value)  # type: ignore[arg-type]
        if isinstance(node, ast.Name) and node.id not in self._definitions:
            return environment[node.id]
        key = ast.dump(node)
        if key not in known:
            known[key] = self._compute(node, environment, known)
        return known[key]

    def _compute(self, node: ast.expr, environment: Mapping[str, Value], known: dict[str, Value]) -> Value:
        if isinstance(node, ast.Name):
            return self._value(self._definitions[node.id], environment, known)
        if isinstance(node, ast.UnaryOp):
            operand = self._value(node.operand, environment, known)
            return -operand if isinstance(node.op, ast.USub) else operand
        if isinstance(node, ast.BinOp):
            left, right = self._value(node.left, environment, known), self._value(node.right, environment, known)
            return self._operate(node.op, left, right)
        assert isinstance(node, ast.Call)
        assert isinstance(node.func, ast.Name)
        if node.func.id in self._symbolic:
            return environment[self._call_name(node)]
        return self._functions[node.func.id](*(self._value(a, environment, known) for a in node.args))

    @staticmethod
    def _operate(op: ast.operator, a: Value, b: Value) -> Value:
        if isinstance(op, ast.Add):
            return a + b
        if isinstance(op, ast.Sub):
            return a - b
        if isinstance(op, ast.Mult):
            return a * b
        return _divide(a, b) if isinstance(op, ast.Div) else _power(a, b)
