"""How much the server takes in, and how long it waits for it."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    """
    What one request, and all that wait, may hold and take; a ValueError where nothing could be taken.

    Attributes:
        max_body_bytes: of a request's body.
        max_body_seconds: until all of a request's body has come.
        max_rows: sentences or pairs of one request.
        max_characters: of one sentence.
        max_waiting_rows: rows of all requests that wait.
        max_waiting_bytes: bodies of all requests that are not answered, those that are on their way included.
        max_batch_rows: rows of several requests that are computed together.
        max_shutdown_seconds: from SIGTERM until what is not answered, or not fetched by its caller, is given up.
    """

    max_body_bytes: int = 4_000_000
    max_body_seconds: int = 30
    max_rows: int = 1_000
    max_characters: int = 100_000
    max_waiting_rows: int = 10_000
    max_waiting_bytes: int = 100_000_000
    max_batch_rows: int = 512
    max_shutdown_seconds: int = 120

    def __post_init__(self) -> None:
        for limit in fields(self):
            found, least = getattr(self, limit.name), int(limit.name != "max_shutdown_seconds")
            if found < least:
                raise ValueError(f"--{limit.name} is {found}, but should be at least {least}.")


__all__ = ["Limits"]
