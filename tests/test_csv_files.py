"""What is read from csv and tsv files: no row is lost to a quote, and an option has its effect or is refused."""

import csv
import gzip
from mmap import mmap
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from datasets.packaged_modules.csv.csv import CsvConfig

from multitask_sentence.data.files.csv_files import read_csv
from multitask_sentence.data.files.csv_quotes import _well_closed
from multitask_sentence.data.loading.tasks import TaskSource, load_tasks
from multitask_sentence.data.rows.sets import LoadedTasks
from multitask_sentence.data.sources import loading as sources
from multitask_sentence.data.text.half_characters import map_bytes

SINGLE = "single_label_classification"


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def load(
    tmp_path: Path,
    content: str | bytes,
    path: str = "csv",
    columns: dict[str, Any] | None = None,
    problem_type: str = SINGLE,
    **options: Any,
) -> LoadedTasks:
    """The file's rows as train and validation split of a task `t`."""
    content = content.encode() if isinstance(content, str) else content
    (tmp_path / f"rows.{path}").write_bytes(content)
    dataset = {"path": path, "data_files": dict.fromkeys(("train", "validation"), f"rows.{path}")} | options
    columns = columns or {"sentence": "text", "label": "label"}
    return load_tasks([TaskSource("t", problem_type, dataset, columns)], tmp_path, seed=42)


def texts(loaded: LoadedTasks) -> list[str]:
    return [sentences[0] for sentences in loaded.sets[0].splits["train"]["sentences"]]


def labels(loaded: LoadedTasks) -> list[Any]:
    return loaded.sets[0].splits["train"]["label_t"][:]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
def test_text_behind_a_quote_is_found_in_every_encoding(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, encoding: str
) -> None:
    content = '"text" is,label\n"caf\u00e9" good,yes\n"bad",no'.encode(encoding)
    options = {} if encoding.startswith("utf-8") else {"encoding": encoding}
    with caplog.at_level("INFO", "multitask_sentence"):
        load(tmp_path, content, columns={"sentence": "text is", "label": "label"}, **options)
    assert "in 2 cells of" in caplog.text
    assert "text follows a closing quote, first in '\"text\" is'" in caplog.text


def test_plain_file_is_searched_where_it_lies_and_a_packed_one_is_read(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b"text,label\n")
    (tmp_path / "rows.csv.gz").write_bytes(gzip.compress(b"text,label\n"))
    (tmp_path / "empty.csv").touch()
    found = [map_bytes(str(tmp_path / name)) for name in ("rows.csv", "rows.csv.gz", "empty.csv")]
    assert [type(content) for content in found] == [mmap, bytes, bytes]
    assert [content[:] for content in found] == [b"text,label\n", b"text,label\n", b""]


# Quotes that swallow rows

STRAY = ["text{0}label", "good{0}yes", '"not what I ordered{0}no', "fine{0}yes", "bad{0}no", "{0}{0}", "late{0}no"]


@pytest.mark.parametrize(("path", "delimiter"), [("csv", ","), ("tsv", "\t"), ("csv", ";"), ("csv", "|")])
@pytest.mark.parametrize("closing", ['"24 hours" they said', 'a screen of 5"', 'the "best" one'])
def test_quote_at_the_start_of_a_cell_that_swallows_rows_is_an_error(
    tmp_path: Path, path: str, delimiter: str, closing: str
) -> None:
    lines = [line.format(delimiter) for line in STRAY]
    lines[5] = f"{closing}{delimiter}yes"
    content = "\n".join(lines) + "\n"
    with pytest.raises(
        ValueError, match=r"rows\..sv, row 2: .* column 'text' holds 4 lines .*`quoting: 3` to tasks\.t"
    ):
        load(tmp_path, content, path, delimiter=delimiter)
    loaded = load(tmp_path, content, path, delimiter=delimiter, quoting=3)
    assert texts(loaded) == ["good", '"not what I ordered', "fine", "bad", closing, "late"]
    assert labels(loaded) == [1, 0, 1, 0, 1, 0]


def test_swallowed_rows_are_found_where_the_label_comes_first(tmp_path: Path) -> None:
    content = 'label,text\nyes,good\nno,"not what I ordered\nyes,fine\nno,a screen of 5"\nyes,late\n'
    with pytest.raises(ValueError, match=r"row 2: .* column 'text' holds 3 lines .*quoting: 3"):
        load(tmp_path, content)


def test_swallowed_rows_are_found_by_scores_that_no_other_row_has(tmp_path: Path) -> None:
    content = 'text,label\ngood,4.25\n"not what I ordered,1.5\na screen of 5",1.75\nfine,3.5\n'
    with pytest.raises(ValueError, match=r"row 2: .* column 'text' holds 2 lines .*quoting: 3"):
        load(tmp_path, content, problem_type="regression")


