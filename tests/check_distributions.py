"""Say what is wrong with a wheel and a source distribution: `python tests/check_distributions.py DIST`."""

import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
LARGEST = 1_000_000
"""Bytes of a wheel: code, and one PDB file."""


def main() -> None:
    """Exit with 1 if a file is missing, if there is one too many, or if the wheel is large."""
    (wheel,), (source,) = (list(Path(sys.argv[1]).glob(pattern)) for pattern in ("*.whl", "*.tar.gz"))
    package = ROOT / "openmm_cgflow"
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in package.rglob("*")
        if path.suffix == ".py" or path.name == "py.typed" or path.parent == package / "data"
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    with tarfile.open(source) as archive:
        told = {name.partition("/")[2] for name in archive.getnames()}
    wrong = [f"{wheel.name} lacks {name}" for name in sorted(wanted - held)]
    wrong += [f"{wheel.name} holds {name}" for name in sorted(held - wanted)]
    needed = wanted | {"LICENSE", "README.md", "pyproject.toml"}
    wrong += [f"{source.name} lacks {name}" for name in sorted(needed - told)]
    if wheel.stat().st_size > LARGEST:
        wrong.append(f"{wheel.name} has {wheel.stat().st_size:,} bytes, more than {LARGEST:,}")
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"{wheel.name}: {len(held)} files, {wheel.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
