"""The program of the HTML page: it sorts the table and saves the numbers, and the page is complete without it."""

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
const content = JSON.parse(document.getElementById("data").textContent);
const files = {
  "report.csv": ["text/csv", () => content.csv],
  "report.json": ["application/json", () => JSON.stringify(content.report, null, 2)],
};
for (const [name, [type, text]] of Object.entries(files)) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Save " + name;
  button.addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text()], { type: type + ";charset=utf-8" }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
  document.getElementById("save").append(button);
}
"""