def test_swallowed_rows_are_found_by_their_shape_where_no_value_repeats(tmp_path: Path) -> None:
    lines = [f"question {n},answer {n}" for n in range(20)]
    lines[4], lines[9] = '"what is this,answer 4', 'question 5",answer 9'
    content = "anchor,positive\n" + "\n".join(lines) + "\n"
    columns = {"anchor": "anchor", "positive": "positive"}
    with pytest.raises(ValueError, match=r"row 5: .* holds 6 lines .*quoting: 3"):
        load(tmp_path, content, columns=columns, problem_type="contrastive")
    lines[4:10] = ['"Hello,\nplease, send\nit, now\nor, better\nlater, Max\nBye",answer']
    content = "anchor,positive\n" + "\n".join([line for line in lines for _ in range(2)]) + "\n"
    assert len(load(tmp_path, content, columns=columns, problem_type="contrastive").sets[0].splits["train"]) == 30


def test_missing_values_of_options_mean_the_defaults(tmp_path: Path) -> None:
    loaded = load(tmp_path, "text,label\na,x\nb,y\n", delimiter=None, decimal=".", thousands=None, encoding=None)
    assert texts(loaded) == ["a", "b"]


@pytest.mark.parametrize("path", ["csv", "tsv"])
def test_quote_that_is_never_closed_names_quoting(tmp_path: Path, path: str) -> None:
    mark = {"csv": ",", "tsv": "\t"}[path]
    content = f'text{mark}label\ngood{mark}yes\n"never closed{mark}no\nfine{mark}yes\n'
    with pytest.raises(ValueError, match=r"rows\..sv.* quote at the start of a cell is never closed\..*`quoting: 3`"):
        load(tmp_path, content, path)
    assert texts(load(tmp_path, content, path, quoting=3)) == ["good", '"never closed', "fine"]


@pytest.mark.parametrize(
    ("first", "message"), [("", "row 1: the row has more fields"), ("a,b\n", "Expected 2 fields")]
)
def test_quote_that_gives_a_row_too_many_fields_names_quoting(tmp_path: Path, first: str, message: str) -> None:
    with pytest.raises(ValueError, match=message + ".*`quoting: 3`"):
        load(tmp_path, f'text,label\n{first}"not what I ordered,no\n"good, very good",yes\n')


def test_quoted_texts_of_several_lines_with_commas_are_read_and_announced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = ["Dear sir,\nplease refund", 'Hello,\r\n\r\nit broke, twice,\r\nsee "photo"', "fine", "one\ntwo\nthree"]
    quoted = ['"{}"'.format(text.replace('"', '""')) for text in wanted]
    content = "text,label\n" + "".join(f"{text},{'yn'[row % 2]}\n" for row, text in enumerate(quoted))
    loaded = load(tmp_path, content)
    assert texts(loaded) == wanted
    found = [line for line in caplog.messages if "several lines" in line]
    assert "3 cells of" in found[0]
    assert "the longest, row 2, column 'text', has 4 lines and 39 characters" in found[0]
    assert not any("give no row" in line for line in caplog.messages)


def test_cells_of_several_lines_are_looked_for_in_the_bytes_of_the_file(tmp_path: Path) -> None:
    cells = ["caf\u00e9, one\ntwo", 'the "last", one\ntwo', "not, closed\nso"]
    text = (
        "text,label\n"
        + "".join('"{}",x\n'.format(cell.replace('"', '""')) for cell in cells[:2])
        + '"not, closed\nso" it'
    )
    (tmp_path / "rows.csv").write_bytes(text.encode())
    content = map_bytes(str(tmp_path / "rows.csv"))
    suspected = [(row, 0, cell) for row, cell in enumerate(cells)]
    assert list(_well_closed("a file that is gone", content, suspected, {"delimiter": ","})) == [True, True, False]
    assert list(_well_closed(str(tmp_path / "rows.csv"), b"", suspected, {"delimiter": ","})) == [True, True, False]


def test_stated_quoting_reads_a_cell_that_looks_like_rows(tmp_path: Path) -> None:
    content = 'text,label\n"he wrote\ngood,yes\nfine",no\nbad,yes\n'
    with pytest.raises(ValueError, match=r"row 1: .* add `quoting: 0`"):
        load(tmp_path, content)
    assert texts(load(tmp_path, content, quoting=0)) == ["he wrote\ngood,yes\nfine", "bad"]


