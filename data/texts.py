"""When two texts count as the same: one rule for duplicates, splits, held-out rows and contradictions."""


def text_key(text: str) -> str:
    """The text without its case and the extent of its white space, which many tokenizers do not see."""
    return " ".join(text.split()).casefold()


__all__ = ["text_key"]
