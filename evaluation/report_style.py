"""The look of the HTML page: calm, readable in light and dark, on a phone and on a desk; no font or file is fetched."""

from collections.abc import Mapping
from typing import Any

FAMILY_COLOURS = {
    "encoder": "#4c78a8",
    "base": "#7a7f87",
    "lora": "#d1662a",
    "soup": "#2f9e77",
    "slerp": "#8a63c9",
    "control": "#b88a00",
    "baseline": "#a0a6ad",
    "published": "#c2558a",
}
# Okabe & Ito's colours, as in the PNG pictures; the last is the ink of the page.
_CLASSES = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#B8A800", "var(--ink)")

KINDS = {"measured": "Measured", "baseline": "Baselines", "published": "Published"}
"""Classes by which rows can be hidden, and their names on the page."""


def kind_of(row: Mapping[str, Any]) -> str:
    """Whether a row is a model of ours, a baseline, or a number of the paper.

    Example:
        >>> kind_of({"family": "published", "source": "published"})
        'published'
    """
    if row["source"] == "published":
        return "published"
    return "baseline" if row["family"] == "baseline" else "measured"


STYLE = """
:root { --ink: #1d2129; --soft: #5d6673; --line: #e3e6ea; --ground: #fafaf8; --card: #ffffff; --mark: #2457a6;
  --shade: #2457a6; --bad: #b3261e; color-scheme: light dark; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7ec; --soft: #9ca5b2; --line: #2c323b; --ground: #14171c; --card: #1b1f26; --mark: #8ab4f8;
    --shade: #5b8fe0; --bad: #ff9a90; }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
main { max-width: 1400px; margin: 0 auto; padding: 36px 28px 72px; }
h1 { font-size: 27px; line-height: 1.25; margin: 0 0 10px; letter-spacing: -.015em; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 0 0 12px; letter-spacing: -.01em; }
h3 { font-size: 14px; margin: 0 0 6px; }
section { margin-top: 52px; scroll-margin-top: 12px; }
p, ul { margin: 0 0 12px; max-width: 78ch; }
ul { padding-left: 20px; }
li { margin-bottom: 4px; }
header { border-bottom: 1px solid var(--line); padding-bottom: 14px; }
.context { display: flex; flex-wrap: wrap; gap: 4px 22px; margin: 0; color: var(--soft); font-size: 13.5px; }
.context div { display: flex; gap: 6px; min-width: 0; max-width: 100%; }
.context dt { overflow-wrap: anywhere; flex: none; max-width: 40%; }
.context dd { margin: 0; color: var(--ink); overflow-wrap: anywhere; min-width: 0; }
nav { display: flex; flex-wrap: wrap; align-items: center; gap: 4px 18px; margin-top: 16px; font-size: 13.5px; }
nav a { color: var(--mark); text-decoration: none; padding: 3px 0; }
nav a:hover { text-decoration: underline; }
#save { display: flex; flex-wrap: wrap; gap: 8px; margin-left: auto; }
#save button { font: inherit; color: var(--ink); background: var(--card); border: 1px solid var(--line);
  border-radius: 7px; padding: 4px 12px; cursor: pointer; }
#save button:hover { border-color: var(--mark); color: var(--mark); }
.soft, .notes, figcaption { color: var(--soft); font-size: 13.5px; }
figcaption b { color: var(--ink); margin-right: 4px; }
.notes { margin: 10px 0 0; padding: 0; list-style: none; max-width: none; columns: 2 420px; column-gap: 32px; }
.notes li { margin: 0; overflow-wrap: anywhere; }
.caveats { columns: 2 440px; column-gap: 40px; max-width: none; font-size: 14px; }
.caveats li { break-inside: avoid; }
.failed { border: 1px solid var(--bad); border-radius: 10px; padding: 10px 16px; margin-bottom: 14px;
  font-size: 14px; overflow-wrap: anywhere; }
.failed > b, .bad { color: var(--bad); font-style: normal; }
.failed ul { margin: 4px 0 0; max-width: none; }
.choice { display: flex; flex-wrap: wrap; gap: 6px 26px; margin-bottom: 12px; font-size: 13px; }
.choice fieldset { border: 0; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: 6px; align-items: center;
  min-width: 0; }
.choice legend { float: left; padding: 0; margin-right: 8px; color: var(--soft); line-height: 26px; }
.choice label { position: relative; cursor: pointer; }
.choice input { position: absolute; inset: 0; opacity: 0; margin: 0; cursor: pointer; width: 100%; height: 100%; }
.choice span { display: block; border: 1px solid var(--line); border-radius: 99px; padding: 2px 11px;
  color: var(--soft); background: var(--card); overflow-wrap: anywhere; }
.choice input:checked + span { border-color: var(--mark); color: var(--mark);
  background: color-mix(in srgb, var(--mark) 9%, var(--card)); }
.choice input:focus-visible + span { outline: 2px solid var(--mark); outline-offset: 2px; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: 13.5px;
  font-variant-numeric: tabular-nums; }
th, td { padding: 7px 9px; border-bottom: 1px solid var(--line); white-space: nowrap; }
tbody tr:last-child > * { border-bottom: 0; }
thead th { font-weight: 600; font-size: 12.5px; color: var(--soft); vertical-align: bottom; }
thead .group { text-align: left; color: var(--ink); padding-bottom: 0; border-bottom: 0; }
thead .title { text-align: right; white-space: normal; min-width: 58px; max-width: 150px; line-height: 1.3;
  overflow-wrap: break-word; }
.first { border-left: 1px solid var(--line); padding-left: 12px; }
td { text-align: right; }
td small { display: block; color: var(--soft); font-size: 11.5px; line-height: 1.3; }
td.text { text-align: left; white-space: normal; min-width: 170px; max-width: 40ch; color: var(--soft); font-size: 13px;
  overflow-wrap: anywhere; }
th.model { position: sticky; left: 0; z-index: 1; background: var(--card); text-align: left; font-weight: 600;
  padding-left: 24px;
  white-space: normal; min-width: 170px; max-width: 280px; overflow-wrap: anywhere;
  border-right: 1px solid var(--line); }
th.model + *, thead .title:first-child { border-left: 0; }
th.model small { display: block; font-weight: 400; color: var(--soft); font-size: 12.5px; }
th.model .key { position: absolute; left: 9px; top: 13px; margin: 0; }
.key { display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 7px; flex: none; }
tbody tr:hover > * { background: color-mix(in srgb, var(--mark) 7%, var(--card)); }
.none, .faint { color: var(--soft); }
sup { line-height: 0; font-size: 10px; margin-left: 1px; }
thead button { all: unset; cursor: pointer; }
thead button:hover, thead [aria-sort] { color: var(--mark); }
thead button:focus-visible { outline: 2px solid var(--mark); outline-offset: 3px; border-radius: 2px; }
[aria-sort=descending] button::after { content: " ▾"; }
[aria-sort=ascending] button::after { content: " ▴"; }
table.small { font-size: 13px; }
.fitting { width: fit-content; max-width: 100%; }
table.small th, table.small td { padding: 4px 7px; }
table.small thead .title { min-width: 0; font-size: 12px; }
table.small tbody th { text-align: left; font-weight: 500; white-space: normal; overflow-wrap: break-word; }
table.small th.model { padding-left: 12px; overflow-wrap: anywhere; }
.shade { background: color-mix(in srgb, var(--shade) calc(var(--depth) * .62), transparent); }
.inner { overflow-x: auto; padding: 0 8px 8px; }
.bar-cell { width: 46%; }
.read { columns: 3 300px; column-gap: 36px; font-size: 13.5px; }
.read > div { margin-bottom: 18px; }
.read dl { margin: 0; }
.read dt { font-weight: 600; margin-top: 6px; break-after: avoid; overflow-wrap: anywhere; }
.read dd { margin: 0; color: var(--soft); }
figure { margin: 0; min-width: 0; }
figure > figcaption { padding: 8px 2px 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow: hidden; min-width: 0; }
.card figcaption, figure.card > figcaption { padding: 9px 14px 8px; overflow-wrap: anywhere; }
.plot svg, .card > svg { display: block; width: 100%; height: auto; }
.plot { padding: 10px; }
.wide { max-width: 980px; }
.narrow { display: none; }
.keyed { columns: 2; column-gap: 18px; font-size: 12.5px; margin: 8px 0 2px; padding-left: 26px; }
.keyed li { margin: 0; overflow-wrap: anywhere; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; max-width: none; font-size: 13px; color: var(--soft); }
.legend span { display: flex; align-items: center; gap: 6px; min-width: 0; overflow-wrap: anywhere; }
.legend svg { flex: none; }
.swatch { display: inline-block; width: 20px; height: 10px; border-radius: 2px; background: var(--soft); flex: none; }
.swatch.found { opacity: .4; }
.swatch.hollow { background: none; border: 1.5px solid #c2558a; }
.swatch.band { background: color-mix(in srgb, var(--ink) 22%, transparent); border-right: 0; }
.swatch.gauss { width: 0; height: 13px; border-left: 2px dotted var(--ink); background: none; border-radius: 0; }
.swatch.whisk { height: 0; border-top: 1.6px solid var(--ink); background: none; border-radius: 0; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 560px), 1fr)); gap: 20px; }
.bars { padding-bottom: 8px; }
.bar { display: grid; grid-template-columns: minmax(84px, 31%) minmax(0, 1fr) 98px; gap: 0 10px; padding: 0 14px;
  align-items: center; font-size: 12.5px; }
.bar:not(.axis-row):hover { background: color-mix(in srgb, var(--mark) 7%, var(--card)); }
.bar svg { width: 100%; display: block; overflow: visible; }
.bar .who { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.bar .sums, .axis-row span { font-variant-numeric: tabular-nums; color: var(--soft); font-size: 11.5px;
  text-align: right; white-space: nowrap; }
.mark { stroke-width: 0; }
.mark.found { fill-opacity: .4; }
.published .mark { fill-opacity: 0; stroke: #c2558a; stroke-width: 1.4; }
.published .mark.found { stroke-opacity: .5; }
.published .who { font-style: italic; }
.band { fill: var(--ink); fill-opacity: .2; }
.chance { stroke: var(--ink); stroke-width: 1.2; }
.gauss { stroke: var(--ink); stroke-width: 2; stroke-dasharray: 2 2; }
.whisker { stroke: var(--ink); stroke-width: 1.2; }
.beyond { fill: var(--ink); font-size: 13px; text-anchor: end; font-weight: 700; }
.zero { stroke: var(--soft); stroke-width: 1; }
.plain { fill: var(--mark); fill-opacity: .7; }
.grid { stroke: var(--line); }
.tick, .axis { fill: var(--soft); font-size: 12px; }
.end { text-anchor: end; } .mid { text-anchor: middle; }
.name { fill: var(--ink); font-size: 12px; paint-order: stroke; stroke: var(--card); stroke-width: 4px;
  stroke-linejoin: round; unicode-bidi: isolate; }
.dot { stroke: var(--card); stroke-width: 1.5; fill-opacity: .88; }
.path { fill: none; stroke: var(--soft); stroke-dasharray: 5 5; stroke-width: 1.4; }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; background: none; }
.line.null { stroke-width: 1.1; stroke-dasharray: 3 4; stroke-opacity: .7; }
.lead { stroke: var(--soft); stroke-opacity: .45; stroke-width: .8; }
.curve { fill: none; stroke: var(--mark); stroke-width: 1.8; stroke-linejoin: round; }
.marks { position: absolute; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); gap: 18px;
  align-items: start; }
.cards.tight { grid-template-columns: repeat(auto-fill, minmax(min(47%, 190px), 1fr)); gap: 12px; }
.cards.tight figcaption { font-size: 12.5px; padding: 0 10px 8px; line-height: 1.35; }
.cards img { display: block; width: 100%; height: auto; }
.plane use { stroke: var(--card); stroke-width: .7; }
.map { display: flex; padding: 0 14px; gap: 8px; }
.map img { flex: 1; min-width: 0; aspect-ratio: 1; image-rendering: pixelated; border-radius: 3px; }
.sides-of { display: flex; flex-direction: column; font-size: 11.5px; color: var(--soft); text-align: right; }
.sides-of span { display: flex; align-items: center; justify-content: flex-end; min-height: 0; overflow: hidden; }
.scale { display: flex; align-items: center; gap: 8px; padding: 8px 14px 12px; margin: 0; font-size: 12px;
  color: var(--soft); }
.scale i { flex: 1; height: 8px; border-radius: 4px; }
.fold { border: 1px solid var(--line); border-radius: 10px; background: var(--card); margin-bottom: 8px; }
.fold > summary { padding: 9px 14px; cursor: pointer; font-weight: 600; font-size: 14px; overflow-wrap: anywhere; }
.fold > summary small { font-weight: 400; color: var(--soft); font-size: 12.5px; margin-left: 10px; }
.fold > .legend { padding: 2px 16px 0; }
.fold > .cards { padding: 6px 14px 14px; }
.facts { padding: 9px 14px; font-size: 13px; } .facts ul { margin: 4px 0 0; padding-left: 18px; }
@media (max-width: 720px) { .wide { display: none; } .narrow { display: block; } }
@media (max-width: 560px) {
  main { padding: 22px 14px 48px; }
  h1 { font-size: 22px; }
  section { margin-top: 40px; }
  th.model { min-width: 136px; max-width: 136px; font-size: 12.5px; line-height: 1.35; }
  .context { flex-direction: column; }
  #save { margin-left: 0; }
  .caveats { columns: 1; }
  .bar { grid-template-columns: minmax(0, 1fr) auto; padding: 0 10px; }
  .bar svg { grid-row: 2; grid-column: 1 / -1; margin-bottom: 3px; }
  .fold > .cards { padding: 6px 8px 8px; }
  .fold > summary small { display: block; margin-left: 0; }
}
@media print { .scroll { overflow: visible; border: 0; } .choice, nav { display: none; } }
"""
STYLE += "".join(
    f".f-{family} {{ fill: {colour}; background: {colour}; }}\n.s-{family} {{ stroke: {colour}; }}\n"
    for family, colour in FAMILY_COLOURS.items()
)
STYLE += "".join(f".c{place} {{ fill: {colour}; }}\n" for place, colour in enumerate(_CLASSES))
