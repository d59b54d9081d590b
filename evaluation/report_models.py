"""Model by model: where its texts lie, how far apart, and what its clusters are."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import chain
from typing import Any

from evaluation.report_heat import heat_figure
from evaluation.report_nuisance import nuisance_table, shaded
from evaluation.report_panels import Panel
from evaluation.report_scatter import legend, repeated_svg, scatter_svg, shapes_svg
from evaluation.report_style import kind_of
from evaluation.report_text import DASH, number, shortened, visible


def models_section(rows: Sequence[Mapping[str, Any]], panels: Mapping[str, Panel]) -> str:
    """The t-SNE planes side by side, then a fold a model; empty where there is nothing but the table to show."""
    cards = [_card(row, place, panels.get(row["name"])) for place, row in enumerate(rows)]
    folds = "".join(cards).replace("<details ", "<details open ", 1)
    if not folds:
        return ""
    return f'{_gallery(rows, panels)}<section id="each"><h2>Model by model</h2>\n{folds}</section>'


def _gallery(rows: Sequence[Mapping[str, Any]], panels: Mapping[str, Panel]) -> str:
    shown = [(place, row, panels[row["name"]]) for place, row in enumerate(rows) if row["name"] in panels]
    if not shown:
        return ""
    families = list(dict.fromkeys(chain.from_iterable(panel.labels for _, _, panel in shown)))
    same = all(tuple(dict.fromkeys(panel.labels)) == tuple(families) for _, _, panel in shown)
    drawn = "".join(
        f'<figure class="card {kind_of(row)}">'
        f"{scatter_svg(panel.tsne, panel, 't-SNE of ' + visible(row['name']), name=f't{place}')}"
        f"<figcaption><bdi>{escape(visible(row['name']))}</bdi></figcaption></figure>"
        for place, row, panel in shown
    )
    return (
        f'{shapes_svg()}<section id="planes"><h2>t-SNE of the paper suite</h2>\n'
        '<p class="soft">Distances between groups in these pictures say little; no number on this page is taken from '
        f"them.</p>\n{legend(families) if same else ''}"
        f'<div class="cards tight">{drawn}</div></section>\n'
    )


def _card(row: Mapping[str, Any], place: int, panel: Panel | None) -> str:
    """The fold of one model; empty for one with nothing but table columns."""
    name = visible(row["name"])
    parts = _planes(name, place, panel) if panel else []
    parts += [_confusion(row["confusion"])] if row.get("confusion") else []
    parts += [nuisance_table(row["nuisance"])] if row.get("nuisance") else []
    parts += [_families(row["silhouette_by_family"])] if row.get("silhouette_by_family") else []
    if facts := _facts(row):
        parts.append(f'<div class="card facts"><b>Chance and spread</b><ul>{"".join(facts)}</ul></div>')
    if not parts:
        return ""
    return (
        f'<details class="fold {kind_of(row)}"><summary><i class="key f-{row["family"]}"></i><bdi>{escape(name)}</bdi>'
        f"<small>silhouette {number(row['silhouette_true'], 3)}, KMeans {number(row['silhouette_kmeans'], 3)}</small>"
        f'</summary>\n{legend(panel.labels) if panel else ""}<div class="cards">{"".join(parts)}</div></details>\n'
    )


def _planes(name: str, place: int, panel: Panel) -> list[str]:
    first, second = (DASH if math.isnan(share) else f"{100 * share:.0f} %" for share in panel.pca_shares)
    principal = scatter_svg(panel.pca, panel, f"PCA of {name}", name=f"p{place}")
    return [
        f'<figure class="card"><figcaption><b>t-SNE</b></figcaption>{repeated_svg(f"t{place}", f"t-SNE of {name}")}</figure>',
        f'<figure class="card"><figcaption><b>PCA</b> axis 1 (→): {first} of the variance, axis 2 (↑): {second}'
        f"</figcaption>{principal}</figure>",
        heat_figure(panel, name),
    ]


def _confusion(confusion: Mapping[str, Any]) -> str:
    matrix = confusion["matrix"]
    width = len(matrix[0]) if matrix else 0
    head = "".join(f'<th scope="col" class="title">{cluster + 1}</th>' for cluster in range(width))
    body = "".join(
        f'<tr><th scope="row"><bdi>{escape(shortened(family, 40))}</bdi></th>'
        + "".join(shaded(count / max(sum(counts), 1), str(count)) for count in counts)
        + "</tr>"
        for family, counts in zip(confusion["families"], matrix, strict=True)
    )
    accuracy = number(confusion["accuracy"], 3)
    return (
        f'<figure class="card"><figcaption><b>Families × KMeans clusters</b> clusters in the order that matches best; '
        f'{accuracy} of the texts on the diagonal</figcaption><div class="inner"><table class="small"><thead><tr><td></td>'
        f"{head}</tr></thead><tbody>{body}</tbody></table></div></figure>"
    )


def _families(families: Mapping[str, Any]) -> str:
    """Bars from −1 to 1, in a table."""
    lines = []
    for family, value in families.items():
        if isinstance(value, str):
            continue
        low, width = (50.0, 0.0) if value is None else (min(50.0, 50 + 50 * value), 50 * abs(value))
        bar = (
            '<svg width="100%" height="12" aria-hidden="true"><line class="zero" x1="50%" x2="50%" y1="0" y2="12"/>'
            f'<rect class="plain" x="{low:.1f}%" y="1" width="{width:.1f}%" height="10"/></svg>'
        )
        lines.append(
            f'<tr><th scope="row"><bdi>{escape(shortened(family, 40))}</bdi></th><td class="bar-cell">{bar}</td>'
            f"<td>{number(value, 3)}</td></tr>"
        )
    return (
        '<figure class="card"><figcaption><b>Silhouette by family</b> from −1 to 1</figcaption><div class="inner">'
        f'<table class="small"><tbody>{"".join(lines)}</tbody></table></div></figure>'
    )


def _facts(row: Mapping[str, Any]) -> list[str]:
    """Chance, interval, jackknife and seeds, in words."""
    facts = []
    if interval := row.get("interval"):
        facts.append(
            f"95 % interval of the silhouette {_range(interval)}, from {interval.get('replicates', DASH)} suites of fresh "
            "windows"
        )
    elif row.get("interval_reason"):
        facts.append(f"no interval: {escape(visible(row['interval_reason']))}")
    if jackknife := row.get("jackknife"):
        facts.append(f"jackknife (a spread of this suite, not an interval): {_range(jackknife)}")
    for key, name in (("silhouette", "silhouette"), ("davies_bouldin", "Davies–Bouldin")):
        chance = (row.get("null_kmeans") or {}).get(key)
        if chance and chance["mean"] is not None:
            facts.append(
                f"KMeans {name} of a Gaussian cloud with the same spectrum: {number(chance['mean'], 3)} ± "
                f"{number(chance['sd'], 3)}; here p = {number(chance.get('p'), 3)}"
            )
        seeds = (row.get("kmeans_spread") or {}).get(key)
        if seeds and seeds["low"] is not None:
            facts.append(f"KMeans {name} over seeds: {_range(seeds)}, sd {number(seeds['sd'], 3)}")
    spread = row.get("kmeans_spread") or {}
    if {"seeds", "distinct"} <= set(spread):
        facts.append(f"{spread['distinct']} distinct results of KMeans over {spread['seeds']} seeds")
    return [f"<li>{fact}</li>" for fact in facts]


def _range(ends: Mapping[str, Any]) -> str:
    return f"{number(ends['low'], 3)} to {number(ends['high'], 3)}"
