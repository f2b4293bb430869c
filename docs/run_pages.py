"""Run what the pages show, so that nothing there is out of date.

    python docs/run_pages.py                 # README and all pages
    python docs/run_pages.py docs/bias.md    # one of them

The blocks of a page make one script, in their order, that runs in a folder of its own beside the files of `GIVEN`:
Python blocks as they are, and the lines of shell blocks that begin with `openmm-cgflow`. Those of a block below a line
`<!-- not run: REASON -->` are left out; the tests parse the options of all.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
GIVEN = [
    ROOT / "openmm_cgflow" / "data" / "alanine_dipeptide.pdb",
    *sorted((ROOT / "examples" / "models").glob("*.cgflow")),
    ROOT / "tests" / "data" / "butane.prmtop",
    ROOT / "tests" / "data" / "butane.inpcrd",
]
COMMAND = "openmm-cgflow"
_FENCE = re.compile(r"^```(\w*)\s*$")
_NOT_RUN = re.compile(r"^<!-- not run: .+ -->\s*$")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        language: such as `python` or `bash`.
        first: index of its first line in the page.
        lines: of it.
        run: whether it is to be run.
    """

    language: str
    first: int
    lines: list[str]
    run: bool


def blocks(text: str) -> list[Block]:
    r"""The blocks of a page that name a language, in their order.

    Example:
        >>> blocks("Words.\n```python\nprint(1)\n```\n")
        [Block(language='python', first=2, lines=['print(1)'], run=True)]
    """
    found: list[Block] = []
    inside: Block | None = None
    lines = text.splitlines()
    for number, line in enumerate(lines):
        fence = _FENCE.match(line)
        if inside is not None:
            if fence and not fence[1]:
                found += [inside] if inside.language else []
                inside = None
            else:
                inside.lines.append(line)
        elif fence:
            above = lines[number - 1] if number else ""
            inside = Block(fence[1], number + 1, [], not _NOT_RUN.match(above))
    return found


def commands(text: str) -> list[list[str]]:
    r"""The `openmm-cgflow` lines of a page, each as the words of its command line.

    Example:
        >>> commands("```bash\nopenmm-cgflow audit A.cgflow  # what it does\n```")
        [['openmm-cgflow', 'audit', 'A.cgflow']]
    """
    shell = [block for block in blocks(text) if block.language == "bash"]
    return [words for block in shell for line in block.lines if (words := _command(line))]


def _command(line: str) -> list[str] | None:
    """The words of a line with the command; what comes after `&&` counts."""
    for part in line.split("&&"):
        words = shlex.split(part, comments=True)
        if words and words[0] == COMMAND:
            return words
    return None


def script(text: str) -> str:
    r"""What is run of a page; each line is where it is in the page, so that a traceback names it.

    Example:
        >>> script("# Title\n```python\nprint(1)\n```").split("\n")[1:]
        ['', 'print(1)', '']
    """
    made = [""] * len(text.splitlines())
    for block in blocks(text):
        for number, line in enumerate(block.lines, block.first):
            if block.run and block.language == "python":
                made[number] = line
            elif block.run and block.language == "bash" and (words := _command(line)) and "&&" not in line:
                made[number] = f"subprocess.run([sys.executable, '-m', 'openmm_cgflow', *{words[1:]!r}], check=True)"
    made[0] = "import subprocess, sys"  # where every page has its title
    return "\n".join(made)


def run(page: Path) -> float:
    """Run a page; returns the CPU time that it took, seconds, 0 if it shows nothing to run.

    Raises:
        subprocess.CalledProcessError: if it fails.
    """
    made = script(page.read_text(encoding="utf-8"))
    if not made.split("\n", 1)[1].strip():
        return 0.0
    before = os.times()
    with tempfile.TemporaryDirectory() as folder:
        for path in GIVEN:
            shutil.copy(path, folder)
        path = Path(folder) / f"{page.stem}.md.py"
        path.write_text(made, encoding="utf-8")
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
        subprocess.run([sys.executable, path.name], cwd=folder, env=environment, check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    """Run the pages, and say which of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path, default=PAGES)
    failed = []
    for page in parser.parse_args().pages:
        print(f"--- {page.name}", flush=True)
        try:
            seconds = run(page)
        except subprocess.CalledProcessError:
            failed.append(page.name)
        else:
            print(f"--- {page.name}: {f'{seconds:.0f} s of CPU time' if seconds else 'nothing to run'}", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
