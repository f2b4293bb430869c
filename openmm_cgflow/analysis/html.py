"""One HTML page with everything inside it: no other file, no network."""

import base64
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path

from openmm_cgflow.errors import InvalidInputError, ModelFileError

__all__ = ["page", "report_page"]

STYLE = """
body{font:16px/1.5 system-ui,"Segoe UI",Helvetica,Arial,sans-serif;color:#1f2937;max-width:1080px;margin:2rem auto;
padding:0 1rem}
h1{font-size:1.5rem;margin-bottom:.2rem}
h2{font-size:1.15rem;margin-top:2.2rem;border-bottom:1px solid #e5e7eb;padding-bottom:.3rem}
table{border-collapse:collapse;font-size:.92rem}
td,th{padding:.3rem 1.4rem .3rem 0;text-align:left;vertical-align:top;border-bottom:1px solid #f0f1f3;
overflow-wrap:anywhere}
th{font-weight:600;color:#374151}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
.verdict{padding:.6rem .9rem;border-left:4px solid #0072B2;background:#f3f7fb}
.verdict.bad{border-color:#D55E00;background:#fdf4ee}
.pictures{display:flex;flex-wrap:wrap;gap:1.6rem}
figure{margin:0;flex:1 1 400px;max-width:100%}
figure.wide{flex-basis:100%}
img{max-width:100%;height:auto}
figcaption{font-size:.88rem;color:#4b5563}
"""


@contextmanager
def report_page(folder: Path) -> Iterator[Path]:
    """Make the folder of a report, and give the path of its page.

    Raises:
        InvalidInputError: what is written inside cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder / "report.html"
    except (OSError, ModelFileError) as error:
        why = getattr(error, "strerror", None) or error
        raise InvalidInputError(
            f"cannot write the report into {folder} ({why}); free some space or choose another place."
        ) from error


def page(
    title: str,
    verdict: str,
    good: bool,
    rows: Sequence[tuple[str, str]],
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]],
    pictures: Sequence[tuple[Path, str, bool]],
    views: str = "",
) -> str:
    """A self-contained page.

    Arguments:
        title: heading.
        verdict: the sentence on top.
        good: whether that sentence is good news (its colour).
        rows: label and text of the summary table.
        tables: heading, column names and cells of further tables; the first column is text, the others numbers.
        pictures: PNG file, caption, and whether it takes the full width.
        views: HTML of structures, from `views_section`.

    Returns:
        HTML; every text is escaped and the pictures are inside.

    Raises:
        OSError: a picture cannot be read.
    """
    summary = "".join(f'<tr><th scope="row">{escape(k)}</th><td>{escape(v)}</td></tr>' for k, v in rows)
    figures = "".join(
        f'<figure class="{"wide" if wide else "half"}"><img alt="{escape(caption)}" '
        f'src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for path, caption, wide in pictures
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body>'
        f'<h1>{escape(title)}</h1><p class="verdict{"" if good else " bad"}">{escape(verdict)}</p>'
        f"<h2>Summary</h2><table>{summary}</table>{''.join(_table(*t) for t in tables)}{views}"
        f'<h2>Pictures</h2><div class="pictures">{figures}</div></body></html>\n'
    )


def _table(heading: str, columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th{' class=n' if k else ''}>{escape(c)}</th>" for k, c in enumerate(columns))
    body = "".join(
        "<tr>" + "".join(f"<td{' class=n' if k else ''}>{escape(c)}</td>" for k, c in enumerate(line)) + "</tr>"
        for line in cells
    )
    return f"<h2>{escape(heading)}</h2><table><tr>{head}</tr>{body}</table>"
