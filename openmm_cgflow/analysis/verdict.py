"""What was measured beside what is known."""

import json
import sys
from pathlib import Path

__all__ = ["judge"]


def judge(rows: list[tuple[str, float, float, float | None]], file: Path | None, **more: object) -> None:
    """Print a table of figures beside their exact values; end the program with exit code 1 where one falls short.

    For scripts that check a sampler on a target whose answers are known.

    Arguments:
        rows: name, measured and exact value, and how far apart they may be; None where it is to be at least the exact.
        file: for the figures, as JSON.
        more: what else is written there.

    Raises:
        SystemExit: where a figure falls short, after everything was printed and written.

    Example:
        >>> judge([("mean", 1.02, 1.0, 0.05), ("ESS", 0.98, 0.95, None)], None)
                                              measured       exact       off   allowed
        mean                                    1.0200      1.0000    0.0200    0.0500
        ESS                                     0.9800                                >= 0.95
    """
    figures, short = dict(more), []
    print(f"{'':34s}{'measured':>12s}{'exact':>12s}{'off':>10s}{'allowed':>10s}")
    for name, measured, exact, allowed in rows:
        off = abs(measured - exact)
        fine = measured >= exact if allowed is None else off <= allowed
        figures |= {name: measured} if allowed is None else {name: measured, f"{name}, off by": off}
        text = f"{'':32s}>= {exact:.4g}" if allowed is None else f"{exact:12.4f}{off:10.4f}{allowed:10.4f}"
        print(f"{name:34s}{measured:12.4f}{text}{'' if fine else '   falls short'}")
        short += [] if fine else [name]
    if file is not None:
        file.write_text(json.dumps(figures, indent=1) + "\n")
    if short:
        sys.exit(f"falls short: {', '.join(short)}")