def test_compressed_files_are_looked_into_as_well(tmp_path: Path) -> None:
    content = "\n".join(line.format("\t") for line in STRAY).replace("\t\t", '"24 hours" they said\tyes')
    (tmp_path / "rows.tsv.gz").write_bytes(gzip.compress(content.encode()))
    dataset = {"path": "tsv", "data_files": {"train": "rows.tsv.gz", "validation": "rows.tsv.gz"}}
    task = TaskSource("t", SINGLE, dataset, {"sentence": "text", "label": "label"})
    with pytest.raises(ValueError, match=r"row 2: .* holds 4 lines"):
        load_tasks([task], tmp_path, seed=42)
    task.dataset["quoting"] = 3
    assert len(load_tasks([task], tmp_path, seed=42).sets[0].splits["train"]) == 6


@pytest.mark.parametrize(
    ("options", "missing"), [({}, 0), ({"on_bad_lines": "skip"}, 1), ({"comment": "#"}, 1), ({"nrows": 2}, 2)]
)
def test_lines_that_give_no_row_are_counted(
    tmp_path: Path, options: dict, missing: int, caplog: pytest.LogCaptureFixture
) -> None:
    content = "text,label\ngood,yes\n\nbad,no\n  \n"
    content += {"on_bad_lines": "a,b,c\n", "comment": "# note\n", "nrows": "fine,yes\nlate,no\n"}.get(
        *options or [""], ""
    )
    load(tmp_path, content, **options)
    found = [line for line in caplog.messages if "give no row" in line]
    assert [line.split(" of ")[0] for line in found[:1]] == ([f"t: {missing} lines"] if missing else [])


def test_folder_of_csv_files_is_read_as_text_and_looked_into(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    task = TaskSource("t", SINGLE, {"path": "set"}, {"sentence": "text", "label": "label"})
    for split in ("train", "test"):
        (tmp_path / f"set/{split}.csv").write_text("text,label\n007,a b\n7,c\nx,c\n")
    loaded = load_tasks([task], tmp_path, seed=42, require_train=False)
    assert texts(loaded) == ["007", "7", "x"]
    (tmp_path / "set/test.csv").write_text('text,label\n"swallowed,c\nfine,a b\n5",c\n')
    with pytest.raises(ValueError, match=r"test\.csv, row 1: .*`quoting: 3`"):
        load_tasks([task], tmp_path, seed=42, require_train=False)


def test_quote_that_swallows_the_header_names_quoting(tmp_path: Path) -> None:
    content = 'text,"label\ngood,yes\nbad",no\nfine,no\n'
    with pytest.raises(ValueError, match=r"A quote in the header encloses several lines\..*`quoting: 3`"):
        load(tmp_path, content)


@pytest.mark.parametrize("declared", [False, True])
def test_hub_csv_files_are_read_as_text_unless_their_types_are_declared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, declared: bool
) -> None:
    (tmp_path / "train.csv").write_text("text;label\na;007\nb;7\n")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.Value("int64")})
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [7, 8]}, features)
    config = CsvConfig(sep=";")
    config.data_files = {"train": [str(tmp_path / "train.csv")]}
    info = datasets.DatasetInfo(features=features if declared else None)
    monkeypatch.setattr(sources, "load_dataset_builder", lambda **_: SimpleNamespace(config=config, info=info))
    monkeypatch.setattr(sources, "load_dataset", lambda **_: datasets.DatasetDict({"train": rows}))
    columns = {"sentence": "text", "label": "label"}
    parts = sources.load_parts([TaskSource("t", SINGLE, {"path": "someone/set"}, columns)], tmp_path)
    assert parts["train"][0].rows["label"][:] == ([7, 8] if declared else ["007", "7"])


def test_folder_named_like_a_format_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/train.csv").write_text("text,label\na,x\nb,y\n")
    task = TaskSource("t", SINGLE, {"path": "folder"}, {"sentence": "text", "label": "label"})
    assert texts(load_tasks([task], tmp_path, seed=42, require_train=False)) == ["a", "b"]


PHRASE = 'the a great, product but late. Would buy again yes, no thanks it 5" screen "best" ever one, two'
WORDS = PHRASE.split()


