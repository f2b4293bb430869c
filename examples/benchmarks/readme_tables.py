"""The tables of README.md and docs/benchmarks.md, made from `figures.json`, which `all.py` measures.

    python examples/benchmarks/readme_tables.py            # rewrites the blocks of both
    python examples/benchmarks/readme_tables.py --check    # only says whether they are as the figures are

A block is what stands between `<!-- figures:NAME -->` and `<!-- end -->`. Each ends with the commit of the package and
the date of its figures. Where there are several seeds, the median stands with the least and the largest in brackets.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median, stdev

HERE = Path(__file__).resolve().parent
PAGES = [HERE.parents[1] / "README.md", HERE.parents[1] / "docs" / "benchmarks.md"]
FIGURES = HERE / "figures.json"
REFERENCE = HERE.parent / "references" / "aldp_obc1.json"
BLOCK = re.compile(r"(<!-- figures:(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
CITED = {"reverse KL at 300 K": ("2.56e8", 94.1), "FAB": ("2.13e8", 94.8), "TA-BG": ("1e8", 95.8), "CMT": ("1e8", 97.7)}
"""Energies and ESS (%) of arXiv 2510.18460, Table 1, means of four seeds."""

Entries = dict[str, dict]


def of(entries: Entries, group: str) -> list[dict]:
    """The figures of a job, or of all seeds of it."""
    return [
        entry["figures"] for name, entry in sorted(entries.items()) if name == group or name.startswith(f"{group}/")
    ]


def spread(values: list[float], form: str, unit: str = "") -> str:
    """The median, with the least and the largest if there are several."""
    if len(values) == 1:
        return f"{values[0]:{form}}{unit}"
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}}){unit}"


def scientific(value: float) -> str:
    """Two digits: 9.8e5."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def duration(seconds: float | None) -> str:
    """Seconds, minutes, hours or days in words."""
    if seconds is None:
        return "not measured"
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.0f} s"


def title_of(molecule: str) -> str:
    """`ALA` stands for the amino acid between caps."""
    return f"Ace-{molecule.capitalize()}-Nme" if molecule.isupper() else molecule


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]).replace(
        " --- ", "---"
    )


def origin(entries: Entries, *groups: str) -> str:
    """Of which commit, when and where the figures of these jobs were measured, and what else is to be said of them."""
    found: dict[tuple[str, str, str], list[str]] = {}
    notes, load = [], 0.0
    for name, entry in sorted(entries.items()):
        if any(name == group or name.startswith(f"{group}/") for group in groups):
            found.setdefault((entry["commit"], entry["date"], entry["machine"]), []).append(name)
            notes += [entry["note"]] if entry.get("note") and entry["note"] not in notes else []
            load = max(load, entry.get("load", 0.0))
    most, *others = sorted(found.items(), key=lambda item: -len(item[1]))
    text = "Measured at {}, {}, on {}".format(*most[0])
    for (commit, date, machine), names in others:
        which = ", ".join(names) if len(names) < 4 else f"{len(names)} others"
        text += f"; {which} at {commit}, {date}" + (f", on {machine}" if machine != most[0][2] else "")
    return " ".join([f"*{text}{f', load up to {load:.0f}' if load else ''}.", *notes]) + "*"


def headline(entries: Entries) -> str:
    """Three figures for a first look."""
    (moves,), (backmapped,) = (of(entries, group) for group in ("sampler", "backmapping"))
    trained = of(entries, "demo")
    ess, energies, seconds = (median(row[key] for row in trained) for key in ("ess", "evaluations", "seconds"))
    costs = {name: scientific(row["energies"]) for name, row in moves["costs"].items()}
    rows = [
        [
            f"`openmm-cgflow demo`: effective sample size, median of {len(trained)}",
            f"{100 * ess:.1f} %",
            f"{scientific(energies)} energies, {duration(seconds)}",
        ],
        [
            "its rare basin's population to 10 %: energies, training included",
            costs["FlowMonteCarlo"],
            f"parallel tempering {costs['parallel tempering']}, plain dynamics {costs['plain dynamics']}",
        ],
        [
            "backmapping: frames a second, with weights",
            f"{backmapped['frames_a_second']:,.0f}",
            f"chirality right in {backmapped['chirality']:.0f} %, "
            f"mean energy off by {backmapped['difference']:+.2f} ± {backmapped['error']:.2f} kJ/mol",
        ],
    ]
    return table(["alanine dipeptide, OBC1, 2 CPU cores", "", ""], rows)


