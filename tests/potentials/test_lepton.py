import math

import openmm
import pytest
import torch

from openmm_cgflow.errors import UnsupportedForceError
from openmm_cgflow.potentials.contexts.evaluator import Evaluator
from openmm_cgflow.potentials.terms.lepton import Expression

# Of x, y, z and a = 0.7, b = 2, lambda = 0.3, or = 1.1: OpenMM itself says what they are worth.
EXPRESSIONS = [
    "-x^2 + y^-2 - 2^-x^2",
    "2^y^x",
    "-x*y - -z/x",
    "x - y - z + x/y/z",
    "sqrt(x)+exp(-y)+log(z)+sin(x)*cos(y)-tan(z)",
    "sec(x)+csc(y)+cot(z)",
    "asin(x/3)+acos(y/3)+atan(z)+atan2(x-1, z-2)",
    "sinh(x)+cosh(y)-tanh(z)",
    "erf(x)-erfc(y)+square(z)+cube(x)+recip(y)",
    "min(x, y)*max(y, z)+abs(x-z)+min(x, 1)+max(1, y)",
    "floor(3*x)+ceil(3*y)*z",
    "step(x-1)*y+step(1-x)*z+delta(x-1)+delta(0)*x",
    "select(step(x-y), x^2, y^3)+select(0, x, z)+select(x, y, z)",
    "x^y+x^0.5+y^2.5+z^3",
    "u*v^2; u=x+v; v=y*z",
    "offset+q; q=offset*x; offset=w+0.5; w=z",
    "a*x+b*y+lambda*z+or",
    "a*x; a=or*lambda",
    "1e-3*x+1.5E2*y+.5*z+2.",
    "(((x)))*( y+ z )",
]


# At the edges: infinite slopes of branches that are not taken, equal arguments, constants that Python refuses.
EDGES = [
    "select(x, sqrt(x), 0)",
    "select(step(x-1), sqrt(x-1), 0)",
    "select(step(x-1), 1/(x-1)^2, x)",
    "select(step(x-1), x^y, y^0.3)",
    "select(1-step(abs(x)-1), acos(x), x)",
    "select(1-step(abs(x)-1), select(step(x), log(x), asin(x)), x)",
    "select(y, x/y, 0)",
    "x*select(a, sqrt(y), 1/y); a=step(y-0.3)",
    "min(sqrt(y), 0.5)*max(0.1, log(x))",
    "max(y^0.5, select(step(x-1), log(x-1), -5))",
    "min(x, y)+max(x, y)+min(x, 0)+max(x, 0)+min(0, y)+max(0, y)",
    "abs(x)+step(x)*x+delta(x)*y",
    "exp(log(0))+x+exp(-1/0)+2*sqrt(0)*y+0^2",
    "select(step(x-1), exp(1/(1-x)), 0)",
]
POINTS = [[0, 0.5, 0], [0, 0, 0], [1, 0, 0], [1, 1, 0], [2, 0.2, 0], [-1, -1, 0.3], [0.3, 0.2, 0.1]]


def openmm_says(text, x, constants):
    force = openmm.CustomExternalForce(text)
    for name, value in constants.items():
        force.addGlobalParameter(name, value)
    force.addParticle(0, [])
    system = openmm.System()
    system.addParticle(1.0)
    system.addForce(force)
    return Evaluator(system, "Reference")(x.numpy())


def we_say(text, x, constants):
    leaf = x.clone().requires_grad_(True)
    environment = {**constants, **dict(zip("xyz", leaf[:, 0].unbind(1), strict=True))}
    ours = Expression(text)(environment)
    (gradient,) = torch.autograd.grad(ours.sum(), leaf)
    return ours.detach(), -gradient


@pytest.mark.parametrize("text", EDGES)
def test_slopes_at_the_edges_are_those_of_openmm(text):
    x = torch.tensor(POINTS, dtype=torch.float64).unsqueeze(1)
    energy, forces = (torch.from_numpy(a) for a in openmm_says(text, x, {}))
    ours, our_forces = we_say(text, x, {})
    usable = torch.isfinite(energy) & torch.isfinite(forces).all(2).all(1)
    assert usable.sum() >= 3
    torch.testing.assert_close(ours[usable], energy[usable])
    torch.testing.assert_close(our_forces[usable], forces[usable])


@pytest.mark.parametrize(("text", "value"), [
    ("log(0)", -math.inf), ("sqrt(-1)", math.nan), ("acos(2)", math.nan), ("0^-1", math.inf), ("exp(1000)", math.inf),
    ("(-8)^(1/3)", math.nan), ("floor(1/0)", math.inf), ("cosh(1e4)", math.inf), ("1/0-1/0", math.nan),
])  # fmt: skip
def test_constants_are_what_c_makes_of_them(text, value):
    assert Expression(text)({}) == pytest.approx(value, nan_ok=True)


def test_hostile_expressions_are_refused_or_read_in_time():
    def doubling(n):  # OpenMM writes definitions out: 2^n terms
        return "a0;" + ";".join(f"a{k}=a{k + 1}+a{k + 1}" for k in range(n)) + f";a{n}=x"

    assert Expression(doubling(12))({"x": 1.0}) == 2.0**12
    hostile = ["(" * 500 + "x" + ")" * 500, "-" * 5000 + "x", "+".join(["x"] * 5000), "9" * 4000, "x # y", "(x)(y)"]
    for text in (doubling(60), *hostile, "x.y", "sqrt(x=1)", "max(*x)", "'a'", "x\0"):
        with pytest.raises(UnsupportedForceError):
            Expression(text)


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_expression_agrees_with_openmm(text):
    constants = {"a": 0.7, "b": 2.0, "lambda": 0.3, "or": 1.1}
    x = 0.3 + torch.rand(20, 1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    energy, forces = openmm_says(text, x, constants)
    ours, our_forces = we_say(text, x, constants)
    torch.testing.assert_close(ours, torch.from_numpy(energy), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(our_forces, torch.from_numpy(forces), rtol=1e-8, atol=1e-8)


def test_numbers_need_no_tensor():
    assert Expression("2*sin(a)^2 + max(1, a)")({"a": 0.5}) == pytest.approx(2 * math.sin(0.5) ** 2 + 1)
    assert Expression("1/a")({"a": 0.0}) == math.inf


def test_names_are_the_free_ones():
    assert Expression("a*b+c; b=d^2; unused=e").names == {"a", "c", "d"}


def test_symbolic_calls_are_looked_up():
    expression = Expression("k*distance(p1, p2)", symbolic=frozenset({"distance"}))
    assert expression.names == {"k", "distance(p1,p2)"}
    assert expression({"k": 2.0, "distance(p1,p2)": 0.25}) == 0.5


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("mystery(x)", "mystery"),
        ("x +* y", r"x \+\* y"),
        ("a; b", "definition"),
        ("", "empty"),
        ("x if y", "cannot"),
    ],
)
def test_unreadable_expressions_are_named(text, shown):
    with pytest.raises(UnsupportedForceError, match=shown):
        Expression(text)
