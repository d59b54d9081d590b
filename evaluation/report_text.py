"""How text and numbers from outside are shown: on one line, visibly, with a true minus sign."""

import re
import unicodedata
from html import escape

DASH = "–"
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def number(value: int | float | None, decimals: int) -> str:
    """A number for a table: fixed decimals, a true minus sign, no "−0.000"; a dash for None.

    Example:
        >>> number(-0.0923, 3), number(-0.0001, 3), number(None, 3)
        ('−0.092', '0.000', '–')
    """
    if value is None:
        return DASH
    text = f"{value:.{decimals}f}"
    return f"{0.0:.{decimals}f}" if float(text) == 0 else text.replace("-", "−")


def one_line(text: object) -> str:
    """Text for a cell: line breaks, tabs and runs of blanks become one blank.

    Control characters, and the marks that turn the direction of the text after them, become a visible box; text that
    is written from right to left by itself stays as it is.

    Example:
        >>> one_line("two\\n\\tlines"), one_line("bell\\a")
        ('two lines', 'bell\\ufffd')
    """
    joined = " ".join(str(text).split())
    return "".join(
        "\ufffd" if unicodedata.category(letter) == "Cc" or letter in _TURNING else letter for letter in joined
    )


def visible(text: object) -> str:
    """`one_line`, and a name for what would look empty: nothing, or only blanks and marks without width.

    Example:
        >>> visible(" \\u200b"), visible("even")
        ('(blank)', 'even')
    """
    line = one_line(text)
    seen = any(unicodedata.category(letter) not in ("Cf", "Zs", "Zl", "Zp") for letter in line)
    return line if seen else "(blank)"


def breakable(text: object) -> str:
    """`visible` text as HTML that may break into lines after a slash, a dot or an underscore, as names of files do.

    Example:
        >>> breakable("merged/<b>")
        'merged/<wbr>&lt;b&gt;'
    """
    return re.sub(r"([/._])(?=[^/._])", r"\1<wbr>", escape(visible(text)))


def shortened(text: object, length: int) -> str:
    """`visible` text of at most `length` letters, an ellipsis where it was cut.

    Example:
        >>> shortened("consecutive numbers", 12)
        'consecutive…'
    """
    line = visible(text)
    return line if len(line) <= length else line[: length - 1] + "…"
