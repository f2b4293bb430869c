"""Build, test, solve and install the conda package without any channel but one made here.

    python conda-recipe/check.py            # in an environment with `pip install -e ".[test,package]"`

Every distribution that the package needs and that is installed here becomes a conda package of links to its files, with
the requirements that it states itself. From that channel rattler-build renders, builds and tests the recipe, and the
result is solved and installed into a new prefix, where the command runs. A dependency that was forgotten in the recipe,
a range that nothing meets, or an entry point that is missing ends it with exit code 1.

What this cannot show is that conda-forge itself has packages that go together: see `README.md` beside it.
"""

import asyncio
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path, PurePosixPath

import rattler
import rattler_build
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rattler.index import index_fs

HERE = Path(__file__).resolve().parent
CONDA_NAMES = {"torch": "pytorch", "openmmtorch": "openmm-torch", "matplotlib": "matplotlib-base"}
"""Of packages that conda calls otherwise than PyPI."""

BUILD = ("pip", "setuptools")
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
SITE_PACKAGES = PurePosixPath("lib", f"python{PYTHON}", "site-packages")


def conda_name(name: str) -> str:
    """What conda calls a distribution of PyPI."""
    return CONDA_NAMES.get(canonicalize_name(name), canonicalize_name(name))


def needed() -> dict[str, Distribution]:
    """The distributions that the package and its build need, by their names on PyPI."""
    found: dict[str, Distribution] = {}
    waiting = [Requirement(name) for name in ("openmm_cgflow[torchforce]", *BUILD)]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        first = name not in found
        found.setdefault(name, distribution(name))
        if first or requirement.extras:
            waiting += required(found[name], requirement.extras)
    del found["openmm-cgflow"]
    return found


def required(of: Distribution, extras: set[str] | frozenset[str] = frozenset()) -> list[Requirement]:
    """What a distribution says that it needs here."""

    def holds(stated: Requirement) -> bool:
        return not stated.marker or any(stated.marker.evaluate({"extra": extra}) for extra in ("", *extras))

    return [each for each in map(Requirement, of.requires or ()) if holds(each)]


def tops(of: Distribution) -> set[PurePosixPath]:
    """Files and folders in site-packages that are a distribution's own: no folder that it shares with another."""
    found = set()
    for file in of.files or ():
        parts = PurePosixPath(file).parts
        if parts[0] == ".." or "__pycache__" in parts:
            continue
        own = next((n for n in range(1, len(parts) + 1) if owners()[parts[:n]] < 2), len(parts))
        found.add(PurePosixPath(*parts[:own]))
    return found


_OWNERS: Counter[tuple[str, ...]] = Counter()


def owners() -> Counter[tuple[str, ...]]:
    """How many distributions have files below each folder of site-packages."""
    if not _OWNERS:
        for each in distributions():
            files = (PurePosixPath(file).parts for file in each.files or ())
            _OWNERS.update({parts[:n] for parts in files for n in range(1, len(parts) + 1)})
    return _OWNERS


def make_python(channel: Path) -> None:
    """A package of this interpreter: a copy of the program, whose standard library stays where it is."""
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder)
        (files / "bin").mkdir()
        program = Path(sys.executable).resolve()
        shutil.copy(program, files / "bin" / f"python{PYTHON}")
        for name in ("python", "python3"):
            (files / "bin" / name).symlink_to(f"python{PYTHON}")
        (files / SITE_PACKAGES).mkdir(parents=True)
        (files / SITE_PACKAGES / "README.txt").write_text("Site packages of the prefix.\n", encoding="utf-8")
        (files / "pyvenv.cfg").write_text(
            f"home = {program.parent}\ninclude-system-site-packages = false\n", encoding="utf-8"
        )
        version = sysconfig.get_python_version() + f".{sys.version_info.micro}"
        assemble("python", version, files, [], channel)


def make_package(name: str, of: Distribution, channel: Path) -> None:
    """A package of links to a distribution's files, with the requirements that it states."""
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder)
        for top in tops(of):
            link = files / SITE_PACKAGES / top
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(Path(str(of.locate_file(top))).resolve())
        depends = [f"{conda_name(each.name)} {each.specifier}".strip() for each in required(of)]
        assemble(conda_name(name), of.version, files, [f"python {PYTHON}.*", *depends], channel)


def assemble(name: str, version: str, files: Path, depends: list[str], channel: Path) -> None:
    """Put a package of these files into the channel."""
    rattler_build.assemble_package(
        name,
        version.replace("-", "_"),
        str(rattler.Platform.current()),
        "0",
        channel / str(rattler.Platform.current()),
        files_dir=files,
        depends=depends,
        compression_level=1,
    )


async def install(channels: list[str], prefix: Path) -> None:
    """Solve for the package that was built, and install it with all it needs."""
    records = await rattler.solve(channels, ["openmm_cgflow"])
    await rattler.install(records, target_prefix=prefix, show_progress=False)


def failures(package: Path, channel: str) -> Iterator[str]:
    """What the recipe's own tests say where they fail."""
    results = rattler_build.Package.from_file(package).run_tests(channel=[channel])
    print(f"{len(results)} tests of the recipe: {sum(result.success for result in results)} passed")
    if not results:
        yield "the package holds no tests"
    for result in results:
        if not result.success:
            yield "\n".join(result.output)


def main() -> None:
    """Do all of it in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        channel, out, prefix = work / "channel", work / "out", work / "prefix"
        (channel / "noarch").mkdir(parents=True)
        packages = needed()
        make_python(channel)
        for name, of in packages.items():
            make_package(name, of, channel)
        asyncio.run(index_fs(channel))
        url = channel.as_uri()
        print(f"channel: {len(packages) + 1} packages")
        recipe = rattler_build.Stage0Recipe.from_file(HERE / "recipe.yaml")
        (variant,) = recipe.render()
        (package,) = variant.run_build(output_dir=out, channels=[url]).packages
        print(f"built {package.name}, {package.stat().st_size / 1e3:.0f} kB")
        wrong = list(failures(package, url))
        if wrong:
            sys.exit("\n".join(wrong))
        asyncio.run(install([out.as_uri(), url], prefix))
        command = [prefix / "bin" / "openmm-cgflow", "--version"]
        clean = {"PATH": os.defpath, "HOME": str(work)}
        done = subprocess.run(command, env=clean, check=True, capture_output=True, text=True)
        print("installed:", done.stdout.strip())


if __name__ == "__main__":
    main()
