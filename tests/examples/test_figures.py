"""Tables of documents are what the measured figures give, and the measuring goes on where it stopped."""

import copy
import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "examples" / "benchmarks"


def script(name):
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tables = script("readme_tables")
PAGES = {path.name: path.read_text(encoding="utf-8") for path in tables.PAGES}
FIGURES = json.loads((BENCHMARKS / "figures.json").read_text())


@pytest.mark.parametrize("name", sorted(PAGES))
def test_a_page_has_what_the_figures_give(name):
    assert tables.filled(PAGES[name], FIGURES) == PAGES[name], "run python examples/benchmarks/readme_tables.py"


def test_every_table_is_on_one_page_once():
    found = [name for text in PAGES.values() for name in re.findall(r"<!-- figures:(\w+) -->", text)]
    assert sorted(found) == sorted(tables.RENDERERS)
    assert sum(text.count("<!-- end -->") for text in PAGES.values()) == len(found)


@pytest.mark.parametrize("name", sorted(tables.RENDERERS))
def test_a_changed_figure_changes_its_table(name):
    """At least three numbers of the file, changed one at a time, change the table: none is written by hand."""
    text = tables.RENDERERS[name](FIGURES)
    shown = 0
    for key, entry in FIGURES.items():
        for path in numbers(entry["figures"]):
            changed = {**FIGURES, key: copy.deepcopy(entry)}
            where = changed[key]["figures"]
            for step in path[:-1]:
                where = where[step]
            where[path[-1]] = 10 * where[path[-1]] + 3
            shown += tables.RENDERERS[name](changed) != text
            if shown == 3:
                return
    pytest.fail(f"{shown} numbers change it")


def numbers(figures, path=()):
    """Paths of all numbers."""
    pairs = figures.items() if isinstance(figures, dict) else enumerate(figures) if isinstance(figures, list) else ()
    for key, value in pairs:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield (*path, key)
        yield from numbers(value, (*path, key))


@pytest.mark.parametrize(
    ("values", "text"), [([0.967], "1.0"), ([3.0, 1.0, 2.0], "2.0 (1.0 to 3.0)"), ([1.0, 2.0], "1.5 (1.0 to 2.0)")]
)
def test_several_seeds_stand_as_median_and_range(values, text):
    assert tables.spread(values, ".1f") == text


def test_every_figure_says_where_it_is_from():
    for name, entry in FIGURES.items():
        assert {"command", "commit", "date", "machine", "figures"} <= set(entry), name
        assert "+changes" not in entry["commit"], f"{name} was measured with changes that were not committed"


COUNTER = """
import argparse, json, pathlib, sys
parser = argparse.ArgumentParser()
parser.add_argument("--json", type=pathlib.Path)
parser.add_argument("--count", type=pathlib.Path)
parser.add_argument("--fail", action="store_true")
options = parser.parse_args()
options.count.write_text(options.count.read_text() + "x" if options.count.exists() else "x")
if options.fail:
    sys.exit(3)
options.json.write_text(json.dumps({"answer": 42}))
"""


@pytest.fixture
def measuring(tmp_path, monkeypatch):
    """`run(*arguments)` of all.py, with jobs that leave a mark; marks, the file of figures and the commit."""
    module = script("all")
    (tmp_path / "counter.py").write_text(COUNTER)
    job = {
        name: module.Job(
            str(tmp_path / "counter.py"), ("--count", str(tmp_path / name)), ("--count", str(tmp_path / name))
        )
        for name in ("short", "long")
    }
    state = {"commit": "abc1234", "jobs": job}
    monkeypatch.setattr(module, "jobs", lambda cgback: state["jobs"])
    monkeypatch.setattr(module, "commit_of_package", lambda: state["commit"])

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["all.py", "--out", str(tmp_path / "figures.json"), *arguments])
        module.main()
        marks = {name: len((tmp_path / name).read_text()) if (tmp_path / name).exists() else 0 for name in job}
        return marks, json.loads((tmp_path / "figures.json").read_text())

    return run, state


def test_measuring_resumes_where_it_stopped(measuring):
    run, state = measuring
    assert run("--only", "sho")[0] == {"short": 1, "long": 0}
    marks, figures = run()
    assert marks == {"short": 1, "long": 1}
    assert figures["short"]["figures"] == {"answer": 42}
    assert figures["short"]["commit"] == "abc1234"
    assert run("--again", "--only", "long")[0] == {"short": 1, "long": 2}
    state["commit"] = "def5678"
    assert run()[0] == {"short": 2, "long": 3}


def test_a_job_without_figures_is_named_and_leaves_the_others(measuring):
    run, state = measuring
    run("--only", "long")
    broken = state["jobs"]["short"]
    state["jobs"]["short"] = broken._replace(arguments=(*broken.arguments, "--fail"))
    with pytest.raises(SystemExit, match="short"):
        run()
    state["jobs"].pop("short")
    assert "short" not in run()[1]
