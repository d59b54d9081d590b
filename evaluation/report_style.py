"""The look of the HTML page: calm, readable in light and dark, on a phone and on a desk; no font or file is fetched."""

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

STYLE = """
:root { --ink: #1d2129; --soft: #626a76; --line: #e3e6ea; --ground: #fbfbfa; --card: #ffffff; --mark: #2457a6;
  color-scheme: light dark; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7ec; --soft: #99a2af; --line: #2c323b; --ground: #14171c; --card: #1b1f26; --mark: #8ab4f8; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
main { max-width: 1360px; margin: 0 auto; padding: 36px 24px 64px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 10px; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 44px 0 10px; }
p, ul { margin: 0 0 12px; max-width: 74ch; }
ul { padding-left: 20px; }
li { margin-bottom: 4px; }
.context { display: flex; flex-wrap: wrap; gap: 4px 22px; margin: 0; color: var(--soft); font-size: 13.5px; }
.context div { display: flex; gap: 6px; min-width: 0; }
.context dd { margin: 0; color: var(--ink); overflow-wrap: anywhere; min-width: 0; }
.soft, .notes, figcaption { color: var(--soft); font-size: 13.5px; }
.notes { margin: 10px 0 0; padding: 0; list-style: none; }
.notes li { margin: 0; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: 13.5px;
  font-variant-numeric: tabular-nums; }
th, td { padding: 8px 9px; border-bottom: 1px solid var(--line); white-space: nowrap; }
tbody tr:last-child > * { border-bottom: 0; }
thead th { font-weight: 600; font-size: 12.5px; color: var(--soft); vertical-align: bottom; }
thead .group { text-align: left; color: var(--ink); padding-bottom: 0; border-bottom: 0; }
thead .title { text-align: right; white-space: normal; min-width: 58px; line-height: 1.3; }
.first { border-left: 1px solid var(--line); padding-left: 12px; }
td { text-align: right; }
td.text { text-align: left; white-space: normal; min-width: 170px; max-width: 40ch; color: var(--soft); font-size: 13px;
  overflow-wrap: anywhere; }
th.model { position: sticky; left: 0; z-index: 1; background: var(--card); text-align: left; font-weight: 600;
  white-space: normal; min-width: 130px; max-width: 280px; overflow-wrap: anywhere;
  border-right: 1px solid var(--line); }
th.model + *, thead .title:first-child { border-left: 0; }
th.model small { display: block; font-weight: 400; color: var(--soft); font-size: 12.5px; }
.key { display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 7px; }
tbody tr:hover > * { background: color-mix(in srgb, var(--mark) 7%, var(--card)); }
.none, .faint { color: var(--soft); }
sup { line-height: 0; font-size: 10px; margin-left: 1px; }
thead button { all: unset; cursor: pointer; }
thead button:hover, thead [aria-sort] { color: var(--mark); }
thead button:focus-visible { outline: 2px solid var(--mark); outline-offset: 3px; border-radius: 2px; }
[aria-sort=descending] button::after { content: " ▾"; }
[aria-sort=ascending] button::after { content: " ▴"; }
.sides { display: grid; grid-template-columns: minmax(0, 1.75fr) minmax(0, 1fr); gap: 12px 36px; align-items: start; }
dl.read { margin: 0; font-size: 13.5px; }
dl.read dt { font-weight: 600; margin-top: 9px; }
dl.read dd { margin: 0; color: var(--soft); }
figure { margin: 0; }
svg { display: block; width: 100%; height: auto; }
.plot svg { min-width: 600px; padding: 8px; }
.grid { stroke: var(--line); }
.tick, .axis { fill: var(--soft); font-size: 12px; }
.end { text-anchor: end; } .mid { text-anchor: middle; }
.name { fill: var(--ink); font-size: 12px; paint-order: stroke; stroke: var(--card); stroke-width: 4px;
  stroke-linejoin: round; }
.dot { stroke: var(--card); stroke-width: 1.5; fill-opacity: .88; }
.path { fill: none; stroke: var(--soft); stroke-dasharray: 5 5; stroke-width: 1.4; }
.curve { fill: none; stroke: var(--mark); stroke-width: 1.8; stroke-linejoin: round; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); gap: 18px; }
.cards > figure { border: 1px solid var(--line); border-radius: 10px; overflow: hidden; background: var(--card); }
.cards img { display: block; width: 100%; height: auto; background: #ffffff; }
.cards figcaption { padding: 8px 14px 10px; overflow-wrap: anywhere; }
@media (max-width: 860px) { .sides { grid-template-columns: minmax(0, 1fr); } }
@media (max-width: 560px) {
  main { padding: 22px 14px 48px; }
  h1 { font-size: 21px; }
  th, td { padding: 7px 9px; }
  th.model { min-width: 128px; max-width: 142px; font-size: 13px; }
  .context { flex-direction: column; }
}
@media print { .scroll { overflow: visible; border: 0; } }
""" + "".join(f".f-{family} {{ fill: {colour}; background: {colour}; }}\n" for family, colour in FAMILY_COLOURS.items())

SCRIPT = """
for (const head of document.querySelectorAll("th[data-column]")) {
  const button = document.createElement("button");
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener("click", () => {
    const body = head.closest("table").tBodies[0], column = Number(head.dataset.column);
    const first = head.dataset.first, flip = { ascending: "descending", descending: "ascending" };
    const order = head.ariaSort ? flip[head.ariaSort] : first, sign = order === "ascending" ? 1 : -1;
    document.querySelectorAll("th[aria-sort]").forEach(other => other.removeAttribute("aria-sort"));
    head.ariaSort = order;
    const key = row => row.cells[column].dataset.value;
    const compare = (a, b) => column === 0 ? a.localeCompare(b) : a - b;
    [...body.rows].sort((a, b) => {
      const x = key(a), y = key(b);
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
      return sign * compare(x, y);
    }).forEach(row => body.append(row));
  });
}
"""
