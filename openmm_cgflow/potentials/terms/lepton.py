"""OpenMM's expression language (Lepton) evaluated on torch tensors, parsed with Python's own `ast`.

The grammars agree but for `^` (power), the definitions after `;`, and names that are Python keywords (`or`, `lambda`).
Precedence and associativity of `^` and of unary minus are the same in both languages.
"""

import ast
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openmm_cgflow.errors import UnsupportedForceError
from openmm_cgflow.potentials.terms.limits import check_size

__all__ = ["Expression", "Value"]

Value = Tensor | float
_NAME = re.compile(r"(?<![\w.])[A-Za-z_]\w*")
_NUMBER = re.compile(r"(?<![\w.])0+(?=\d)")
_PREFIX = "v_"


_FINITE_SLOPES = frozenset(
    {"abs", "atan", "ceil", "cos", "cube", "delta", "erf", "erfc", "floor", "max", "min", "select", "sin", "square",
     "step", "tanh"}
)  # fmt: skip
_DEEPEST = 300  # levels of parentheses, operations and definitions


class _Taken(torch.autograd.Function):
    """Passes a variable to one branch of a case distinction, and back only the slopes of elements that take it.

    Beyond its branch an expression may have an infinite slope, which times zero is NaN.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, taken: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(taken)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (taken,) = ctx.saved_tensors
        return torch.where(taken, upstream, torch.zeros_like(upstream)), None


def _unary(tensor: Callable[[Tensor], Tensor], number: Callable[[float], float]) -> Callable[[Value], Value]:
    return lambda v: tensor(v) if isinstance(v, Tensor) else _plainly(number, v)


def _plainly(number: Callable[..., float], *arguments: float) -> float:
    """A function of numbers as C has it: infinite or NaN where Python raises."""
    with np.errstate(all="ignore"):
        return float(number(*(np.float64(v) for v in arguments)))


def _binary(
    tensor: Callable[[Tensor, Tensor], Tensor], number: Callable[[float, float], float]
) -> Callable[..., Value]:
    def apply(a: Value, b: Value) -> Value:
        if not isinstance(a, Tensor) and not isinstance(b, Tensor):
            return _plainly(number, a, b)
        like = a if isinstance(a, Tensor) else b
        assert isinstance(like, Tensor)
        return tensor(_like(a, like), _like(b, like))

    return apply


def _like(v: Value, like: Tensor) -> Tensor:
    return v if isinstance(v, Tensor) else torch.full((), v, dtype=like.dtype, device=like.device)


# As OpenMM computes them: the second argument where one is NaN; where both are equal, the slopes are those of the first
# argument of max and of the second of min.


def _max(a: Value, b: Value) -> Value:
    return _choose(_first_is_max(a, b), a, b)


def _min(a: Value, b: Value) -> Value:
    return _choose(_first_is_min(a, b), a, b)


def _first_is_max(a: Value, b: Value) -> Tensor | bool:
    return a >= b


def _first_is_min(a: Value, b: Value) -> Tensor | bool:
    return a < b


def _choose(condition: Tensor | bool, a: Value, b: Value) -> Value:
    if not isinstance(condition, Tensor):
        return a if condition else b
    like = next((v for v in (a, b) if isinstance(v, Tensor)), None)
    if like is None:
        like = torch.zeros((), device=condition.device)
    return torch.where(condition, _like(a, like), _like(b, like))


def _absolute(v: Tensor) -> Tensor:
    return torch.where(v >= 0, v, -v)  # with the slope of Lepton at 0: 1


def _step(v: Value) -> Value:
    return (v >= 0).to(v.dtype) if isinstance(v, Tensor) else float(v >= 0)


def _delta(v: Value) -> Value:
    return (v == 0).to(v.dtype) if isinstance(v, Tensor) else float(v == 0)


def _select(condition: Value, a: Value, b: Value) -> Value:
    return _choose(condition != 0, a, b)


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
        return _plainly(np.power, base, exponent)
    if exponent == 0:
        return 1.0
    if float(exponent).is_integer() and abs(exponent) <= 64:
        result = _integer_power(base, int(abs(exponent)))
        return result if exponent > 0 else 1.0 / result
    return torch.sqrt(base) if exponent == 0.5 else torch.pow(base, exponent)


def _divide(a: Value, b: Value) -> Value:
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        return _plainly(np.divide, a, b)
    return a / b


FUNCTIONS: dict[str, Callable[..., Value]] = {
    "sqrt": _unary(torch.sqrt, np.sqrt),
    "exp": _unary(torch.exp, np.exp),
    "log": _unary(torch.log, np.log),
    "sin": _unary(torch.sin, np.sin),
    "cos": _unary(torch.cos, np.cos),
    "tan": _unary(torch.tan, np.tan),
    "sec": _unary(lambda v: 1 / torch.cos(v), lambda v: 1 / np.cos(v)),
    "csc": _unary(lambda v: 1 / torch.sin(v), lambda v: 1 / np.sin(v)),
    "cot": _unary(lambda v: 1 / torch.tan(v), lambda v: 1 / np.tan(v)),
    "asin": _unary(torch.asin, np.arcsin),
    "acos": _unary(torch.acos, np.arccos),
    "atan": _unary(torch.atan, np.arctan),
    "atan2": _binary(torch.atan2, np.arctan2),
    "sinh": _unary(torch.sinh, np.sinh),
    "cosh": _unary(torch.cosh, np.cosh),
    "tanh": _unary(torch.tanh, np.tanh),
    "erf": _unary(torch.erf, math.erf),
    "erfc": _unary(torch.erfc, math.erfc),
    "abs": _unary(_absolute, abs),
    "floor": _unary(torch.floor, np.floor),
    "ceil": _unary(torch.ceil, np.ceil),
    "square": lambda v: v * v,
    "cube": lambda v: v * v * v,
    "recip": lambda v: _divide(1.0, v),
    "min": _min,
    "max": _max,
    "step": _step,
    "delta": _delta,
    "select": _select,
}


_CASES: dict[str, Callable[..., Tensor | bool]] = {"min": _first_is_min, "max": _first_is_max}


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
        text = " ".join(text.split())
        if "#" in text:
            raise UnsupportedForceError(f"the expression {text!r} uses '#'")
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
        self._known_names: dict[str, frozenset[str]] = {}
        self._depths: dict[str, int] = {}
        self._smooth: dict[str, bool] = {}
        self._check_depth()
        self.names = self._free(self._root)

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

    def _check_depth(self) -> None:
        """Refuse what would be too deep for Python's stack, definitions unfolded; they refer to earlier ones only."""
        for name, tree in self._definitions.items():
            self._depths[name] = self._depth(tree)
        self._depth(self._root)

    def _depth(self, tree: ast.expr) -> int:
        deepest, level = 0, [tree]
        inner = 0
        while level:
            deepest += 1
            inner = max(inner, *(deepest + self._depths.get(n.id, 0) for n in level if isinstance(n, ast.Name)), 0)
            level = [child for node in level for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
            if max(deepest, inner) > _DEEPEST:
                raise UnsupportedForceError(f"the expression {self.text[:60]!r}... is more than {_DEEPEST} levels deep")
        return max(deepest, inner)

    def _children(self, node: ast.expr) -> list[ast.expr]:
        if isinstance(node, ast.Name):
            return [self._definitions[node.id]] if node.id in self._definitions else []
        inner = node.args if isinstance(node, ast.Call) else ast.iter_child_nodes(node)
        return [child for child in inner if isinstance(child, ast.expr)]

    def _free(self, node: ast.expr) -> frozenset[str]:
        if isinstance(node, ast.Name):
            if node.id not in self._definitions:
                return frozenset({node.id})
            if node.id not in self._known_names:
                self._known_names[node.id] = self._free(self._definitions[node.id])
            return self._known_names[node.id]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in self._symbolic:
            return frozenset({self._call_name(node)})
        return frozenset().union(*(self._free(child) for child in self._children(node)))

    def _has_finite_slopes(self, node: ast.expr) -> bool:
        """Whether no derivative of it can be infinite where the variables are finite."""
        if isinstance(node, ast.Name) and node.id in self._definitions:
            if node.id not in self._smooth:
                self._smooth[node.id] = self._has_finite_slopes(self._definitions[node.id])
            return self._smooth[node.id]
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div | ast.Pow):
            return not self._free(node)
        if isinstance(node, ast.Call):
            assert isinstance(node.func, ast.Name)
            if node.func.id in self._symbolic:
                return True
            if node.func.id not in _FINITE_SLOPES:
                return not self._free(node)
        return all(self._has_finite_slopes(child) for child in self._children(node))

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
        if node.func.id == "select" and len(node.args) == 3:
            condition = self._value(node.args[0], environment, known)
            return self._cases(condition != 0, node.args[1], node.args[2], environment, known)
        values = [self._value(a, environment, known) for a in node.args]
        if node.func.id in _CASES and len(node.args) == 2 and any(isinstance(v, Tensor) for v in values):
            return self._cases(_CASES[node.func.id](*values), node.args[0], node.args[1], environment, known)
        return self._functions[node.func.id](*values)

    def _cases(
        self,
        condition: Tensor | bool,
        first: ast.expr,
        second: ast.expr,
        environment: Mapping[str, Value],
        known: dict[str, Value],
    ) -> Value:
        """One or the other, element by element, without the slopes of the one that is not taken."""
        if not isinstance(condition, Tensor):
            return self._value(first if condition else second, environment, known)
        a = self._branch(first, condition, environment, known)
        return _choose(condition, a, self._branch(second, ~condition, environment, known))

    def _branch(
        self, node: ast.expr, taken: Tensor, environment: Mapping[str, Value], known: dict[str, Value]
    ) -> Value:
        names = [
            name
            for name in self._free(node)
            if isinstance(value := environment[name], Tensor) and value.requires_grad and torch.is_grad_enabled()
        ]
        if not names or self._has_finite_slopes(node):
            return self._value(node, environment, known)
        passed = {name: _Taken.apply(environment[name], taken) for name in names}
        return self._value(node, {**environment, **passed}, {})

    @staticmethod
    def _operate(op: ast.operator, a: Value, b: Value) -> Value:
        if isinstance(op, ast.Add):
            return a + b
        if isinstance(op, ast.Sub):
            return a - b
        if isinstance(op, ast.Mult):
            return a * b
        return _divide(a, b) if isinstance(op, ast.Div) else _power(a, b)
