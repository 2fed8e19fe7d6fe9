"""How much the server takes in."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """
    What one request, and all that wait, may hold.

    Attributes:
        max_body_bytes: of a request's body.
        max_rows: sentences or pairs of one request.
        max_characters: of one sentence.
        max_waiting_rows: rows of all requests that wait.
        max_batch_rows: rows of several requests that are computed together.
    """

    max_body_bytes: int = 4_000_000
    max_rows: int = 1_000
    max_characters: int = 100_000
    max_waiting_rows: int = 10_000
    max_batch_rows: int = 512


__all__ = ["Limits"]