@pytest.mark.parametrize("seed", range(12))
def test_tables_written_by_the_csv_module_come_back_cell_by_cell(tmp_path: Path, seed: int) -> None:
    random = Random(seed)
    rows = []
    for number in range(40):
        words = random.choices(WORDS, k=random.randint(3, 20))
        text = "".join(word + random.choice("    \n") for word in words).strip()
        rows.append([str(number), random.choice(["pos", "neg"]), text][:: 1 if seed % 2 else -1])
    names = ["id", "label", "text"][:: 1 if seed % 2 else -1]
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n" if seed % 3 else "\r\n").writerows([names, *rows])
    part = read_csv("t", str(tmp_path / "rows.csv"), {"delimiter": ","}, {})
    assert [[row[name] for name in names] for row in part.rows] == rows


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_stray_quotes_never_take_a_row_in_silence(tmp_path: Path, seed: int, delimiter: str) -> None:
    random = Random(seed)
    lines = ["label{0}text" if seed % 2 else "text{0}label"]
    for _ in range(40):
        text = " ".join(random.choices(WORDS, k=random.randint(3, 20))).replace(delimiter, "").strip('"')
        text = random.choice(['"', "", "", "", ""]) + text + random.choice(['"', "", "", "", ""])
        cells = [random.choice(["pos", "neg"]), text]
        lines.append("{0}".join(cells if seed % 2 else cells[::-1]))
    (tmp_path / "rows.csv").write_text("\n".join(lines).format(delimiter) + "\n")
    try:
        assert len(read_csv("t", str(tmp_path / "rows.csv"), {"delimiter": delimiter}, {}).rows) == 40
    except ValueError as error:
        assert "`quoting: 3`" in str(error)
    part = read_csv("t", str(tmp_path / "rows.csv"), {"delimiter": delimiter, "quoting": 3}, {})
    assert [delimiter.join(row.values()) for row in part.rows] == [line.format(delimiter) for line in lines[1:]]


# Options


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("dtype", {"label": "str"}),
        ("converters", {"label": "int"}),
        ("parse_dates", ["label"]),
        ("date_format", "%Y"),
        ("true_values", ["yes"]),
        ("false_values", ["no"]),
        ("float_precision", "high"),
        ("features", {"label": "int64"}),
        ("low_memory", False),
    ],
)
def test_option_about_types_is_refused_because_all_cells_are_text(tmp_path: Path, option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"tasks\.t\.dataset\.{option} has no effect: every column is read as text"):
        load(tmp_path, "text,label\na,yes\nb,no\n", **{option: value})


def test_decimal_and_thousands_are_honoured_for_scores(tmp_path: Path) -> None:
    content = "text;label\na;1,5\nb;-0,25\nc;1.234.567,5\nd;\ne;3\n"
    loaded = load(tmp_path, content, problem_type="regression", delimiter=";", decimal=",", thousands=".")
    assert labels(loaded) == [1.5, -0.25, 1234567.5, 3.0]
    loaded = load(tmp_path, 'text,label\na,"1,234.5"\nb,7\n', problem_type="regression", thousands=",")
    assert labels(loaded) == [1234.5, 7.0]


def test_point_beside_a_decimal_comma_is_an_error_with_its_row(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"row 2: found '1\.500', which has a point.*thousands: '\.'"):
        load(tmp_path, "text;label\na;1,5\nb;1.500\n", problem_type="regression", delimiter=";", decimal=",")