def demo(entries: Entries) -> str:
    """`openmm-cgflow demo` beside published methods."""
    commands = {"demo-120": "demo --time 120", "demo-1e6": "demo --evaluations 1000000", "demo": "demo"}
    commands |= {"demo-3e6": "demo --evaluations 3000000"}
    rows = []
    for group, command in commands.items():
        seeds = of(entries, group)
        if seeds:
            rows.append(
                [
                    f"**openmm_cgflow**, `{command}`, {len(seeds)} {'seed' if len(seeds) == 1 else 'seeds'}",
                    scientific(median(f["evaluations"] for f in seeds)),
                    spread([100 * f["ess"] for f in seeds], ".1f", " %"),
                    spread([100 * f["ess_clipped"] for f in seeds if f["ess_clipped"]] or [float("nan")], ".1f", " %"),
                    spread([f["khat"] for f in seeds if f["khat"]] or [float("nan")], ".2f"),
                    duration(median(seconds) if (seconds := [f["seconds"] for f in seeds if f["seconds"]]) else None),
                ]
            )
    rows += [[name, energies, f"{ess} %", "", "", "cited"] for name, (energies, ess) in CITED.items()]
    head = ["method", "energy evaluations", "ESS", "clipped", "k-hat", "whole command, 2 cores"]
    return f"{table(head, rows)}\n\n{origin(entries, *commands)}".replace("nan %", "").replace("nan", "")


def quality(entries: Entries) -> str:
    """The two shipped models of alanine dipeptide on 100,000 samples."""
    rows = []
    for name, title in (("obc1", "OBC1"), ("vacuum", "vacuum")):
        (f,) = of(entries, f"quality/{name}")
        free = f["F"]
        ours, theirs = (f"{free[a]:.2f} ± {free[b]:.2f}" for a, b in (("value", "error"), ("reference", "its error")))
        rows.append(
            [
                title,
                f"{100 * f['ESS, unclipped']:.1f} %",
                f"{100 * f['ess_fast_given_slow']:.1f} %",
                f"{100 * f['ess_slow']:.1f} %",
                f"{100 * f['ess_within_alpha_L']:.0f} %",
                f"{ours}; reference {theirs}",
                f"{f['Ramachandran total variation']:.3f}; reference's halves {f['halves']:.3f}",
            ]
        )
    head = ["", "ESS", "of fast variables at given slow ones", "of slow variables alone", "within alpha_L/C7ax"]
    head += ["F(alpha_L/C7ax), kT", "Ramachandran total variation (24 x 24)"]
    return f"{table(head, rows)}\n\n{origin(entries, 'quality')}"


def populations(entries: Entries) -> str:
    """Basins of alanine dipeptide beside replica exchange."""
    reference = json.loads(REFERENCE.read_text())
    (figures,) = of(entries, "populations")
    rows = []
    for name, f in figures["basins"].items():
        theirs = (reference[f"{kind}_all_temperatures"][name] for kind in ("populations", "errors"))
        exchange = "{:.4f} ± {:.4f}".format(*theirs)
        rows.append([name, f"{f['population']:.4f} ± {f['error']:.4f}", exchange, f"{f['away']:+.1f} s.e."])
    head = ["basin", "flow, reweighted", "replica exchange", "difference"]
    return f"{table(head, rows)}\n\n{origin(entries, 'populations')}"


