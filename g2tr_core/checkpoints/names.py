"""Names that a file claims, as messages show them."""

LONGEST = 100


def shown(text: str) -> str:
    """A text of unknown origin for a terminal: cut, and without control characters."""
    short = text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in short)
