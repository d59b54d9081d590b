"""Every number of the page, inside the page: the report as JSON and as CSV, for two buttons that save them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.report_csv import csv_report
from evaluation.report_panels import Panel


def data_script(report: Mapping[str, Any], panels: Mapping[str, Panel]) -> str:
    """A script element that is no program: the report, with the coordinates and distances that are drawn, and its CSV.

    Example:
        >>> "</script><!--" in data_script({"rows": [], "context": {"note": "</script><!--"}}, {})
        False
    """
    rows: Sequence[Mapping[str, Any]] = report["rows"]
    content: dict[str, Any] = dict(report)
    if panels:
        content["panels"] = {name: panel.listed() for name, panel in panels.items()}
    text = json.dumps({"report": content, "csv": csv_report(rows)}, separators=(",", ":"), allow_nan=False)
    # Inside a script element neither its end tag nor the start of a comment may occur, whatever a label holds.
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return f'<script type="application/json" id="data">{text}</script>'
