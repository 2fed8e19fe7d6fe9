"""Small inputs as people have them, a folder a case: each is read right, or refused with the line that mends it.

The cases stand beside the repository (`../shared/cases`), not in it; without them these tests are skipped. Every kind
has tests of its own with data of ours; here the recipes of the cases are run as they are.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from multitask_sentence import MultiTaskModel
from multitask_sentence.data.loading.tasks import load_tasks
from multitask_sentence.data.report import describe, format_report
from multitask_sentence.data.rows.row_hashes import collect_row_hashes
from multitask_sentence.data.rows.sets import LoadedTasks
from multitask_sentence.train import run
from multitask_sentence.training.recipe.recipe import load_recipe

CASES = Path(__file__).parents[2] / "shared" / "cases"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="../shared/cases is not there")


def load(case: str, tmp_path: Path, name: str = "recipe", **changes: Any) -> LoadedTasks:
    """The data of a case's recipe; `changes` go into every task, those of a dictionary into the one that is there."""
    folder = tmp_path / case
    shutil.copytree(CASES / case, folder, dirs_exist_ok=True)
    content = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
    for task in content["tasks"].values():
        for key, value in changes.items():
            task[key] = {**task.get(key, {}), **value} if isinstance(value, dict) else value
    (folder / "changed.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return load_tasks(load_recipe(folder / "changed.yaml").sources, folder, seed=42)


def texts(loaded: LoadedTasks) -> list[str]:
    return [
        row[0] for labelled_set in loaded.sets for rows in labelled_set.splits.values() for row in rows["sentences"]
    ]


def test_stray_quote_is_refused_with_the_option_that_reads_every_row(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"notes\.tsv, row 10: .*`quoting: 3`"):
        load("01-tsv-stray-quote", tmp_path)
    lines = (CASES / "01-tsv-stray-quote" / "notes.tsv").read_text(encoding="utf-8").splitlines()[1:]
    loaded = load("01-tsv-stray-quote", tmp_path, dataset={"quoting": 3})
    assert sorted(texts(loaded)) == sorted(line.split("\t")[0] for line in lines)


JOINED = {"comma": ", ", "semicolon": ";", "hash": "#", "space": " "}


def test_joined_labels_are_read_or_refused_with_their_separator(tmp_path: Path) -> None:
    shutil.copytree(CASES / "02-joined-labels", tmp_path / "alone")
    content = yaml.safe_load((tmp_path / "alone" / "recipe.yaml").read_text(encoding="utf-8"))
    tasks = content["tasks"]
    assert set(JOINED) < set(tasks), "premise"
    for name, task in tasks.items():
        (tmp_path / "alone" / "one.yaml").write_text(yaml.safe_dump({**content, "tasks": {name: task}}))
        if separator := JOINED.get(name):
            with pytest.raises(ValueError, match=f"tasks.{name}.label_separator: '{separator}'"):
                load_tasks(load_recipe(tmp_path / "alone" / "one.yaml").sources, tmp_path / "alone", seed=42)
            task = {**task, "label_separator": separator}
            (tmp_path / "alone" / "one.yaml").write_text(yaml.safe_dump({**content, "tasks": {name: task}}))
        loaded = load_tasks(load_recipe(tmp_path / "alone" / "one.yaml").sources, tmp_path / "alone", seed=42)
        assert loaded.labels[name] == ["a", "b", "c"], name
        found = {tuple(label) for rows in loaded.sets[0].splits.values() for label in rows[f"label_{name}"]}
        assert found == {(1, 0, 0), (1, 1, 0), (0, 1, 1), (0, 0, 1)}, name


def test_missing_words_and_spellings_are_told_and_mended_in_the_recipe(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load("08-missing-words-and-case", tmp_path)
    told = "\n".join(caplog.messages)
    assert "missing_labels: ['N/A', 'NaN', 'None', 'nan']" in told
    assert "'neg' (10 rows), 'NEG' (10 rows), 'Neg.' (10 rows)" in told
    mended = load(
        "08-missing-words-and-case",
        tmp_path,
        missing_labels=["N/A", "NaN", "None", "nan"],
        label_map={"NEG": "neg", "Neg.": "neg", "Pos": "pos"},
    )
    assert mended.labels == {"missing": ["neg", "pos"], "case": ["neg", "pos"]}


def test_every_empty_text_is_named_and_can_be_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match=r"row 4: (.|\n)*10 cells(.|\n)*row 76"):
        load("09-empty-text", tmp_path)
    loaded = load("09-empty-text", tmp_path, empty_text="drop")
    rows = (CASES / "09-empty-text" / "rows.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert len(texts(loaded)) == len(rows) - 10
    assert any("10" in told and "text" in told for told in caplog.messages)


def test_contradicting_labels_are_counted_and_settled(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loaded = load("10-contradicting-labels", tmp_path)
    assert any("30 texts have different labels" in told for told in caplog.messages)
    assert len(texts(loaded)) == 90
    loaded = load("10-contradicting-labels", tmp_path, contradictions="majority")
    found = {label for rows in loaded.sets[0].splits.values() for label in rows["label_t"]}
    assert [loaded.labels["t"][label] for label in found] == ["pos"], "two of three raters say so"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("fasttext", "`path: fasttext`"),
        ("latin1", "`encoding: latin-1`"),
        ("noheader", r"`column_names: \[label, text\]`"),
        ("semicolon", "`delimiter: ';'`"),
        ("semicolon_plain", "`delimiter: ';'`"),
        ("unknown_key", "no option 'separator'. Did you mean 'delimiter'"),
        ("xlsx", r"book\.xlsx"),
    ],
)
def test_a_file_that_is_read_wrongly_gets_the_line_that_mends_it(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        load("11-hints", tmp_path, name)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("fasttext", {"path": "fasttext"}),
        ("latin1", {"encoding": "latin-1"}),
        ("noheader", {"column_names": ["label", "text"]}),
        ("semicolon", {"delimiter": ";"}),
        ("semicolon_plain", {"delimiter": ";"}),
    ],
)
def test_that_line_mends_it(tmp_path: Path, name: str, changes: dict[str, Any]) -> None:
    loaded = load("11-hints", tmp_path, name, dataset=changes)
    assert loaded.labels["t"] == ["no", "yes"]
    assert all("box" in text or "of day" in text for text in texts(loaded))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("data", "`field: data`"),
        ("splits", "`field: {train: train, validation: val}`"),
        ("pairs", "`field: {train: train, validation: val}` and `column_names"),
        ("label_studio", "annotations.0.result.from_name=topic.value.choices"),
        ("intents", "`explode: patterns`"),
        ("rasa", "unknown file format 'yaml'"),
    ],
)
def test_nested_json_gets_the_line_that_reads_it(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        load("13-nested-json", tmp_path, name)


@pytest.mark.parametrize(
    ("name", "dataset", "rows"),
    [
        ("data", {"field": "data"}, 40),
        ("splits", {"field": "train"}, 40),
        ("pairs", {"field": "train", "column_names": ["text", "label"]}, 40),
        ("intents", {"explode": "patterns"}, 4),
    ],
)
def test_that_line_reads_nested_json(tmp_path: Path, name: str, dataset: dict[str, Any], rows: int) -> None:
    assert len(texts(load("13-nested-json", tmp_path, name, dataset=dataset, validation_split=0.25))) == rows


def test_exports_of_annotation_tools_are_read(tmp_path: Path) -> None:
    assert load("13-nested-json", tmp_path, "doccano").labels["t"] == ["billing", "shipping"]
    assert load("13-nested-json", tmp_path, "spacy").labels["t"] == ["A", "B"]
    assert load("13-nested-json", tmp_path, "data", dataset={"field": "data"}).labels["t"] == ["a", "b"]
    topic = {"columns": {"sentence": "data.text", "label": "annotations.0.result.from_name=topic.value.choices"}}
    with pytest.raises(ValueError, match=r"found 1 label\(s\) \['up'\]"):  # which is all that its rows hold
        load("13-nested-json", tmp_path, "label_studio", **topic)


def test_a_continued_model_is_not_validated_on_its_training_rows(tmp_path: Path) -> None:
    """Rows in the validation split that a first run trained on: 108 of 120 on a real file when it was drawn anew."""
    first = load("03-validation-redrawn-on-continue", tmp_path)
    trained = {row[0] for row in first.sets[0].splits["train"]["sentences"]}
    validated = {row[0] for row in first.sets[0].splits["validation"]["sentences"]}
    assert (len(trained), len(validated)) == (128, 32)
    seen = collect_row_hashes("run1", first.sets, ["noise"])
    for name, new_rows in (("continue", 0), ("continue_more", 16)):
        folder = tmp_path / "03-validation-redrawn-on-continue"
        for seed in range(42, 45):
            loaded = load_tasks(load_recipe(folder / f"{name}.yaml").sources, folder, seed, earlier=seen)
            found = {row[0] for row in loaded.sets[0].splits["validation"]["sentences"]}
            assert not found & trained
            assert validated <= found
            assert len(texts(loaded)) == 160 + new_rows


@pytest.mark.pretrained
def test_a_backbone_that_cannot_read_the_language_is_told_of(tmp_path: Path, minilm: MultiTaskModel) -> None:
    rows = describe(load("05-unread-language", tmp_path), minilm.tokenizer, 32)
    assert all(row["unknown_share"] > 0.5 for row in rows)
    assert "`backbone: sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2`" in format_report(rows)


@pytest.mark.pretrained
def test_scores_in_natural_units_are_learnt_and_leave_their_neighbour_alone(
    tmp_path: Path, minilm: MultiTaskModel
) -> None:
    folder = CASES / "04-regression-scale"
    run([str(folder / "with100.yaml"), "--data_root", str(folder), "--output_dir", str(tmp_path / "run")])
    scores = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))["scores"]["validation"]
    assert scores["thing"]["accuracy"] == 1.0  # 0.33 while the scores were learnt as they are
    rows = pd.read_parquet(tmp_path / "run" / "predictions" / "score.parquet")
    assert rows["label"].max() - rows["label"].min() > 80, "premise: from 2 to 98"
    assert (rows["prediction"] - rows["label"]).abs().mean() < 10  # and not 7.5 for every row
