"""Text of other people's files and systems, as this library shows it and writes it."""

#: The longest text that a certificate takes.
TEXT_LIMIT = 200


def clean(text: object, limit: int = TEXT_LIMIT) -> str:
    """Text that prints on one line: what is not printable becomes "?"; what is too long is cut."""
    whole = "".join(c if c.isprintable() else "?" for c in str(text))
    return whole if len(whole) <= limit else whole[: limit - 1] + "…"
