"""What the clusters of the models follow, beside or instead of the families."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from evaluation.report_text import breakable, number, visible

_COLUMNS = {
    "ami_clusters": "clusters, AMI",
    "share_clusters": "clusters, share",
    "share_axis1": "axis 1, share",
    "share_axis2": "axis 2, share",
    "ami_family": "families, AMI",
}
"""Keys of a nuisance and their headings; other numbers follow under their own names."""


def nuisance_section(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a model, one column a nuisance: AMI with its KMeans clusters; empty where nothing was measured."""
    known = [row for row in rows if row.get("nuisance")]
    names = list(dict.fromkeys(entry["name"] for row in known for entry in row["nuisance"]))
    if not names:
        return ""
    head = "".join(f'<th scope="col" class="title">{escape(visible(name))}</th>' for name in names)
    body = "".join(
        f'<tr><th class="model" scope="row"><bdi>{breakable(row["name"])}</bdi></th>{_follows(row, names)}</tr>'
        for row in known
    )
    return (
        '<section id="clusters"><h2>What the clusters follow</h2>\n'
        '<p class="soft">Adjusted mutual information of the KMeans clusters with the families and with other properties '
        "of the texts: 1 is the same partition, 0 is chance. Where another column is larger than “family”, the clusters "
        "are about that.</p>\n"
        f'<div class="scroll fitting" tabindex="0"><table class="small"><thead><tr><th class="model" scope="col">Model</th>{head}'
        f"</tr></thead><tbody>{body}</tbody></table></div></section>"
    )


def nuisance_table(entries: Sequence[Mapping[str, Any]]) -> str:
    """All numbers of one model's nuisances."""
    found = [key for entry in entries for key, value in entry.items() if not isinstance(value, str)]
    keys = [*(key for key in _COLUMNS if key in found), *(key for key in dict.fromkeys(found) if key not in _COLUMNS)]
    head = "".join(f'<th scope="col" class="title">{escape(_COLUMNS.get(key, key))}</th>' for key in keys)
    body = "".join(
        f'<tr><th scope="row">{escape(visible(entry["name"]))}</th>{"".join(_cell(entry, key) for key in keys)}</tr>'
        for entry in entries
    )
    return (
        '<figure class="card"><figcaption><b>Nuisances</b> what each property shares with the KMeans '
        "clusters, the principal axes and the families</figcaption>"
        f'<div class="inner"><table class="small"><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table>'
        "</div></figure>"
    )


def shaded(value: float, text: str) -> str:
    """A table cell whose ground says how much of 1 the value is."""
    depth = round(100 * min(max(value, 0.0), 1.0))
    return f'<td class="shade" style="--depth:{depth}%">{text}</td>'


def _follows(row: Mapping[str, Any], names: Sequence[str]) -> str:
    entries = {entry["name"]: entry for entry in row["nuisance"]}
    return "".join(_cell(entries.get(name, {}), "ami_clusters") for name in names)


def _cell(entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key)
    if value is None:
        reason = escape(visible(entry.get(f"{key}_reason", "not measured")))
        return f'<td class="none" title="{reason}">–</td>'
    return shaded(float(value), number(float(value), 2))
