"""The model card: header, scores, quickstarts, pictures, and what happens to a card that somebody edited."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from huggingface_hub.utils import validate_repo_id

from multitask_sentence import MultiTaskConfig, MultiTaskModel
from multitask_sentence.commands import card
from multitask_sentence.training.card import body
from multitask_sentence.training.card.body import FOLDER_PLACEHOLDER
from multitask_sentence.training.card.metadata import read_source
from multitask_sentence.training.card.model_card import write_model_card
from multitask_sentence.training.evaluation.reliability import count_forecasts, describe_forecasts
from multitask_sentence.training.report.confusion import count_confusion, read_confusion
from multitask_sentence.training.report.markdown import code_span, link_target, plain_text, table
from multitask_sentence.training.report.plots import draw_confusion, draw_training
from multitask_sentence.training.report.publish import is_generated

pytestmark = pytest.mark.usefixtures("drawn_pictures")

# What must be told apart in Markdown and drawn without being read as a formula.
ODD_LABELS = ["a|b", "two\nlines", "`code`", "$x^$", "<b>", "*star*", "喜び", "_under_", " ", "a ``b"]
MANY_LABELS = [*ODD_LABELS, *(f"feeling {number}" for number in range(28 - len(ODD_LABELS)))]


def make_results(tasks: dict[str, dict[str, Any]], backbone: str, folder: Path) -> dict[str, Any]:
    """results.json of a run that was not made: every score is another number, so that none can stand for another."""
    scores: dict[str, Any] = {
        split: {
            task: {
                "loss": 1.5,
                **{metric: 0.1 * number + place / 100 + shift for place, metric in enumerate(settings["metrics"])},
            }
            for number, (task, settings) in enumerate(tasks.items(), 1)
        }
        for split, shift in (("validation", 0.005), ("test", 0.0))
    }
    return {
        "scores": scores,
        "best_step": 15,
        "best_metric": 0.5,
        "steps": 20,
        "epochs": 2.0,
        "seconds": 12.3,
        "rows": {task: {"train": 40, "validation": 10, "test": 12} for task in tasks},
        "rows_per_epoch": 40 * len(tasks),
        "backbone": backbone,
        "tasks": tasks,
        "mixture": {"passes": {next(iter(tasks)): 0.5}},
        "training": {
            "output_dir": str(folder),
            "learning_rate": 5e-5,
            "load_best_model_at_end": True,
            "metric_for_best_model": "eval_score",
            "hub_token": "hf_secret",
        },
        "processes": 1,
        "versions": {"python": "3.11", "torch": "2.13.0"},
        "history": [],  # drawing takes a second
    }


def make_history(tasks: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """What the Trainer logs: losses and scores by turns; the second score of all is undefined."""
    history: list[dict[str, Any]] = []
    for step in range(5, 25, 5):
        history.append({"step": step, "loss": 9 / step, **{f"loss_{task}": 1 / step for task in tasks}})
        primary = {f"eval_{task}_{settings['metrics'][0]}": step / 30 for task, settings in tasks.items()}
        history.append({"step": step, "eval_score": step / 30, **primary})
    history[3][f"eval_{next(iter(tasks))}_{next(iter(tasks.values()))['metrics'][0]}"] = float("nan")
    return history


@pytest.fixture
def finished(tiny_model: MultiTaskModel, tiny_backbone: str, tmp_path: Path) -> Path:
    """A saved folder with one task of each kind and 28 oddly named labels; two tasks read one data set of the Hub."""
    folder = tmp_path / "somewhere" / "tiny"
    tiny_model.add_task("emotion", {"problem_type": "single_label_classification", "labels": MANY_LABELS})
    tiny_model.save_pretrained(folder)
    tasks = json.loads(json.dumps(tiny_model.config.to_dict()["tasks"]))
    files = {"train": str(tmp_path / "data" / "train.csv"), "test": "../rows/test.csv"}
    recipe = {task: {"dataset": {"path": "csv", "data_files": files}} for task in tasks}
    recipe["mood"] = recipe["emotion"] = {"dataset": {"path": "user/moods", "name": "english"}}
    recipe["rating"] = {"dataset": {"path": "our/folder"}, "validation_split": 0.1, "test_split": 0.2}
    (tmp_path / "data" / "our" / "folder").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"tasks": recipe}, sort_keys=False), encoding="utf-8")
    write_results(folder, make_results(tasks, tiny_backbone, folder))
    return folder


def read_results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def write_results(folder: Path, results: dict[str, Any]) -> None:
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")


def header_of(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8").split("---\n")[1])


def test_header_parses_and_survives_saving_and_loading(finished: Path):
    path = write_model_card(finished, "user/tiny", ["en", "no"], "apache-2.0", finished.parent.parent / "data")
    card = ModelCard.load(path)
    assert path == finished / "README.md"
    assert card.data.language == ["en", "no"]
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "transformers")
    assert card.data.datasets == ["user/moods"], "neither files nor folders are data sets of the Hub"
    assert {"multitask", "sentence-transformers", "text-classification", "custom_code"} <= set(card.data.tags)
    assert "base_model" not in card.data.to_dict(), "the tiny backbone is a folder"
    card.save(finished / "again.md")
    again = ModelCard.load(finished / "again.md")
    assert again.data.to_dict() == card.data.to_dict() and again.text == card.text


# `ModelCard.validate` asks the Hub. What it is known to ask for is checked here without it: a name, task type, data
# set name and type, metric type and value each, and types that have the form of a Hub id.
def test_model_index_has_what_the_hub_asks_for(finished: Path):
    (model,) = header_of(write_model_card(finished))["model-index"]
    assert model["name"] == "tiny"
    for result in model["results"]:
        assert result["task"]["type"] in ("text-classification", "sentence-similarity")
        assert result["dataset"]["name"]
        validate_repo_id(result["dataset"]["type"])
        for metric in result["metrics"]:
            assert metric["type"] and math.isfinite(metric["value"])


def test_model_index_holds_every_test_score_of_every_task(finished: Path):
    header = header_of(write_model_card(finished))
    name, found = model_index_to_eval_results(header["model-index"])
    results = read_results(finished)
    expected = {
        (f"{task} {metric.replace('_', ' ')}", results["scores"]["test"][task][metric])
        for task, settings in results["tasks"].items()
        for metric in settings["metrics"]
    }
    assert name == "tiny"
    assert {(result.metric_name, result.metric_value) for result in found} == expected
    assert len(found) == len(expected)
    assert {result.dataset_name for result in found if result.metric_name.startswith("tags ")} == {
        "local data of tags"
    }, "tasks on local files keep apart"
    parsed = ModelCard.load(finished / "README.md").data.eval_results
    assert sorted(map(str, parsed)) == sorted(map(str, found))


def test_sentence_about_many_tasks_names_the_first_ones(finished: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(body, "MOST_NAMED", 2)
    first, second, *others = read_results(finished)["tasks"]
    text = write_model_card(finished).read_text(encoding="utf-8")
    assert f"{len(others) + 2} tasks (`{first}`, `{second}` and {len(others)} more) from the same pass" in text


def test_f1_of_chosen_classes_says_which(finished: Path):
    config, results = json.loads((finished / "config.json").read_text(encoding="utf-8")), read_results(finished)
    for tasks in (config["tasks"], results["tasks"]):
        tasks["mood"] |= {"metrics": ["f1"], "f1_labels": ["positive", "negative"]}
    (finished / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for scores in results["scores"].values():
        scores["mood"]["f1"] = 0.25
    write_results(finished, results)
    path = write_model_card(finished)
    assert re.search(r"\| `mood` +\| f1 of `positive`, `negative` +\|", path.read_text(encoding="utf-8"))
    (found,) = [result for result in ModelCard.load(path).data.eval_results if result.metric_name == "mood f1"]
    assert (found.metric_type, found.metric_args) == ("f1", {"average": "macro", "labels": [2, 0]})


@pytest.mark.parametrize("undefined", [float("nan"), None], ids=["NaN", "null"])
def test_undefined_score_is_no_number(finished: Path, undefined: float | None):
    results = read_results(finished)
    results["scores"]["test"]["similarity"]["cosine_spearman"] = undefined
    write_results(finished, results)
    path = write_model_card(finished)
    names = [result.metric_name for result in ModelCard.load(path).data.eval_results]
    assert "similarity cosine spearman" not in names and "mood accuracy" in names
    text = path.read_text(encoding="utf-8")
    assert "nan" not in re.findall(r"\w+", text.lower())
    assert re.search(r"\| `similarity` +\| cosine spearman +\| +0\.6050 \| +undefined \|", text)


def test_run_without_test_scores_has_no_model_index(finished: Path):
    results = read_results(finished)
    del results["scores"]["test"]
    write_results(finished, results)
    path = write_model_card(finished)
    assert "model-index" not in header_of(path)
    assert "Not tested: `mood`" in path.read_text(encoding="utf-8")


def test_tables_keep_their_columns_whatever_labels_are_called(finished: Path):
    text = write_model_card(finished).read_text(encoding="utf-8")
    tables = [lines.splitlines() for lines in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)]
    assert len(tables) == 3
    for lines in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert "28, listed below" in text
    (listed,) = re.findall(r"The 28 labels of `emotion`: (.*)\.\n", text)
    assert listed == ", ".join(map(code_span, MANY_LABELS))


@pytest.mark.parametrize(
    ("label", "expected"),
    [("plain", "`plain`"), ("a\n b", "`a b`"), (" ", "`(empty)`"), ("`a`", "`` `a` ``"), ("a ``b", "``` a ``b ```")],
)
def test_code_span_shows_a_label_as_it_is(label: str, expected: str):
    assert code_span(label) == expected


# Every character that Markdown or HTML gives a meaning, and what people have put into names to break a page.
NASTY = ["<script>alert(1)</script>", "[click](javascript:x)", "![](http://x/y.png)", "*b* _i_ ~~s~~", "# no | table"]
NASTY += ["&amp; &lt;", "a](b)", "back\\slash", "```\nfence", "two\nlines", "<!-- comment", "{{ 7 * 7 }}", "{% raw %}"]


@pytest.mark.parametrize("name", NASTY)
def test_no_name_is_read_as_markup(name: str):
    shown = " ".join(name.split())
    assert unescape_markdown(plain_text(name)) == shown
    for mark in ("<", "[", "`", "|", "&", "*", "!["):
        assert not re.search(rf"(?<!\\){re.escape(mark)}", plain_text(name).replace("\\\\", "")), mark
    span = code_span(name)
    fence = re.match("`+", span).group()
    assert fence not in span[len(fence) : -len(fence)] and "\n" not in span
    lines = table([[span, 1], [plain_text(name), 2]], ["name", "number"]).splitlines()
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines if "no \\\\|" not in line} == {3}


def unescape_markdown(text: str) -> str:
    """CommonMark: a backslash before ASCII punctuation stands for that character."""
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text)


def test_a_link_ends_where_it_is_meant_to():
    assert link_target('a b)(c]<d>"e') == "a%20b%29%28c%5D%3Cd%3E%22e"
    assert link_target("https://host.org/a/b.csv?x=1") == "https://host.org/a/b.csv?x=1"


def test_folder_with_a_nasty_name_gives_a_card_that_shows_it(finished: Path):
    name = "my <b>model</b> [x](y) {{ 7 * 7 }} : 'q' \"w\""
    folder = finished.rename(finished.parent / name.replace("/", "%"))
    text = write_model_card(folder).read_text(encoding="utf-8")
    assert yaml.safe_load(text.split("---\n")[1])["model-index"][0]["name"] == folder.name
    (heading,) = re.findall("^# (.*)$", text, flags=re.MULTILINE)
    assert unescape_markdown(heading) == folder.name
    assert "<b>model" not in heading.replace("\\<", "")


def test_labels_that_look_like_templates_stay_as_they_are(finished: Path):
    config = MultiTaskConfig.from_pretrained(finished)
    config.tasks["mood"].labels[:2] = ["{{ 7 * 7 }}", "{% raw %}"]
    config.save_pretrained(finished)
    text = write_model_card(finished).read_text(encoding="utf-8")
    assert "`{{ 7 * 7 }}`, `{% raw %}`" in text and "49" not in text.split("## Tasks")[1].split("## Scores")[0]


def test_card_says_how_batches_were_drawn(finished: Path):
    results = read_results(finished)
    for mixture, expected in (
        ({}, "A batch mixes rows of all tasks (proportional sampling)"),
        ({"batches": "single_task", "sampling": "sqrt"}, "A batch holds rows of one data set (sqrt sampling)"),
        ({"sampling": "temperature", "temperature": 3}, "(temperature 3 sampling)"),
        ({"sampling": "rates", "rates": {"mood": 0.75}}, "Shares of an epoch's rows: `mood` 0.75."),
        ({"max_rows": {"mood": 500, "tags": 2}}, "Training rows that are used at most: `mood` 500, `tags` 2."),
    ):
        write_results(finished, results | {"mixture": mixture})
        assert expected in write_model_card(finished).read_text(encoding="utf-8")


def test_card_says_which_checkpoint_was_kept_and_why(finished: Path):
    sentence = "The checkpoint of step 15 was kept, for the best eval_score 0.5000."
    assert sentence in write_model_card(finished).read_text(encoding="utf-8")
    results = read_results(finished)
    results["best_eval_score"] = results.pop("best_metric")  # as of an earlier version
    write_results(finished, results)
    assert sentence in write_model_card(finished).read_text(encoding="utf-8")


def test_command_writes_the_card_and_says_where(finished: Path, capsys: pytest.CaptureFixture, tmp_path: Path):
    card.main([str(finished), "--license", "mit", "--language", "en"])
    assert capsys.readouterr().out == f"{finished / 'README.md'}\n"
    assert header_of(finished / "README.md")["license"] == "mit"
    with pytest.raises(SystemExit, match=r"error: .* holds no results\.json, so it is no finished run"):
        card.main([str(tmp_path)])
    (finished / "README.md").unlink()
    (finished / "README.md").mkdir()
    with pytest.raises(SystemExit, match=r"error: .*README\.md"):
        card.main([str(finished)])


def test_card_gives_away_no_path_and_no_token(finished: Path, tmp_path: Path):
    text = write_model_card(finished, data_root=tmp_path / "data").read_text(encoding="utf-8")
    assert str(tmp_path) not in text and tmp_path.name not in text
    assert "hf_secret" not in text
    assert "`train.csv` (train), `rows/test.csv` (test)" in text
    aside = "10% of the training rows set aside for validation, 20% of the training rows set aside for test"
    assert f"the local folder `our/folder`, {aside}" in text


def test_file_on_the_web_is_shown_without_user_and_query(tmp_path: Path):
    dataset = {"path": "csv", "data_files": "https://user:word@host.org/a/b.csv?token=1"}
    assert read_source({"dataset": dataset}, tmp_path).description == (
        "local csv files: `https://host.org/a/b.csv` (train)"
    )


def test_backbone_from_the_hub_is_the_base_model(finished: Path):
    write_results(finished, read_results(finished) | {"backbone": "sentence-transformers/all-MiniLM-L6-v2"})
    assert header_of(write_model_card(finished))["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"


def test_task_added_or_removed_since_training_is_in_the_card_as_it_is(finished: Path):
    config = MultiTaskConfig.from_pretrained(finished)
    config.tasks = {
        **{task: settings for task, settings in config.tasks.items() if task != "tags"},
        "new": config.tasks["mood"],
    }
    config.save_pretrained(finished)
    text = write_model_card(finished).read_text(encoding="utf-8")
    assert "`tags`" not in text and "tags macro f1" not in text
    assert "Not tested: `new`." in text


def test_quickstarts_run_as_written(finished: Path):
    pytest.importorskip("sentence_transformers")
    text = write_model_card(finished).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        assert FOLDER_PLACEHOLDER in block
        lines = block.replace(FOLDER_PLACEHOLDER, str(finished)).splitlines()
        variables: dict[str, Any] = {}
        for line in lines:
            code, _, comment = line.partition("  #")
            shape = re.search(r"\((\w+, )+\w+\)$", comment)
            if shape is None:
                exec(line, variables)
                continue
            found = eval(code, variables)
            shown = [word.strip("()") for word in shape.group().split(", ")]
            for size, word in zip(getattr(found, "shape", found), shown, strict=True):
                assert word == "tokens" or size == int(word), line


def test_card_names_the_repository_it_goes_to(finished: Path):
    text = write_model_card(finished, repo_id="user/name").read_text(encoding="utf-8")
    assert 'AutoModel.from_pretrained("user/name", trust_remote_code=True)' in text
    assert "# name\n" in text and FOLDER_PLACEHOLDER not in text


def test_second_run_changes_nothing(finished: Path):
    results = read_results(finished)
    results["history"] = make_history(results["tasks"])
    results["confusion"] = {"entails": count_confusion([0, 1, 1], [0, 1, 0], 2)}
    write_results(finished, results)

    def contents() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in finished.iterdir()}

    write_model_card(finished)
    first = contents()
    assert {"README.md", "training.png", "confusion_entails.png"} <= set(first)
    write_model_card(finished)
    assert contents() == first


def test_command_keeps_the_language_and_the_licence_of_the_recipe(finished: Path):
    recipe = finished / "recipe.yaml"
    recipe.write_text(
        recipe.read_text(encoding="utf-8") + "card: {language: [en, no], license: mit}\n", encoding="utf-8"
    )
    card.main([str(finished)])
    header = header_of(finished / "README.md")
    assert (header["language"], header["license"]) == (["en", "no"], "mit")
    card.main([str(finished), "--license", "apache-2.0"])
    header = header_of(finished / "README.md")
    assert (header["language"], header["license"]) == (["en", "no"], "apache-2.0")


def test_unedited_card_is_written_anew(finished: Path):
    write_model_card(finished)
    path = write_model_card(finished, license="mit")
    assert path.name == "README.md" and header_of(path)["license"] == "mit"


@pytest.mark.parametrize("edit", ["header", "body", "unmarked", "after the mark"])
def test_edited_card_is_kept(finished: Path, edit: str, monkeypatch: pytest.MonkeyPatch):
    warnings: list[str] = []
    monkeypatch.setattr("multitask_sentence.training.card.model_card.logger.warning", warnings.append)
    path = write_model_card(finished)
    text = path.read_text(encoding="utf-8")
    edited = {
        "header": text.replace("library_name", "license: mit\nlibrary_name", 1),
        "body": text.replace("## Limits", "## Known limits"),
        "unmarked": "# My own card\n",
        "after the mark": text + "One more line.\n",
    }[edit]
    assert is_generated(text) and not is_generated(edited)
    path.write_text(edited, encoding="utf-8")
    written = write_model_card(finished)
    assert path.read_text(encoding="utf-8") == edited
    assert written.name == "README.generated.md" and written.read_text(encoding="utf-8") == text
    assert len(warnings) == 1 and "README.md was edited" in warnings[0] and "README.generated.md" in warnings[0]


def test_pictures_are_drawn_and_shown(finished: Path):
    results = read_results(finished)
    numbers = np.arange(280) % 28
    rows = (numbers[:, None] % 4 == np.arange(4)).astype(int)
    results["history"] = make_history(results["tasks"])
    results["confusion"] = {
        "emotion": count_confusion(numbers, numbers * 3 % 28, 28),
        "tags": {"split": "validation", **count_confusion(rows, 1 - rows, 4)},
    }
    write_results(finished, results)
    text = write_model_card(finished).read_text(encoding="utf-8")
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert sorted(shown) == ["confusion_emotion.png", "confusion_tags.png", "training.png"]
    for name in shown:
        picture = (finished / name).read_bytes()
        assert picture.startswith(b"\x89PNG") and len(picture) < 500_000


@pytest.mark.filterwarnings("error")  # a missing glyph is a warning of matplotlib's
def test_odd_labels_are_drawn_without_a_warning(tmp_path: Path):
    numbers = np.arange(len(ODD_LABELS))
    counted = count_confusion(numbers, numbers, len(ODD_LABELS))
    draw_confusion(tmp_path / "odd.png", "odd", ODD_LABELS, read_confusion(counted))
    assert (tmp_path / "odd.png").is_file()


def test_history_without_losses_and_scores_draws_nothing(tmp_path: Path):
    assert not draw_training(tmp_path / "training.png", [{"step": 3, "train_runtime": 1.0}], {})
    assert not list(tmp_path.iterdir())


def test_rows_set_aside_for_test_are_measured_in_the_train_split_of_the_hub(tmp_path: Path):
    dataset = {"path": "user/moods", "splits": {"train": "full", "test": "held"}}
    assert read_source({"dataset": dataset}, tmp_path).test_split == "held"
    assert read_source({"dataset": dataset, "test_split": 0.1}, tmp_path).test_split == "full"


def test_card_shows_when_tasks_abstain_and_what_the_promise_came_to(finished: Path):
    counted = {"rows": 100, "answered": 60, "wrong": 3, "coverage": 0.6, "risk": 0.05}
    entry = {"certainty": 0.95, "lowest_risk": 0.0312, "curve": {"coverage": [0.5, 1.0], "risk": [0.02, 0.2]}}
    kept = {"risk": 0.0625, "confidence": 0.75, "splits": {"validation": {**counted, "risk": 0.0417}, "test": counted}}
    none = {**counted, "answered": 0, "wrong": 0, "coverage": 0.0, "risk": None}
    results = read_results(finished)
    results["abstention"] = {
        "mood": {**entry, **kept},
        "tags": {**entry, "risk": 0.01, "confidence": None, "splits": {"test": none}},
    }
    write_results(finished, results)
    text = write_model_card(finished).read_text(encoding="utf-8")
    section = text[text.index("## Abstention") : text.index("## Training")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "|" in line]
    assert rows[2:] == [
        ["`mood`", "0.0625", "0.7500", "validation", "0.6000", "0.0417"],
        ["", "", "", "test", "0.6000", "0.0500"],
        ["`tags`", "0.0100", "-", "test", "0.0000", "-"],
    ]
    assert "`tags`: no confidence keeps the risk within 0.01 at 95% certainty, so that it gives no label." in section
    assert "The lowest risk that one keeps is 0.0312;" in section
    assert (finished / "risk_coverage.png").stat().st_size > 10_000


def test_card_shows_calibration_before_and_after(finished: Path):
    bins = count_forecasts(np.array([[0.9, 0.1], [0.8, 0.2]]), np.array([0, 1]))
    milder = count_forecasts(np.array([[0.7, 0.3], [0.6, 0.4]]), np.array([0, 1]))
    entry = {"split": "test", "temperatures": [], "before": describe_forecasts(bins), "after": None, "left_out": "why"}
    after = {"temperatures": [2.25], "after": describe_forecasts(milder), "left_out": None}
    results = read_results(finished)
    results["calibration"] = {"mood": {**entry, **after}, "tags": entry}
    write_results(finished, results)
    text = write_model_card(finished).read_text(encoding="utf-8")
    section = text[text.index("## Calibration") : text.index("## Training")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "test" in line]
    # Gaps of 0.1 and 0.8, each of half the rows; then of 0.3 and 0.6. Two classes double the squares.
    assert rows[-2:] == [
        ["`mood`", "test", "2.25", "0.4500", "0.4500", "0.6500", "0.4500"],
        ["`tags`", "test", "none", "0.4500", "-", "0.6500", "-"],
    ]
    assert "`tags` is not calibrated: why." in section
    assert "![How often probabilities come true](reliability.png)" in section
    assert (finished / "reliability.png").stat().st_size > 10_000
