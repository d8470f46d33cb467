"""How much white space a JSON answer may hold: at each place none, one space, or a new line and the indentation of its depth.

JSON allows any amount, and a small model that is led through a schema may spend its whole budget there: what it would rather say is
forbidden, and one more space never is. So ``{"a": 1, "b": [1, 2]}`` and what ``json.dumps`` makes with an indent of up to four spaces or of
tabs stay possible, and nothing wider.
"""

from dataclasses import dataclass

BLANK = b" \n\t"
DEEPEST = 64
"""Lists and objects in each other; JSON that is nested deeper not every reader takes, edge serve's neither."""
INDENT = 4
"""Spaces a level; a tab counts as as many."""
_WIDTHS = {ord(" "): 1, ord("\n"): 1, ord("\t"): INDENT}


def pattern(levels: int) -> str:
    """A regular expression of the white space of one place, indented by at most so many levels, for llguidance: it takes it once a place
    and knows nothing of depth."""
    return f" |\\n {{0,{INDENT * levels}}}|\\n\\t{{0,{levels}}}"


@dataclass(frozen=True)
class Layout:
    """Where in a JSON text something stands.

    open: brackets that are open. last: what came last, but for white space and what a string holds. quoted: in a string, escaped: after a
    backslash in it. key: the string is one. spent: width of the white space since ``last``.
    """

    open: bytes = b""
    last: int = 0
    quoted: bool = False
    escaped: bool = False
    key: bool = False
    spent: int = 0

    @property
    def room(self) -> int:
        """Width of the white space that may still come here; outside of strings. Before a colon nobody writes any."""
        return 0 if self.key else 1 + INDENT * len(self.open) - self.spent

    def after(self, text: bytes) -> "Layout | None":
        """Where it stands after ``text``, which a JSON grammar allows; None where white space in it is too wide, or it is nested
        too deep."""
        here = self
        for byte in text:
            found = here._next(byte)
            if found is None:
                return None
            here = found
        return here

    def _next(self, byte: int) -> "Layout | None":
        if self.quoted:
            ended = byte == ord('"') and not self.escaped
            return Layout(self.open, self.last, not ended, not self.escaped and byte == ord("\\"), self.key)
        if width := _WIDTHS.get(byte):
            return Layout(self.open, self.last, key=self.key, spent=self.spent + width) if width <= self.room else None
        if byte == ord('"'):
            return Layout(self.open, byte, quoted=True, key=self.open.endswith(b"{") and self.last in b"{,")
        if byte in b"{[":
            if len(self.open) == DEEPEST:
                return None
            return Layout(self.open + bytes([byte]), byte)
        return Layout(self.open[:-1] if byte in b"}]" else self.open, byte)


def blank(text: bytes) -> int:
    """Width of the white space that a token begins with."""
    return sum(_WIDTHS[byte] for byte in text[: len(text) - len(text.lstrip(BLANK))])
