"""Teachers: which models may teach which tasks, what they answer, and what of them a cache is keyed by."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tqdm.auto import tqdm
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, PreTrainedTokenizerFast

from multitask_sentence import MultiTaskModel
from multitask_sentence.tasks_multitask import complete_task
from multitask_sentence.training.distillation.settings import TeacherName, read_distillation
from multitask_sentence.training.distillation.teachers import find_teacher, match_labels, open_teacher

TASKS = ["mood", "distance", "similarity"]
MOOD = {"problem_type": "single_label_classification", "labels": ["positive", "negative", "neutral"]}
DISTANCE = {"problem_type": "regression", "pair": True}
SENTENCES = ["the cat sat", "a dog ran in the park today and it was very good", "", "bank news"]
PAIRS = [["the cat sat", "a dog ran"], ["bank news", "the cat sat"], ["a dog", "a dog"]]


def make_classifier(folder: Path, tokenizer: PreTrainedTokenizerFast, labels: list[str], **options: Any) -> str:
    """A random text classifier of another size than the student's, which takes 12 tokens."""
    torch.manual_seed(3)
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 31}
    config = BertConfig(
        **sizes,
        vocab_size=99,
        max_position_embeddings=12,
        initializer_range=0.3,
        id2label=dict(enumerate(labels)),
        label2id={label: place for place, label in enumerate(labels)},
        **options,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def saved(tiny_model: MultiTaskModel, tmp_path: Path) -> str:
    tiny_model.save_pretrained(tmp_path / "saved")
    return str(tmp_path / "saved")


def ask(teacher: Any, rows: list[Any]) -> torch.Tensor:
    return torch.from_numpy(teacher.ask(rows, tqdm(disable=True)))


def open_one(model: str, task: str, settings: dict[str, Any], own: str | None = None) -> Any:
    return open_teacher(task, TeacherName(model, own), complete_task(task, settings))


def test_our_models_task_answers_as_predict_does_with_labels_in_the_students_order(saved, tiny_model):
    teacher = open_one(saved, "mood", MOOD)
    found = ask(teacher, [[sentence] for sentence in SENTENCES])[:, teacher.order].softmax(dim=-1)
    expected = tiny_model.predict(SENTENCES, "mood")["mood"]["probabilities"]
    names = tiny_model.config.tasks["mood"].labels
    for place, label in enumerate(MOOD["labels"]):
        np.testing.assert_allclose(found[:, place], expected[:, names.index(label)], atol=1e-6)


def test_our_models_task_of_another_name_answers_pairs(saved, tiny_model):
    teacher = open_one(saved, "closeness", DISTANCE, own="distance")
    expected = tiny_model.predict([tuple(pair) for pair in PAIRS], "distance")["distance"]["values"]
    np.testing.assert_allclose(ask(teacher, PAIRS)[:, 0], expected, atol=1e-5)


def test_our_models_embedding_teaches_similarity(saved, tiny_model):
    teacher = open_one(saved, "likeness", {"problem_type": "similarity"}, own="distance")
    expected = tiny_model.encode(SENTENCES, normalize=True)
    np.testing.assert_allclose(ask(teacher, SENTENCES), expected, atol=1e-6)


def test_classifier_answers_with_its_own_tokenizer_and_length_whatever_stands_beside_a_row(tmp_path, tiny_tokenizer):
    folder = make_classifier(tmp_path / "c", tiny_tokenizer, ["Neutral", "NEGATIVE", "positive"])
    teacher = open_one(folder, "mood", MOOD)
    assert teacher.order == [2, 1, 0]
    found = ask(teacher, [[sentence] for sentence in SENTENCES])
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    for row, sentence in enumerate(SENTENCES):
        tokens = tiny_tokenizer(sentence, truncation=True, max_length=12, return_tensors="pt")
        with torch.no_grad():
            torch.testing.assert_close(found[row], model(**tokens).logits[0], rtol=1e-4, atol=1e-5)


def test_classifier_reads_pairs_as_its_tokenizer_joins_them(tmp_path, tiny_tokenizer):
    folder = make_classifier(tmp_path / "c", tiny_tokenizer, ["score"], problem_type="regression")
    found = ask(open_one(folder, "distance", DISTANCE), PAIRS)
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    for row, pair in enumerate(PAIRS):
        tokens = tiny_tokenizer(*pair, truncation=True, max_length=12, return_tensors="pt")
        with torch.no_grad():
            torch.testing.assert_close(found[row], model(**tokens).logits[0], rtol=1e-4, atol=1e-5)
    assert found.shape == (3, 1)


@pytest.mark.parametrize("settings", [{"problem_type": "similarity"}, {"problem_type": "contrastive"}, DISTANCE])
def test_sentence_transformer_teaches_what_compares_sentences(settings, tmp_path, tiny_backbone):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = sentence_transformers.SentenceTransformer(tiny_backbone, device="cpu")
    model.save(str(tmp_path / "st"))
    teacher = open_one(str(tmp_path / "st"), "likeness", settings)
    found = ask(teacher, SENTENCES)
    expected = torch.from_numpy(model.encode(SENTENCES, normalize_embeddings=True))
    assert (teacher.compares, teacher.size) == (True, 32)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_identity_follows_weights_tokenizer_and_length_and_nothing_else(saved, tiny_model, tmp_path):
    first = open_one(saved, "mood", MOOD).identity
    tiny_model.save_pretrained(tmp_path / "moved")
    assert open_one(str(tmp_path / "moved"), "mood", MOOD).identity == first
    found = {first}

    def changed(change) -> None:
        folder = tmp_path / f"changed_{len(found)}"
        model = MultiTaskModel.from_pretrained(saved)
        change(model)
        model.save_pretrained(folder)
        found.add(open_one(str(folder), "mood", MOOD).identity)

    with torch.no_grad():
        changed(lambda model: model.heads["mood"].layers[-1].bias.add_(1))
        changed(lambda model: model.projection.linear.bias.add_(1))
        changed(lambda model: next(model.backbone.parameters()).add_(1))
        changed(lambda model: setattr(model.config, "max_length", 7))
        changed(lambda model: model.tokenizer.add_tokens(["film market"]))
        relu = replace(tiny_model.config.projection, activation="relu")
        changed(lambda model: setattr(model.config, "projection", relu))
        assert len(found) == 7
        changed(lambda model: model.heads["rating"].layers[-1].bias.add_(1))  # another task's
    assert len(found) == 7


def test_identity_of_a_static_embedding_follows_its_tokenizer(tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    found, weights = set(), np.ones((3, 4), np.float32)
    for number, words in enumerate((["cat", "dog", "?"], ["cat", "dog", "?"], ["dog", "cat", "?"])):
        vocabulary = {word: place for place, word in enumerate(words)}
        tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="?"))
        embedding = modules.StaticEmbedding(tokenizer, embedding_weights=weights)
        model = sentence_transformers.SentenceTransformer(modules=[embedding], device="cpu")
        model.save(str(tmp_path / str(number)))
        found.add(open_one(str(tmp_path / str(number)), "likeness", {"problem_type": "similarity"}).identity)
    assert len(found) == 2


