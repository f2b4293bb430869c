"""What the pages say is true of the code: messages, options, names and links, and what of them is run."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

import openmm_cgflow as cgf

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
LOOSE = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")]


def module(name):
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


pages = module("run_pages")


def texts_of(tree):
    """Every text of a module, with `…` in place of each value that is put into it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values)


@pytest.fixture(scope="module")
def texts():
    return {
        " ".join(text.split())
        for path in (ROOT / "openmm_cgflow").rglob("*.py")
        for text in texts_of(ast.parse(path.read_text(encoding="utf-8")))
    }


def test_every_message_of_the_page_on_errors_is_one_that_the_package_gives(texts):
    page = (DOCS / "errors.md").read_text(encoding="utf-8")
    messages = ["\n".join(block.lines) for block in pages.blocks(page) if block.language == "text"]
    assert len(messages) > 40
    assert [message for message in messages if message not in texts] == []


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_every_command_on_a_page_has_options_that_exist(page):
    from typer.main import get_command

    from openmm_cgflow.cli import app

    group = get_command(app)
    for words in pages.commands(page.read_text(encoding="utf-8")):
        command = group.commands[words[1]]
        command.make_context(words[1], words[2:])  # parses, and runs nothing


def test_a_wrong_option_would_be_noticed():
    from typer.main import get_command

    from openmm_cgflow.cli import app

    command = get_command(app).commands["report"]
    with pytest.raises(Exception, match="--nonsense"):
        command.make_context("report", ["MOL.cgflow", "--nonsense"])


def test_api_page_has_every_public_name():
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\.\. auto\w+:: openmm_cgflow\.(\w+)$", page, re.MULTILINE)
    assert sorted([*documented, "__version__"]) == sorted(cgf.__all__)


@pytest.mark.parametrize("page", [*LOOSE, *sorted(DOCS.glob("*.md"))], ids=lambda page: page.name)
def test_links_of_a_page_lead_to_files(page):
    links = re.findall(r"\]\((?!https?:|#)([^)\s]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link.partition("#")[0]).exists()] == []


PAGE = """# Title

```python
x = 1
```

<!-- not run: it takes long -->
```bash
openmm-cgflow train A.pdb -o A.cgflow
```

```bash
openmm-cgflow audit A.cgflow  # a comment
pip install . && openmm-cgflow demo
ls
```

```text
y = 2
```
"""


def test_the_script_of_a_page_has_its_lines_where_the_page_has_them():
    lines = pages.script(PAGE).split("\n")
    assert len(lines) == len(PAGE.splitlines())
    assert lines[3] == "x = 1"
    run = "subprocess.run([sys.executable, '-m', 'openmm_cgflow', *['audit', 'A.cgflow']], check=True)"
    assert [line for line in lines[1:] if line] == ["x = 1", run]
    assert lines.index(run) == PAGE.splitlines().index("openmm-cgflow audit A.cgflow  # a comment")


def test_commands_of_a_page_are_all_found_whether_they_run_or_not():
    assert [words[1] for words in pages.commands(PAGE)] == ["train", "audit", "demo"]


def test_a_page_that_fails_is_an_error(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Title\n```python\nraise SystemExit(3)\n```\n")
    with pytest.raises(Exception, match="status 3"):
        pages.run(page)
