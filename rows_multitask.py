"""Rows in: sentences and pairs as people hand them over, checked and counted.

check_container                       refuses what is no list of texts: a table, a mapping, a set, an open file
check_sentences, check_rows           name the first thing that is no string, or no pair of strings
windows_of                            rows in windows, counted: an input that is not as long as it says is refused
sentence_windows, distinct_sentences  these with checked sentences; and with each distinct one once
tokenized_ahead                       windows of token ids, the next one made meanwhile
length_sorted_batches                 sentences in batches of similar length, within a token budget
without_lone_surrogates               half characters become U+FFFD, counted

This file imports only Python's own library, because the runtime without torch reads it as well.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, KeysView, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from typing import Any

logger = logging.getLogger(__name__)

SENTENCES_PER_WINDOW = 16384  # so many are tokenized and sorted by length together
# Tokens of one backbone pass in `encode`, by device. On a CPU enough to fill the matrix products and little enough to
# stay in the caches, as measured. A GPU takes many more to be busy; what is best there was not measured.
TOKENS_PER_BATCH = {"cpu": 2048, "cuda": 16384}
# From so many sentences on, a progress bar appears by itself.
SENTENCES_FOR_PROGRESS = 2000
MOST_NAMES = 8  # of a table's columns or a mapping's keys in an error


def _named(names: Iterable[Any]) -> str:
    shown = [repr(name) for name in islice(names, MOST_NAMES + 1)]
    return ", ".join([*shown[:MOST_NAMES], *(["..."] if len(shown) > MOST_NAMES else [])]) or "none"


def _remedy(rows: Any) -> str | None:
    """What to hand over in place of something that is no list of texts; `None` for what may be one."""
    if isinstance(rows, str):
        return "a single text. Put it into a list"
    if isinstance(rows, (bytes, bytearray, memoryview)):
        return "bytes. Decode them, and put the text into a list"
    for attribute in ("column_names", "columns"):  # of datasets and pyarrow; of pandas and polars
        if hasattr(type(rows), attribute):  # the type's: a Series has its rows as attributes
            columns = getattr(rows, attribute)
            columns = "" if columns is None else f". Its columns: {_named(columns)}"
            return f"a table. Give one column of it, as in table['text'] or df['text']{columns}"
    if isinstance(rows, Mapping):
        return f"a mapping. Give its texts, as in mapping['text'] or list(mapping.values()). Its keys: {_named(rows)}"
    if isinstance(rows, Set) and not isinstance(rows, KeysView):
        return "a set, which has no order. Give a list, as in sorted(texts)"
    if callable(getattr(rows, "readline", None)):
        return "an open file. Give its lines, as in file.read().splitlines()"
    if getattr(rows, "ndim", 1) == 0:
        return "a single value in an array. Give array.item() in a list"
    if getattr(rows, "ndim", 1) != 1:
        return f"an array of {rows.ndim} dimensions. Give one column of it, as in array[:, 0]; pairs as array.tolist()"
    try:
        iter(rows)
    except TypeError:
        return "nothing that could be read row by row. Give a list of strings"
    return None


def check_container(rows: Any) -> None:
    """
    Raise a TypeError, with the remedy, for what is no list of texts, whatever iterating over it would give.

    Lists, tuples, arrays of one dimension, `pandas` Series, `datasets` columns and generators pass.
    """
    remedy = _remedy(rows)
    if remedy:
        raise TypeError(f"The sentences are a {type(rows).__name__}, but should be a list of texts. This is {remedy}.")


def count_rows(rows: Any) -> int | None:
    """How many rows an input says it has; `None` where it does not say."""
    try:
        return len(rows)
    except TypeError:  # a generator, or a loader around one
        return None


def check_sentences(sentences: Sequence[Any], start: int = 0) -> None:
    """Raise a TypeError that gives the place (counted from `start`) of the first thing that is not a string."""
    for index, sentence in enumerate(sentences, start):
        if not isinstance(sentence, str):
            raise TypeError(f"Sentence {index} is {sentence!r} ({type(sentence).__name__}), but should be a string.")


def check_rows(rows: Sequence[Any], is_pair: bool, start: int = 0) -> None:
    """As `check_sentences`, also for pairs of strings."""
    if not is_pair:
        check_sentences(rows, start)
        return
    for index, row in enumerate(rows, start):
        is_good = isinstance(row, (tuple, list)) and len(row) == 2
        if not is_good or not all(isinstance(sentence, str) for sentence in row):
            raise TypeError(f"Row {index} is {row!r}, but should be a pair of strings.")


def check_batch_size(batch_size: int | None) -> None:
    """Raise a TypeError or ValueError for what is no number of sentences."""
    if batch_size is None:
        return
    if isinstance(batch_size, bool) or not hasattr(batch_size, "__index__"):
        raise TypeError(f"batch_size is {batch_size!r}, but should be a whole number, or None for a token budget.")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, but should be at least 1, or None for a token budget.")


def windows_of(rows: Iterable[Any], size: int | None = None) -> Iterator[tuple[int, list[Any]]]:
    """
    Rows in lists of at most `size` (`SENTENCES_PER_WINDOW` by default), each with the place of its first row.

    Raises:
        ValueError: there are more or fewer rows than `len(rows)` says.
    """
    size = SENTENCES_PER_WINDOW if size is None else size
    start, iterator, total = 0, iter(rows), count_rows(rows)
    while window := list(islice(iterator, size)):
        if total is not None and start + len(window) > total:
            break
        yield start, window
        start += len(window)
    if total is not None and (window or start != total):
        raise ValueError(
            f"The sentences are a {type(rows).__name__} whose length is {total}, but iterating over it gives "
            f"{'more' if window else start} rows. Give a list of texts, as in list(sentences)."
        )


def length_sorted_batches(
    lengths: Sequence[int],
    batch_size: int | None = None,
    tokens_per_batch: int = TOKENS_PER_BATCH["cpu"],
    most_padding: int | None = None,
) -> Iterator[list[int]]:
    """
    Indices in batches of similar length, longest first.

    Args:
        lengths: tokens of each sentence.
        batch_size: at most so many sentences a batch; `None` leaves it to the token budget alone.
        tokens_per_batch: at most so many tokens a batch, padding included (a longer sentence stands alone).
        most_padding: at most so many of a batch's tokens are padding: as many as take the time of a further pass.
            `None` where nothing is padded.
    """
    batch: list[int] = []
    padding = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        added = lengths[batch[0]] - lengths[index] if batch else 0
        full = batch and (len(batch) + 1) * lengths[batch[0]] > tokens_per_batch
        if full or len(batch) == batch_size or (most_padding is not None and padding + added > most_padding):
            yield batch
            batch, padding, added = [], 0, 0
        batch.append(index)
        padding += added
    if batch:
        yield batch


def without_lone_surrogates(sentences: list[str], start: int = 0, sentences_per_row: int = 1) -> list[str]:
    """
    Sentences that UTF-8 can hold: half a character becomes U+FFFD, and two halves that belong together one character.

    Such halves ("lone surrogates") are what is left of an emoji where text was cut in the middle of it, and no
    tokenizer reads them. U+FFFD is what browsers put in their place (https://webidl.spec.whatwg.org/#idl-USVString).

    Args:
        sentences: strings.
        start: place of the first row, for the warning that counts the changed ones.
        sentences_per_row: 2 for the sentences of pairs.
    """
    try:
        "".join(sentences).encode()
    except UnicodeEncodeError:
        whole = [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in sentences]
    else:
        return sentences
    changed = [index for index, (text, found) in enumerate(zip(sentences, whole, strict=True)) if text != found]
    logger.warning(
        f"Row {start + changed[0] // sentences_per_row} is {sentences[changed[0]]!r}, which has half of a character "
        f"(a lone surrogate), as text has that was cut within an emoji. Such halves are read as U+FFFD, in "
        f"{len(changed)} sentences here."
    )
    return whole


def sentence_windows(sentences: Iterable[str]) -> Iterator[tuple[list[str], int]]:
    """Checked sentences in windows, each with the place of its first. A list is looked through at once."""
    check_container(sentences)
    if isinstance(sentences, (list, tuple)):
        check_sentences(sentences)

    def windows() -> Iterator[tuple[list[str], int]]:
        for start, window in windows_of(sentences):
            check_sentences(window, start)
            yield without_lone_surrogates(window, start), start

    return windows()


def distinct_sentences(
    windows: Iterable[tuple[int, list[Any]]], is_pair: bool
) -> Iterator[tuple[list[str], list[int]]]:
    """Each window's distinct sentences, and where each row finds its own: one place a row, or two for pairs."""
    for start, window in windows:
        check_rows(window, is_pair, start)
        flat = list(chain.from_iterable(window)) if is_pair else window
        flat = without_lone_surrogates(flat, start, 1 + is_pair)
        places = {sentence: place for place, sentence in enumerate(dict.fromkeys(flat))}
        yield list(places), [places[sentence] for sentence in flat]


def tokenized_ahead(
    tokenize: Callable[[list[str]], list[list[int]]], windows: Iterator[tuple[list[str], Any]]
) -> Iterator[tuple[list[list[int]], Any]]:
    """Token ids in place of each window's sentences; the next window is tokenized while one is worked on."""
    sentences, companion = next(windows, ([], None))
    tokenized = tokenize(sentences)
    with ThreadPoolExecutor(max_workers=1) as thread:
        for sentences, next_companion in windows:
            following = thread.submit(tokenize, sentences)
            yield tokenized, companion
            tokenized, companion = following.result(), next_companion
    if tokenized:
        yield tokenized, companion


__all__ = [
    "check_batch_size",
    "check_container",
    "check_rows",
    "check_sentences",
    "count_rows",
    "distinct_sentences",
    "length_sorted_batches",
    "sentence_windows",
    "tokenized_ahead",
    "windows_of",
    "without_lone_surrogates",
]