# ---- what is refused ----


def test_labels_that_do_not_match_are_listed_on_both_sides(tmp_path, tiny_tokenizer):
    folder = make_classifier(tmp_path / "c", tiny_tokenizer, ["good", "bad", "neutral"])
    message = f"labels of {folder} are 'good', 'bad', 'neutral', but those of the task are 'positive', 'neg"
    with pytest.raises(ValueError, match=message):
        open_one(folder, "mood", MOOD)
    with pytest.raises(ValueError, match="Put the names into id2label"):
        match_labels("here", "it", ["LABEL_0", "LABEL_1"], ["no", "yes"])
    with pytest.raises(ValueError, match="those of the task are 'a'"):
        match_labels("here", "it", ["a", "b"], ["a"])


def test_labels_that_differ_in_case_alone_are_matched_exactly():
    assert match_labels("here", "it", ["US", "us"], ["us", "US"]) == [1, 0]


def test_folder_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "notes").mkdir()
    with pytest.raises(ValueError, match=r"teachers.mood: the folder .*notes holds no config.json"):
        find_teacher("distillation.teachers.mood", str(tmp_path / "notes"))
    with pytest.raises(ValueError, match=r"there is no folder \./nowhere"):
        find_teacher("distillation.teachers.mood", "./nowhere")


