"""What a terminal is given of texts that strangers wrote."""

# Control characters but tab and line feed: a terminal would obey them. Unicode has pictures of the first 32 and DEL.
_PICTURES: dict[int, int | None] = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"},
    ord("\r"): None,  # of a line's end
    0x7F: 0x2421,
    **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),
}


def printable(text: str) -> str:
    """Return `text` without what a terminal would obey: nobody knows who wrote a passage."""
    return text.translate(_PICTURES)
