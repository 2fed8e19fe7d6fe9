"""What a recipe is read as, and what a person is told about one that is wrong: all of it before any data is loaded."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from multitask_sentence.training.mixture.settings import MixtureConfig
from multitask_sentence.training.recipe.recipe import DEFAULT_BACKBONE, Recipe, load_recipe

RECIPES = Path(__file__).parent.parent / "recipes"
TASK = {
    "problem_type": "single_label_classification",
    "dataset": {"path": "csv", "data_files": {"train": "train.csv"}},
    "columns": {"sentence": "text", "label": "label"},
}
PAIR_TASK = {**TASK, "columns": {"sentence1": "a", "sentence2": "b", "label": "label"}}


def load(tmp_path: Path, content: str | dict[str, Any]) -> Recipe:
    path = tmp_path / "mine.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return load_recipe(path)


def load_task(tmp_path: Path, **changes: Any) -> Recipe:
    """A recipe with the one task `topic`, changed; None takes a key away."""
    task = {key: value for key, value in {**TASK, **changes}.items() if value is not None}
    return load(tmp_path, {"tasks": {"topic": task}})


def load_text(tmp_path: Path, task: str = "", training: str = "") -> Recipe:
    """A recipe as a person types it, with more lines for its one task and for the training block."""
    text = f"""
tasks:
  topic:
    problem_type: single_label_classification
    dataset: {{path: csv, data_files: {{train: train.csv}}}}
    columns: {{sentence: text, label: label}}
    {task}