def test_model_without_a_task_is_refused(tmp_path, tiny_tokenizer):
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 31}
    BertForMaskedLM(BertConfig(vocab_size=99, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="of the kind BertForMaskedLM, which answers no task"):
        find_teacher("here", str(tmp_path))


def test_weights_that_are_pickled_are_refused(tmp_path, tiny_tokenizer):
    folder = make_classifier(tmp_path / "c", tiny_tokenizer, MOOD["labels"])
    model = BertForSequenceClassification.from_pretrained(folder)
    torch.save(model.state_dict(), Path(folder) / "pytorch_model.bin")
    (Path(folder) / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="cannot be opened as a text classifier with safetensors"):
        open_one(folder, "mood", MOOD)


def test_damaged_or_ill_edited_classifier_is_refused_in_one_line(tmp_path, tiny_tokenizer):
    folder = Path(make_classifier(tmp_path / "c", tiny_tokenizer, MOOD["labels"]))
    weights, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    whole = weights.read_bytes()

    def said(labels: dict[str, str] | None = None) -> str:
        named = config if labels is None else {**config, "id2label": labels, "label2id": None}
        (folder / "config.json").write_text(json.dumps(named))
        with pytest.raises(ValueError, match=f"distillation.teachers.mood: {folder}") as error:
            open_one(str(folder), "mood", MOOD)
        return str(error.value)

    assert "cannot be opened as a text classifier" in said(dict(enumerate([*MOOD["labels"], "?"])))
    assert "numbers its labels 1, 2, 3 in id2label" in said({"1": "positive", "2": "negative", "3": "neutral"})
    state = load_file(weights)
    save_file({name: tensor for name, tensor in state.items() if not name.startswith("classifier")}, weights)
    assert "lacks the weights classifier.bias, classifier.weight" in said()
    weights.write_bytes(whole[:-200])
    assert "cannot be opened as a text classifier" in said()


def test_damaged_sentence_transformer_and_model_of_ours_are_refused_in_one_line(tmp_path, tiny_backbone, saved):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    sentence_transformers.SentenceTransformer(tiny_backbone, device="cpu").save(str(tmp_path / "st"))
    for folder, kind in ((tmp_path / "st", "a SentenceTransformer"), (Path(saved), "a model")):
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-200])
        with pytest.raises(ValueError, match=f"teachers.likeness: {folder} cannot be opened as {kind}"):
            open_one(str(folder), "likeness", {"problem_type": "similarity"})


def test_softmax_classifier_is_no_teacher_of_a_multi_label_task(tmp_path, tiny_tokenizer):
    tags = {"problem_type": "multi_label_classification", "labels": MOOD["labels"]}
    folder = make_classifier(tmp_path / "c", tiny_tokenizer, MOOD["labels"])
    with pytest.raises(ValueError, match=r'"problem_type": "multi_label_classification" into its config\.json'):
        open_one(folder, "tags", tags)
    assert open_one(folder, "mood", MOOD).size == 3
    folder = make_classifier(tmp_path / "d", tiny_tokenizer, MOOD["labels"], problem_type=tags["problem_type"])
    assert open_one(folder, "tags", tags).order == [0, 1, 2]


@pytest.mark.parametrize(
    ("task", "settings", "own", "message"),
    [
        ("nothing", MOOD, None, "has no task 'nothing'. Its tasks: mood, tags"),
        ("entails", {**MOOD, "labels": ["no", "yes"]}, None, "reads pairs, but task 'entails' reads single sentences"),
        ("likeness", {"problem_type": "similarity"}, "typo", "has no task 'typo'. Its tasks: mood, tags"),
        ("mood", DISTANCE, None, "is single_label_classification, but task 'mood' is regression"),
    ],
)
def test_our_model_that_answers_something_else_is_refused(task, settings, own, message, saved):
    with pytest.raises(ValueError, match=message):
        open_one(saved, task, settings, own)