def molecules(entries: Entries) -> str:
    """The table of molecules, in two columns."""
    names = sorted({name.split("/")[1] for name in entries if name.startswith("molecules/")})
    names.sort(key=lambda name: (not name.isupper(), name))  # amino acids first
    cells = []
    for name in names:
        seeds = [row for rows in of(entries, f"molecules/{name}") for row in rows]
        slow = [row["slow"] for row in seeds]
        cells.append(
            [
                title_of(name),
                str(seeds[0]["atoms"]),
                " to ".join(str(count) for count in sorted({min(slow), max(slow)})),
                spread([100 * row["ess"] for row in seeds], ".1f"),
                spread([100 * row["ess_clipped"] for row in seeds], ".1f"),
                spread([row["khat"] for row in seeds], ".2f"),
            ]
        )
    half = -(-len(cells) // 2)
    rows = [cells[k] + [""] + (cells[half + k] if half + k < len(cells) else [""] * 6) for k in range(half)]
    head = ["molecule", "atoms", "slow", "ESS %", "clipped", "k-hat"]
    return f"{table([*head, '', *head], rows)}\n\n{origin(entries, 'molecules')}"


def known(entries: Entries) -> str:
    """Potentials with known answers."""
    titles = {
        "double_well": ("[double well](../examples/double_well.py), 2-D", "1, found", "log Z"),
        "gaussian_mixture": ("[Gaussian mixture](../examples/gaussian_mixture.py), 20-D", "10, found", "log Z"),
        "many_well": ("[ManyWell-32](../examples/many_well.py)", "16, named", "log Z (2,000 samples)"),
        "gmm40": ("[GMM-40](../examples/gmm40.py), 2-D", "2, all", "log Z"),
    }
    rows = []
    for name, (title, slow, log_z) in titles.items():
        seeds = of(entries, name)
        taken = (median(f[what] for f in seeds) for what in ("evaluations", "seconds"))
        rows.append(
            [
                title,
                slow,
                spread([100 * f["ESS"] for f in seeds], ".1f", " %"),
                spread([f[f"{log_z}, off by"] for f in seeds], ".4f"),
                "; ".join(f["modes"] for f in seeds),
                ", ".join(form(value) for form, value in zip((scientific, duration), taken, strict=True)),
            ]
        )
    head = ["target", "slow variables", "ESS", "log Z off by", "modes", "evaluations, time"]
    return f"{table(head, rows)}\n\n{origin(entries, *titles)}"


def sampler(entries: Entries) -> str:
    """`FlowMonteCarlo`: populations, and what the rare basin's costs by several methods."""
    (figures,) = of(entries, "sampler")
    reference = json.loads(REFERENCE.read_text())
    shares, errors = (reference[f"{kind}_all_temperatures"] for kind in ("populations", "errors"))
    rows = [["replica exchange", "", *(f"{shares[basin]:.4f} ± {errors[basin]:.4f}" for basin in shares)]]
    for key, title in (("good", "shipped flow"), ("bad", "a bad flow: its slow density never trained")):
        f = figures[key]
        found = [f"{b['population']:.4f} ± {b['error']:.4f}" for b in f["basins"].values()]
        rows.append([title, f"{100 * f['acceptance']:.1f} %", *found])
    costs = []
    least = figures["costs"]["reweighted samples"]["energies"]
    for name, row in figures["costs"].items():
        training = scientific(row["training"]) if row["training"] else "none"
        costs.append(
            [name, scientific(row["energies"]), training, f"{row['energies'] / least:,.1f}", duration(row["seconds"])]
        )
    head = ["for alpha_L to 10 %", "energies", "of them training", "relative", "wall time, one thread"]
    return (
        f"{table(['', 'acceptance', *shares], rows)}\n\n{table(head, costs)}\n\n"
        f"Plain dynamics stays in alpha_L for {figures['dynamics']['stay_ps']:.0f} ps on average "
        f"({figures['dynamics']['left']} of {figures['dynamics']['n']} walkers left).\n\n{origin(entries, 'sampler')}"
    )


def forces(entries: Entries) -> str:
    """Microseconds a step of dynamics with each backend."""
    (figures,) = of(entries, "forces")
    found = figures["microseconds"]
    backends = ("tabulated", "torch", "python", "compiled")

    def cell(label: str) -> str:
        return f"{found[label]:,.0f}" if label in found else ""

    rows = []
    for name, platform in (("vacuum", "Reference"), ("OBC1", "CPU")):
        cells = [cell(f"+ createForce('{backend}') {name}") for backend in backends]
        rows.append([f"all atoms, {name} ({platform} platform)", cell(f"all atoms, {name} ({platform})"), *cells])
    beads = [cell(f"beads, createCGSystem('{backend}') (Reference)") for backend in backends]
    rows.append(["the five beads of `createCGSystem`", "", *beads])
    head = ["", "plain", '+ `createForce("tabulated")`', '+ `"torch"`', '+ `"python"`', '+ `"compiled"`']
    return f"{table(head, rows)}\n\n{origin(entries, 'forces')}"


def backmapping(entries: Entries) -> str:
    """Speed and energies of backmapping."""
    (f,) = of(entries, "backmapping")
    rows = [
        ["frames a second, with densities and weights", f"{f['frames_a_second']:,.0f}"],
        ["and with all checks", f"{f['with_checks']:,.0f}"],
        ["chirality right", f"{f['chirality']:.0f} %"],
        ["largest deviation of a bead, nm", f"{f['bead_off_by']:.0e}" if f["bead_off_by"] else "0"],
        ["ESS within a frame", f"{f['ess']:.1f} %"],
        ["mean energy beside the reference, kJ/mol", f"{f['difference']:+.2f} ± {f['error']:.2f}"],
        ["two-sample test of the energies", f"p = {f['p']:.2f}, {f['n']:,} frames"],
        ["shift it finds in 95 of 100 cases", f"{f['shift']:.1f} kJ/mol ({f['shift_in_sd']:.2f} standard deviations)"],
    ]
    return f"{table(['', ''], rows)}\n\n{origin(entries, 'backmapping')}"


def explicit_water(entries: Entries) -> str:
    """A flow's bias in explicit water, beside other methods."""
    (figures,) = of(entries, "explicit_water")

    def cell(values: list[float]) -> str:
        return f"{mean(values):.2f}" + (f" ± {stdev(values) / len(values) ** 0.5:.2f}" if len(values) > 1 else "")

    rows = [
        [
            method,
            f"{len(f['picoseconds'])} x {mean(f['picoseconds']) / 1000:g} ns",
            cell(f["errors"]),
            cell(f["errors_where_visited"]),
            cell(f["changes_per_ns"]),
        ]
        for method, f in figures["methods"].items()
    ]
    head = ["", "runs", "error of the free energy over phi, kJ/mol", "in the bins visited", "changes of phi per ns"]
    return f"{table(head, rows)}\n\n{origin(entries, 'explicit_water')}"


def cgback(entries: Entries) -> str:
    """Backmapping beside cgback."""
    (figures,) = of(entries, "cgback")
    titles = {"dynamics": "the frames themselves", "ours": "ours, one structure"}
    titles |= {f"ours, best of {n}": f"ours, `-n {n} --resample`" for n in (8, 64)}
    rows = []
    for row in figures["rows"]:
        speed = row["frames_a_second"]
        frames = row["name"] == "dynamics"
        rows.append(
            [
                titles.get(row["name"], row["name"]),
                f"{speed:.1f}" if speed else "",
                "" if frames else f"{row['beads_off_by']:.0e}" if row["beads_off_by"] else "0",
                f"{100 * row['clashes']:.0f} %",
                f"{row['bonds_off_by']:.4f}",
                f"{row['energy_median']:.1f}",
                f"{row['energy_90']:.1f}",
            ]
        )
    head = ["", "frames/s", "beads off by, nm", "clashes", "bonds off by, nm", "energy, median", "energy, 90 %"]
    return f"{table(head, rows)}\n\n{origin(entries, 'cgback')}"


def energies(entries: Entries) -> str:
    """Microseconds an evaluation, beside OpenMM."""
    (figures,) = of(entries, "energies")
    rows = []
    for name, title in (("vacuum", "vacuum"), ("obc1", "OBC1")):
        f = figures[name]
        times = f["microseconds"]
        openmm = [f"{times[f'OpenMM {p}']['fastest']:,.0f}" for p in ("Reference", "CPU")]
        ours = [f"{times[f'TorchPotential, {form}']['median']:.1f}" for form in ("eager", "compiled")]
        rows.append([title, *openmm, *ours, f"{f['ratio']:.1f}x"])
    head = ["", "OpenMM Reference, fastest round", "OpenMM CPU, fastest round", "ours, eager, median round"]
    head += ["ours, compiled, median round", "compiled against the faster OpenMM"]
    return f"{table(head, rows)}\n\n{origin(entries, 'energies')}"


def throughput(entries: Entries) -> str:
    """Energies a second of the refinement, beside an earlier commit."""
    titles = {"aldp_obc1": "alanine dipeptide, OBC1", "ALA5": "Ace-Ala5-Nme, OBC2"}
    rows, earlier = [], ""
    for figures in of(entries, "throughput"):
        for name, f in figures.items():
            earlier, now = f["energies_per_cpu_second"]
            rows.append(
                [
                    titles[name.split("/")[0]],
                    str(f["threads"]),
                    *(f"{f['energies_per_second'][code]:,.0f}" for code in (earlier, now)),
                    f"{f['ratio']:.2f} ({f['ratio_low']:.2f} to {f['ratio_high']:.2f})",
                    f"{f['ratio_wall']:.2f}",
                ]
            )
    head = ["", "threads", f"energies a second at {earlier}", "now", "ratio by CPU time, median", "by wall time"]
    return f"{table(head, rows)}\n\n{origin(entries, 'throughput')}"


def gpu(entries: Entries) -> str:
    """Trainings on a GPU, beside those on two cores."""
    (figures,) = of(entries, "gpu")
    rows = []
    for name, f in figures.items():
        if "ess" not in f:
            continue
        if name.startswith("demo"):
            title, on_cpu = "alanine dipeptide, OBC1", of(entries, "demo")
        else:
            title = title_of(name)
            on_cpu = [row for rows in of(entries, f"molecules/{name}") for row in rows]
        rows.append(
            [
                title,
                f"{f['batch'] or 1024:,}",
                scientific(f["evaluations"]),
                f"{f['training_seconds']:.0f} s",
                f"{100 * f['ess']:.1f} %",
                f"{100 * f['ess_clipped']:.1f} %",
                f"{f['khat']:.2f}",
                f"{f['samples_seconds']:.2f} s",
                spread([100 * row["ess"] for row in on_cpu], ".1f", " %"),
            ]
        )
    head = ["", "rows a step", "energies", "training", "ESS", "clipped", "k-hat", "100,000 samples"]
    both = figures["energies"]
    return (
        f"{table([*head, 'ESS on 2 CPU cores (tables above)'], rows)}\n\n"
        f"An energy with its gradient, OBC1: {both['ours_us']:.2f} us in a batch of {both['batch']:,}, compiled; "
        f"{both['openmm_cuda_us']:.0f} us by an OpenMM Context on the same GPU, one structure after the other.\n\n"
        f"{origin(entries, 'gpu')}"
    )


RENDERERS: dict[str, Callable[[Entries], str]] = {
    function.__name__: function
    for function in (
        headline,
        demo,
        quality,
        populations,
        molecules,
        known,
        sampler,
        forces,
        backmapping,
        explicit_water,
        cgback,
        energies,
        throughput,
        gpu,
    )
}


def filled(text: str, entries: Entries) -> str:
    """The text with every block made anew."""
    return BLOCK.sub(lambda match: f"{match[1]}{RENDERERS[match[2]](entries)}\n{match[3]}", text)


def main() -> None:
    """Rewrite the pages, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit with 1 if a block is not what the figures give")
    parser.add_argument("--figures", type=Path, default=FIGURES)
    parser.add_argument("--pages", type=Path, nargs="+", default=PAGES)
    options = parser.parse_args()
    entries = json.loads(options.figures.read_text())
    for page in options.pages:
        text = page.read_text(encoding="utf-8")
        made = filled(text, entries)
        if options.check and made != text:
            sys.exit(f"{page} is not what {options.figures} gives: run this without --check")
        page.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