@pytest.mark.parametrize(
    ("problem_type", "options", "message"),
    [
        (SINGLE, {"decimal": ","}, r"dataset\.decimal has no effect: no regression or similarity task"),
        (SINGLE, {"thousands": "."}, r"dataset\.thousands has no effect"),
        ("regression", {"decimal": "comma"}, r"decimal should be one character, like ','\. Found 'comma'"),
        ("regression", {"decimal": ",", "thousands": ","}, "decimal and thousands are both ','"),
        ("regression", {"thousands": "."}, r"decimal and thousands are both '\.'"),
        (SINGLE, {"sep": ";", "delimiter": ","}, "sep and delimiter say the same thing"),
        (SINGLE, {"header": [0, 1]}, "header should be one row"),
    ],
)
def test_mark_that_cannot_work_is_refused(tmp_path: Path, problem_type: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(tmp_path, "text,label\na,1\nb,2\n", problem_type=problem_type, **options)


def test_sep_has_its_effect_on_tsv_files_too(tmp_path: Path) -> None:
    assert texts(load(tmp_path, "text;label\na b;x\nc;y\n", "tsv", sep=";")) == ["a b", "c"]


def test_file_without_header_keeps_its_cells_as_text(tmp_path: Path) -> None:
    columns = {"sentence": "1", "label": "0"}
    loaded = load(tmp_path, "007,a\n7,b\n08,c\n", columns=columns, header=None)
    assert texts(loaded) == ["a", "b", "c"]
    loaded = load(tmp_path, "no,the box\nyes,a cat\n", column_names=["label", "text"])
    assert texts(loaded) == ["the box", "a cat"]
    dialect = load(tmp_path, "text\tlabel\na, b\tyes\nc\tno\n", dialect="excel-tab")
    assert texts(dialect) == ["a, b", "c"]


def test_column_names_for_a_file_with_a_header_are_refused(tmp_path: Path) -> None:
    content = "text,label\na,yes\nb,no\n"
    with pytest.raises(ValueError, match=r"the first line is a header .* add `header: 0`"):
        load(tmp_path, content, column_names=["text", "label"])
    assert texts(load(tmp_path, content, column_names=["text", "label"], header=0)) == ["a", "b"]


# Hints: the line of the recipe that mends a file

SEMICOLONS = "text;label\nthe red box;no\nthe small box;yes\n"


@pytest.mark.parametrize(
    ("content", "path", "options", "message", "mended"),
    [
        (SEMICOLONS, "csv", {}, r"add `delimiter: ';'` to tasks\.t\.dataset", {"delimiter": ";"}),
        (SEMICOLONS.replace(" box", ", box"), "csv", {}, "add `delimiter: ';'`", {"delimiter": ";"}),
        (SEMICOLONS.replace(" box", ", a, box"), "csv", {}, "add `delimiter: ';'`", {"delimiter": ";"}),
        (SEMICOLONS.replace(";", "\t"), "csv", {}, r'add `delimiter: "\\t"`', {"delimiter": "\t"}),
        (SEMICOLONS.replace(";", ","), "tsv", {}, "add `delimiter: ','`", {"delimiter": ","}),
        (SEMICOLONS.replace(";", "|"), "csv", {}, r"add `delimiter: '\|'`", {"delimiter": "|"}),
        (
            "text,label\ncafé,no\ntea,yes\n".encode("latin-1"),
            "csv",
            {},
            "`encoding: latin-1`",
            {"encoding": "latin-1"},
        ),
        ("text,label\n“café”,no\ntea,yes\n".encode("cp1252"), "csv", {}, "`encoding: cp1252`", {"encoding": "cp1252"}),
        ("text,label\ncafé,no\ntea,yes\n".encode("utf-16"), "csv", {}, "`encoding: utf-16`", {"encoding": "utf-16"}),
        (
            "no\tthe red box\nyes\tthe small box\nno\tthe box\n",
            "tsv",
            {},
            r"first line looks like a row, for 'no' stands in .*`column_names: \[label, text\]`",
            {"column_names": ["label", "text"]},
        ),
        (
            "the red box,no\nthe small box,yes\n",
            "csv",
            {},
            r"If the first line is a row .*`column_names: \[text, label\]`",
            {"column_names": ["text", "label"]},
        ),
        (SEMICOLONS, "csv", {"separator": ";"}, "no option 'separator'. Did you mean 'delimiter'", {"delimiter": ";"}),
        (SEMICOLONS, "csv", {"delimeter": ";"}, "no option 'delimeter'. Did you mean 'delimiter'", {"delimiter": ";"}),
        (SEMICOLONS, "csv", {"encodings": "x"}, "Did you mean 'encoding'", {"delimiter": ";"}),
    ],
)
def test_hint_names_the_line_of_the_recipe_that_mends_the_file(
    tmp_path: Path, content: str | bytes, path: str, options: dict, message: str, mended: dict
) -> None:
    with pytest.raises(ValueError, match=message):
        load(tmp_path, content, path, **options)
    assert len(load(tmp_path, content, path, **mended).sets[0].splits["train"]) >= 2


@pytest.mark.parametrize(
    ("content", "options"),
    [
        ("text label\na x\nb y\n", {"delimiter": r"\s+", "engine": "python"}),
        ("text||label\na||x\nb||y\n", {"delimiter": r"\|\|", "engine": "python"}),
        (f"text,label\n{'a' * 140_000},x\nb,y\n", {}),
    ],
)
def test_column_that_is_missing_is_told_whatever_the_delimiter_and_length_of_lines(
    tmp_path: Path, content: str, options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="needs a column 'gone', which is missing"):
        load(tmp_path, content, columns={"sentence": "gone", "label": "label"}, **options)


@pytest.mark.parametrize("path", ["csv", "json", "fasttext"])
def test_encoding_that_does_not_exist_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(ValueError, match=r"tasks\.t\.dataset\.encoding: .* 'utf-16-sig'\. .*utf-16"):
        load(tmp_path, '{"text": "a"}', path, encoding="utf-16-sig")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04 [Content_Types].xml xl/workbook.xml \xe9", "Excel file: write `path: xlsx`"),
        (b"PAR1\x15\x04\xe9", "Parquet file: write `path: parquet`"),
    ],
)
def test_file_of_another_format_names_its_path(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(tmp_path, content)