def test_teacher_of_another_kind_than_the_task_is_refused(tmp_path, tiny_tokenizer, tiny_backbone):
    folder = make_classifier(tmp_path / "c", tiny_tokenizer, MOOD["labels"], problem_type="multi_label_classification")
    with pytest.raises(ValueError, match="was trained for multi_label_classification, but the task is single_label"):
        open_one(folder, "mood", MOOD)
    with pytest.raises(ValueError, match="is a text classifier, but a similarity task learns from cosines"):
        open_one(folder, "likeness", {"problem_type": "similarity"})
    with pytest.raises(ValueError, match="was not trained here, so it has no task 'mood'"):
        open_one(folder, "mood", MOOD, own="mood")
    with pytest.raises(ValueError, match=r"has 3 outputs .* but the task is regression"):
        open_one(make_classifier(tmp_path / "d", tiny_tokenizer, MOOD["labels"]), "distance", DISTANCE)
    sentence_transformers = pytest.importorskip("sentence_transformers")
    sentence_transformers.SentenceTransformer(tiny_backbone, device="cpu").save(str(tmp_path / "st"))
    with pytest.raises(ValueError, match="compares two sentences, but the task is single_label_classification on sin"):
        open_one(str(tmp_path / "st"), "mood", MOOD)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({}, "distillation.teachers is None, but should be single"),
        ("single", "distillation is 'single', but should be a mapping"),
        ({"teachers": "singel"}, "teachers is 'singel', but should be single"),
        ({"teachers": {"mod": "x"}}, "unknown key 'mod'. Did you mean 'mood'?"),
        ({"teachers": {"mood": []}}, "teachers.mood is an empty list"),
        ({"teachers": {"mood": ["x", "x"]}}, "names a teacher twice"),
        ({"teachers": {"mood": 3}}, "teachers.mood is 3, but should be a folder or Hub id"),
        ({"teachers": {"mood": {"task": "mood"}}}, "but should be a folder or Hub id"),
        ({"teachers": "single", "schedule": 1.5}, "schedule is 1.5, but should be annealing"),
        ({"teachers": "single", "schedule": -0.1}, "schedule is -0.1"),
        ({"teachers": "single", "schedule": "anneal"}, "schedule is 'anneal'"),
        ({"teachers": "single", "temperature": 0}, "temperature is 0, but should be a number above 0"),
        ({"teachers": "single", "rows": "every"}, "rows is 'every', but should be one of all, own"),
        (
            {"teachers": "single", "similarity_loss": "mse"},
            "similarity_loss is 'mse', but should be one of divergence",
        ),
        ({"teachers": "single", "unlabeled": {"columns": {"text": "a"}}}, "unlabeled.columns is {'text': 'a'}"),
        (
            {"teachers": "single", "unlabeled": {"columns": {"text": "b"}}},
            "should be {sentence: COLUMN}, or {sentence1: COLUMN, sentence2: COLUMN} for pairs",
        ),
        ({"teachers": "single", "unlabeled": {"columns": {"sentence": "a"}}}, "unlabeled.dataset is None"),
        (
            {"teachers": "single", "unlabeled": {"more": {"colums": 1}}},
            "distillation.unlabeled.more: unknown key 'colums'",
        ),
        (
            {
                "teachers": "single",
                "unlabeled": {"dataset": {"path": "csv"}, "columns": {"sentence": "a"}, "tasks": ["moot"]},
            },
            "unlabeled.tasks is \\['moot'\\], but should be a list of those tasks of the recipe",
        ),
        ({"teachers": "single", "unlabeled": {"more": "a.csv"}}, "distillation.unlabeled.more is 'a.csv'"),
        (
            {"teachers": "single", "unlabeled": {"mood": {"dataset": {"path": "csv"}, "columns": {"sentence": "a"}}}},
            "unlabeled.mood: the mixture calls this text 'mood', as a task is called. Rename one of them.",
        ),
        ({"teachers": "single", "temprature": 2}, "unknown key 'temprature'. Did you mean 'temperature'?"),
    ],
)
def test_block_that_is_wrong_says_what_would_be_right(block, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        read_distillation(block, TASKS)


def test_block_names_one_teacher_or_several_and_a_task_of_each():
    block = {"teachers": {"mood": "folder", "similarity": ["a", {"model": "b", "task": "likeness"}]}}
    found = read_distillation(block, TASKS)
    assert found.teachers["mood"] == (TeacherName("folder"),)
    assert found.teachers["similarity"] == (TeacherName("a"), TeacherName("b", "likeness"))
    assert (found.schedule, found.temperature, found.rows) == ("annealing", 1.0, "all")
    assert json.dumps(found.similarity_loss) == '"divergence"'
    assert read_distillation(None, TASKS) is None