training: {{{training}}}
"""
    return load(tmp_path, text)


# ---- the whole file ----


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipe_loads(path: Path):
    recipe = load_recipe(path)
    assert recipe.settings
    assert [source.name for source in recipe.sources] == list(recipe.settings)
    assert recipe.training["output_dir"] == f"runs/{path.stem}"


def test_recipe_without_settings_gets_the_defaults(tmp_path: Path):
    recipe = load_task(tmp_path)
    assert recipe.backbone == DEFAULT_BACKBONE
    assert (recipe.pooling, recipe.projection, recipe.normalize, recipe.max_length) == (None, None, None, None)
    assert (recipe.mixture, recipe.training) == (MixtureConfig(), {})
    assert recipe.settings["topic"]["pair"] is False
    assert recipe.sources[0].labels is None


def test_two_sentence_columns_make_a_pair_task(tmp_path: Path):
    assert load_task(tmp_path, **PAIR_TASK).settings["topic"]["pair"] is True


def test_missing_recipe_names_the_path_and_an_example(tmp_path: Path):
    with pytest.raises(ValueError, match=r"There is no recipe .*nothing\.yaml\. .*such as recipes/quickstart\.yaml"):
        load_recipe(tmp_path / "nothing.yaml")


def test_folder_as_recipe_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="There is no recipe"):
        load_recipe(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: [", r"mine\.yaml is not YAML: "),
        ("tasks:\n\tsentiment: 1\n", r"(?s)mine\.yaml is not YAML: .*line 2"),
        ("- tasks\n- training\n", r"should be a mapping with tasks, but holds \"\['tasks', 'training'\]\""),
        ("", "should be a mapping with tasks, but holds 'None'"),
        ("just words", "should be a mapping with tasks, but holds 'just words'"),
    ],
)
def test_file_that_is_no_recipe_says_so(tmp_path: Path, text: str, message: str):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, text)


def test_file_that_is_no_text_says_so(tmp_path: Path):
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00tasks")
    with pytest.raises(ValueError, match=r"mine\.yaml is not YAML: .*utf-8"):
        load_recipe(tmp_path / "mine.yaml")


def test_task_named_twice_is_refused_and_not_lost(tmp_path: Path):
    with pytest.raises(ValueError, match=r"(?s)the key 'topic' stands twice.*line 3"):
        load(tmp_path, "tasks:\n  topic: {problem_type: regression}\n  topic: {problem_type: similarity}\n")


# ---- keys and values ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainig": {}}, r"mine\.yaml: recipe: unknown key 'trainig'\. Did you mean 'training'\?.*Known keys: back"),
        ({"tasks": {}}, r"mine\.yaml: tasks is missing or empty\. Name at least one task"),
        ({"tasks": None}, "tasks is missing or empty"),
        ({"calibration": "temprature"}, r"calibration is 'temprature', .* one of temperature, none\. Did you mean"),
        ({"calibration": None}, r"calibration is None, but should be one of temperature, none"),
        ({"tasks": ["topic"]}, r"tasks is \['topic'\], but should be a mapping"),
        ({"tasks": {"my topic": TASK}}, r"mine\.yaml: tasks: the name 'my topic' is not an identifier"),
        ({"tasks": {7: TASK}}, "tasks: the name 7 is not an identifier"),
        ({"tasks": {"embedding": TASK}}, "tasks: the name 'embedding' is taken by the sentence embedding"),
        ({"tasks": {"topic": None}}, r"tasks\.topic\.problem_type is None, but should be one of single_label"),
        ({"tasks": {"topic": "csv"}}, r"tasks\.topic is 'csv', but should be a mapping"),
        ({"pooling": "median"}, r"mine\.yaml: pooling is 'median', but should be one of mean, cls, max\."),
        ({"pooling": "maen"}, r"Did you mean 'mean'\?"),
        ({"pooling": ["mean"]}, r"pooling is \['mean'\], but should be one of"),
        ({"normalize": "always"}, r"mine\.yaml: normalize is 'always', but should be true or false"),
        ({"normalize": 1}, "normalize is 1, but should be true or false"),
        ({"max_length": "128"}, r"mine\.yaml: max_length is '128', but should be a whole number of at least 1"),
        ({"max_length": 0}, "max_length is 0, but should be a whole number"),
        ({"max_length": True}, "max_length is True, but should be a whole number"),
        ({"max_length": 64.0}, r"max_length is 64\.0, but should be a whole number"),
        ({"projection": {"out_features": 0}}, r"mine\.yaml: projection\.out_features is 0, but should be a whole num"),
        ({"projection": {}}, r"projection\.out_features is None"),
        ({"projection": 256}, r"projection is 256, but should be null or like \{out_features: 256"),
        ({"mixture": {"sampling": "uniformly"}}, r"mixture\.sampling is 'uniformly', but should be one of proport"),
        ({"mixture": {"passes": {"topics": 2}}}, r"mixture\.passes: unknown key 'topics'\. Did you mean 'topic'\?"),
        ({"mixture": {"rows_per_batch": {"news": 2}}}, r"mixture\.rows_per_batch: unknown key 'news'.* keys: topic\."),
        ({"mixture": {"passes": {"topic": 0}}}, r"mixture\.passes\.topic is 0, but should be a number above 0"),
        ({"mixture": {"passes": {"topic": float("inf")}}}, r"mixture\.passes\.topic is inf, but should be a number"),
        ({"mixture": {"passes": {"topic": float("nan")}}}, r"mixture\.passes\.topic is nan, but should be a number"),
        ({"mixture": {"passes": 2}}, r"mixture\.passes is 2, but should be a mapping"),
        ({"mixture": {"rows_per_batch": {"topic": 1.5}}}, r"rows_per_batch\.topic is 1\.5, but should be a whole nu"),
        ({"mixture": {"pases": {}}}, r"mixture: unknown key 'pases'\. Did you mean 'passes'\?"),
        ({"training": {"learning_rte": 1}}, r"training: unknown key 'learning_rte'\. Did you mean 'learning_rate'\?"),
        ({"training": 3}, "training is 3, but should be a mapping"),
    ],
)
def test_wrong_setting_is_named_with_its_mend(tmp_path: Path, changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, {"tasks": {"topic": TASK}, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"datasets": {}}, r"mine\.yaml: tasks\.topic: unknown key 'datasets'\. Did you mean 'dataset'\?"),
        ({"pair": True}, r"tasks\.topic: unknown key 'pair'"),
        ({"problem_type": None}, r"tasks\.topic\.problem_type is None"),
        ({"problem_type": "single_label"}, r"problem_type is 'single_label', .* Did you mean 'single_label_classif"),
        ({"dataset": None}, r"tasks\.topic: dataset is missing\. Give the arguments of datasets\.load_dataset"),
        ({"dataset": "train.csv"}, r"tasks\.topic\.dataset is 'train\.csv', but should be a mapping"),
        ({"columns": "text"}, r"tasks\.topic\.columns is 'text', but should be a mapping"),
        ({"metrics": ["spearman"]}, r"tasks\.topic\.metrics \(single_label_classification\): a metric is 'spearman'"),
        ({"metrics": "accuracy"}, r"tasks\.topic\.metrics is 'accuracy', but should be a list"),
        ({"metrics": ["f1"]}, r"mine\.yaml: tasks\.topic\.f1_labels is missing"),
        (
            {"metrics": ["f1"], "labels": ["a", "b"], "f1_labels": ["c"]},
            r"tasks\.topic\.f1_labels: a label is 'c', but should be one of a, b",
        ),
        (
            {"metrics": ["f1"], "f1_labels": ["c"], "loss_options": {"class_weights": {"a": 1, "b": 2}}},
            r"tasks\.topic\.f1_labels: a label is 'c', but should be one of a, b",
        ),
        ({"metrics": ["f1"], "f1_labels": [["a"]]}, r"tasks\.topic\.f1_labels holds \['a'\], but should hold names"),
        ({"loss": "mse"}, r"tasks\.topic\.loss \(single_label_classification\) is 'mse', .* one of cross_entropy"),
        ({"loss_weight": -1}, r"tasks\.topic\.loss_weight is -1, but should be a number of at least 0"),
        (
            {"head": {"hidden_dim": [8]}},
            r"tasks\.topic\.head: unknown key 'hidden_dim'\. Did you mean 'hidden_dims'\?",
        ),
        ({"labels": ["only"]}, r"tasks\.topic\.labels is \['only'\], but should list at least 2"),
        ({"labels": "positive"}, r"tasks\.topic\.labels is 'positive', but should list at least 2"),
        ({"labels": []}, r"tasks\.topic\.labels is \[\], but should list at least 2"),
        (
            {"labels": ["a", None]},
            r"tasks\.topic\.labels holds None, but should hold names\. Put the name into quotes",
        ),
        ({"problem_type": "regression", "labels": ["a", "b"]}, r"topic\.labels has no meaning for problem_type regr"),
        ({"problem_type": "similarity", "loss": "cosine"}, r"one of cosent, cosine_mse\. Did you mean 'cosine_mse'\?"),
        ({"problem_type": "similarity", "head": {"hidden_dims": [8]}}, r"tasks\.topic\.head has no meaning"),
    ],
)
def test_wrong_task_is_named_with_its_mend(tmp_path: Path, changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        load_task(tmp_path, **changes)


# ---- YAML's traps ----


@pytest.mark.parametrize("written", ["1e-4", "1E-4", "1.0e-4", "0.0001", "1.e-4"])
def test_number_with_exponent_is_a_number(tmp_path: Path, written: str):
    recipe = load_text(tmp_path, task=f"loss_weight: {written}", training=f"learning_rate: {written}")
    assert recipe.training["learning_rate"] == 1e-4
    assert recipe.settings["topic"]["loss_weight"] == 1e-4


@pytest.mark.parametrize(
    ("written", "labels"),
    [
        ("[no, yes]", ["no", "yes"]),
        ("[Off, On]", ["Off", "On"]),
        ("[false, true]", ["false", "true"]),
        ("[False, True]", ["false", "true"]),
        ("[0, 1]", ["0", "1"]),
        ("[-1, 0.5]", ["-1", "0.5"]),
        ("['1e5', 'true']", ["1e5", "true"]),
    ],
)
def test_labels_are_the_names_that_were_written(tmp_path: Path, written: str, labels: list[str]):
    recipe = load_text(tmp_path, task=f"labels: {written}")
    assert recipe.sources[0].labels == recipe.settings["topic"]["labels"] == labels


@pytest.mark.parametrize(
    ("lines", "chosen"),
    [
        (["labels: [no, yes]", "f1_labels: [no]"], ["no"]),
        (["labels: [false, true]", "f1_labels: [true]"], ["true"]),
        (["f1_labels: [1, 0]"], ["1", "0"]),  # the labels are in the data
        (["f1_labels: [a, b]", "loss_options: {class_weights: [1, 2, 3]}"], ["a", "b"]),
    ],
)
def test_classes_of_f1_are_the_names_that_were_written(tmp_path: Path, lines: list[str], chosen: list[str]):
    recipe = load_text(tmp_path, task="\n    ".join(["metrics: [f1]", *lines]))
    assert recipe.settings["topic"]["f1_labels"] == recipe.tasks["topic"].f1_labels == chosen


def test_strategy_no_is_the_word(tmp_path: Path):
    assert load_text(tmp_path, training="eval_strategy: no, bf16: true").training == {
        "eval_strategy": "no",
        "bf16": True,
    }


def test_anchored_dataset_is_shared(tmp_path: Path):
    text = """
tasks:
  topic: &first
    problem_type: single_label_classification
    dataset: {path: csv, data_files: {train: train.csv}}
    columns: {sentence: text, label: topic}
  mood:
    <<: *first
    columns: {sentence: text, label: mood}
"""
    sources = load(tmp_path, text).sources
    assert sources[0].dataset == sources[1].dataset
    assert [source.columns["label"] for source in sources] == ["topic", "mood"]


def test_task_names_whose_scores_would_share_a_name_are_refused(tmp_path: Path) -> None:
    pairs, rating = {**PAIR_TASK, "problem_type": "similarity"}, {**TASK, "problem_type": "regression"}
    with pytest.raises(
        ValueError, match="'pairs' and 'pairs_cosine' would both report a score called pairs_cosine_spearman"
    ):
        load(tmp_path, {"tasks": {"pairs": pairs, "pairs_cosine": rating}})


def test_task_names_clash_only_in_scores_that_are_measured(tmp_path: Path) -> None:
    both = {"a": {**TASK, "metrics": ["accuracy"]}, "a_macro": {**TASK, "metrics": ["f1"], "f1_labels": ["x"]}}
    assert list(load(tmp_path, {"tasks": both}).tasks) == ["a", "a_macro"]
    both["a"]["metrics"].append("macro_f1")
    with pytest.raises(ValueError, match="'a' and 'a_macro' would both report a score called a_macro_f1"):
        load(tmp_path, {"tasks": both})


# ---- YAML that no setting can be ----


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("!!bool maybe", r"'maybe' cannot be read as true or false \(line 7, column 18\)$"),
        ("!!int ''", r"'' cannot be read as whole number \(line 7"),
        ("!!float x", r"'x' cannot be read as number \(line 7"),
        ("!!int " + "7" * 5000, r"'7{49}\.\.\.' cannot be read as whole number \(line 7"),
        ("!!null x", None),
        ("!!map x", r"expected a mapping node, but found scalar \(line 7"),
        ("!!set {a, b}", r"could not determine a constructor for the tag 'tag:yaml\.org,2002:set' \(line 7"),
        ("!!timestamp 2020-01-01", "could not determine a constructor for the tag"),
        ("!!python/object/apply:os.system [ls]", "could not determine a constructor for the tag"),
        ("!mine 5", "could not determine a constructor for the tag '!mine'"),
        ("7" * 400, r"tasks\.topic\.loss_weight is a whole number beyond 2 to the power of 63"),
        ("&me [*me]", r"tasks\.topic\.loss_weight\.1 holds itself: an alias \(\*name\) stands within"),
        ("[" * 60 + "]" * 60, r"is nested more than 50 levels deep"),
        ("[" * 3000 + "]" * 3000, r"mine\.yaml is not YAML that can be read: it is nested too deeply\."),
        (r'"\ud83d"', r"tasks\.topic\.loss_weight is '\\ud83d', which holds half a character"),
        ("{<<: 5}", r"expected a mapping or list of mappings for merging, but found scalar \(line 7"),
        ("{[a]: 1, {b: 2}: 3}", r"found unhashable key \(line 7"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else None,
)
def test_yaml_that_no_setting_can_be_is_refused_in_one_line_with_its_place(
    tmp_path: Path, written: str, message: str | None
):
    if message is None:
        assert load_text(tmp_path, task=f"loss_weight: {written}").settings["topic"].get("loss_weight") is None
        return
    with pytest.raises(ValueError, match=message) as caught:
        load_text(tmp_path, task=f"loss_weight: {written}")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_aliases_that_write_out_to_a_million_values_are_refused(tmp_path: Path):
    levels = ["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    levels += [f"{to}: &{to} [{', '.join([f'*{of}'] * 10)}]" for of, to in zip("abcdefgh", "bcdefghi", strict=True)]
    with pytest.raises(ValueError, match="holds more than 1,000,000 values with its aliases written out"):
        load(tmp_path, "\n".join(levels))


@pytest.mark.parametrize("written", ["2020-01-01", "=", "12:30:45 x"])
def test_text_that_old_yaml_reads_otherwise_is_text(tmp_path: Path, written: str):
    assert load_text(tmp_path, training=f"run_name: {written}").training == {"run_name": written}


def test_file_with_a_byte_order_mark_is_read(tmp_path: Path):
    text = yaml.safe_dump({"tasks": {"topic": TASK}})
    (tmp_path / "mine.yaml").write_text("\ufeff" + text, encoding="utf-8")
    assert list(load_recipe(tmp_path / "mine.yaml").settings) == ["topic"]


# ---- how label cells and texts are read ----

READING = {
    "labels": ["bad", "good"],
    "label_map": {"NEG": "bad", 1: "bad", "2": "good"},
    "missing_labels": ["N/A", -1],
    "empty_text": "drop",
    "contradictions": "majority",
}


def test_reading_rules_are_kept_as_they_are_written(tmp_path: Path):
    source = load_task(tmp_path, **READING).sources[0]
    assert {key: getattr(source, key) for key in READING} == READING


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_separator": ", "}, r"tasks\.topic\.label_separator has no effect on a task of type single_label"),
        ({"problem_type": "multi_label_classification", "label_separator": ""}, r"label_separator is '', but should"),
        ({"problem_type": "multi_label_classification", "label_separator": 1}, r"label_separator is 1, but should"),
        (
            {
                "problem_type": "multi_label_classification",
                "columns": {"sentence": "text", "label": ["a", "b"]},
                "label_separator": ";",
            },
            r"tasks\.topic\.label_separator has no effect where tasks\.topic\.columns\.label lists 0/1 columns",
        ),
        ({"label_map": ["NEG"]}, r"tasks\.topic\.label_map is \['NEG'\], but should be a mapping"),
        ({"label_map": {}}, r"tasks\.topic\.label_map is \{\}, but should be a mapping"),
        ({"label_map": {"NEG": ["a"]}}, r"tasks\.topic\.label_map\.NEG holds \['a'\] where the name of a label"),
        ({"label_map": {"NEG": None}}, r"label_map: 'NEG' has no label.*missing_labels: \[NEG\]"),
        ({"label_map": {"x": "a", "x ": "b"}}, r"label_map: 'x' stands twice, for 'a' and 'b'"),
        ({"label_map": {"a": "b", "b": "c"}}, r"label_map: 'a' becomes 'b', which becomes 'c'.*such as a: c"),
        ({"label_map": {"a": "b", "b": "a"}}, r"label_map: 'a' becomes 'b', which becomes 'a'"),
        ({"label_map": {"NEG": "bda"}, "labels": ["bad", "good"]}, r"'bda', which is not a label.*Did you mean 'bad'"),
        (
            {"label_map": {"bad": "good"}, "labels": ["bad", "good"]},
            r"'bad' becomes 'good', but is a label of the task",
        ),
        ({"label_map": {"a": "b"}, "missing_labels": ["a"]}, r"missing_labels says that 'a' is no label"),
        ({"label_map": {"a": "b"}, "missing_labels": ["b"]}, r"missing_labels says that 'b' is no label"),
        ({"missing_labels": "N/A"}, r"tasks\.topic\.missing_labels is 'N/A', but should be a list of names"),
        ({"missing_labels": [None]}, r"tasks\.topic\.missing_labels holds nothing.*Put it into quotes"),
        ({"missing_labels": ["bad"], "labels": ["bad", "good"]}, r"missing_labels holds 'bad', which is a label of"),
        (
            {"empty_text": "dorp"},
            r"tasks\.topic\.empty_text is 'dorp', but should be one of error, drop\. Did you mean",
        ),
        ({"empty_text": True}, r"tasks\.topic\.empty_text is True"),
        ({"contradictions": "mean"}, r"tasks\.topic\.contradictions is 'mean', .* keep, drop, majority"),
        ({"problem_type": "regression", "contradictions": "majority"}, r"is 'majority', .* keep, drop, mean"),
        (
            {"problem_type": "regression", "label_map": {"a": "b"}},
            r"label_map has no effect on a task of type regression",
        ),
        (
            {
                "problem_type": "contrastive",
                "columns": {"anchor": "a", "positive": "b"},
                "missing_labels": ["-"],
            },
            r"tasks\.topic\.missing_labels has no effect on a task of type contrastive",
        ),
    ],
)
def test_wrong_reading_rule_is_an_error_before_data_is_loaded(tmp_path: Path, changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        load_task(tmp_path, **changes)


def test_codes_with_leading_zeros_and_times_are_text_in_a_recipe(tmp_path: Path):
    recipe = load_text(tmp_path, "labels: [00501, 501, 007, 12:30]\n    label_map: {05: 00501}")
    assert recipe.settings["topic"]["labels"] == ["00501", "501", "007", "12:30"]
    assert recipe.sources[0].label_map == {"05": "00501"}


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"language": {"en": 1}}, r"card\.language is \{'en': 1\}, but should be a code such as en, or a list"),
        ({"language": [1]}, r"card\.language is \[1\], but should be a code"),
        ({"license": ["mit"]}, r"card\.license is \['mit'\], but should be a name such as apache-2\.0\."),
        ({"license": False}, r"card\.license is False, but should be a name"),
    ],
)
def test_card_that_could_not_be_written_after_training_is_refused_before(
    tmp_path: Path, card: dict[str, Any], message: str
):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, {"tasks": {"topic": TASK}, "card": card})


def test_card_of_one_language_or_several_is_taken(tmp_path: Path):
    for language in ("no", ["no", "de"], None):
        assert load(tmp_path, {"tasks": {"topic": TASK}, "card": {"language": language}}).card == {
            "language": language
        }
