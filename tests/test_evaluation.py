"""Evaluation against predictions made by hand through `model.forward` in one batch, and scikit-learn and scipy."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, mean_squared_error

from helpers import trainer as helpers
from multitask_sentence.training.evaluation import scores as scores_module
from multitask_sentence.training.evaluation.scores import (
    Evaluation,
    TaskAnswers,
    answer_task,
    choose_thresholds,
    combined_score,
    never_negatives,
    positive_ranks_of,
    task_scores,
)
from multitask_sentence.training.losses.losses import cosent, multiple_negatives_ranking

SHARES = {"sentiment": 0.6, "tags": 0.5, "rating": 0.7}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    model = helpers.make_model(helpers.make_backbone(tmp_path_factory.mktemp("backbone")))
    model.config.change_task("tags", thresholds=[0.485, 0.538])
    return model


@pytest.fixture(scope="module")
def sets():
    sets = [helpers.make_set(["sentiment", "tags", "rating"], SHARES, train=2, validation=40)]
    sets += [
        helpers.make_set([task], seed=seed, train=2, validation=23) for seed, task in ((5, "pairs"), (7, "search"))
    ]
    return sets


@pytest.fixture(scope="module")
def scores(model, sets):
    """What the code under test says, by task, with rows compared in batches of 10."""
    evaluation = Evaluation(sets, model.config.tasks, "validation")
    embeddings = torch.from_numpy(model.encode(evaluation.sentences, normalize=False))
    return {
        task: task_scores(
            model.config.tasks[task], answer_task(model, task, embeddings, rows, evaluation.labels[task], 10)
        )
        for task, rows in evaluation.rows.items()
    }


def by_hand(model, sets, task):
    """Logits (or embeddings of pairs) from one padded batch of the labelled rows, and the rows' labels."""
    rows = next(labelled_set.splits["validation"] for labelled_set in sets if task in labelled_set.tasks)
    rows = [row for row in rows if row[f"label_{task}"] is not None]
    flat = [sentence for row in rows for sentence in row["sentences"]]
    with torch.no_grad():
        output = model(**model.tokenizer(flat, padding=True, return_tensors="pt"))
    labels = torch.tensor([row[f"label_{task}"] for row in rows])
    if task in output.logits:
        return output.logits[task], labels
    return output.sentence_embedding.view(len(rows), -1, output.sentence_embedding.shape[-1]), labels


def test_premise_some_rows_are_labelled_for_some_tasks_only(sets):
    columns = sets[0].splits["validation"].to_dict()
    for task in SHARES:
        assert 5 < sum(label is not None for label in columns[f"label_{task}"]) < 35


def test_classification_scores_are_those_of_scikit_learn(model, sets, scores):
    logits, labels = by_hand(model, sets, "sentiment")
    assert scores["sentiment"] == pytest.approx(
        {
            "loss": F.cross_entropy(logits, labels).item(),
            "accuracy": accuracy_score(labels, logits.argmax(dim=-1)),
            "macro_f1": f1_score(labels, logits.argmax(dim=-1), average="macro", zero_division=0),
        },
        rel=1e-5,
    )


def test_multi_label_scores_use_the_thresholds_of_the_config(model, sets, scores):
    logits, labels = by_hand(model, sets, "tags")
    predictions = (logits.sigmoid() >= torch.tensor([0.485, 0.538])).int()
    expected = f1_score(labels, predictions, average="macro", zero_division=0)
    assert expected != f1_score(labels, (logits > 0).int(), average="macro", zero_division=0), "premise"
    loss = F.binary_cross_entropy_with_logits(logits, labels).item()
    assert scores["tags"] == pytest.approx({"loss": loss, "macro_f1": expected}, rel=1e-5)


@pytest.mark.parametrize("chosen", [["positive"], ["positive", "negative"]])
def test_f1_of_chosen_classes_is_that_of_scikit_learn(model, sets, chosen):
    _, labels = by_hand(model, sets, "sentiment")
    predictions, references = (labels.numpy() + (np.arange(len(labels)) % 3 == 0)) % 3, labels.numpy()
    settings = dataclasses.replace(model.config.tasks["sentiment"], metrics=["f1"], f1_labels=chosen)
    found = task_scores(settings, TaskAnswers(torch.zeros(0), predictions, references, 0.5))
    numbers = [["negative", "neutral", "positive"].index(label) for label in chosen]
    expected = f1_score(references, predictions, labels=numbers, average="macro")
    assert expected not in (0, 1, f1_score(references, predictions, average="macro")), "premise"
    assert found == pytest.approx({"loss": 0.5, "f1": expected})


def test_f1_of_chosen_labels_counts_the_columns_of_these_labels(model):
    references = np.array([[1, 0], [1, 1], [0, 1], [0, 1]])
    predictions = np.array([[1, 1], [0, 1], [1, 0], [0, 1]])
    settings = dataclasses.replace(model.config.tasks["tags"], metrics=["f1"], f1_labels=["b"])
    found = task_scores(settings, TaskAnswers(torch.zeros(0), predictions, references, 0.5))
    assert found["f1"] == pytest.approx(2 / 3)  # of b: two hits, one false, one missed; of a it is 1 / 2


def test_regression_scores_are_those_of_scipy(model, sets, scores):
    values, labels = by_hand(model, sets, "rating")
    assert scores["rating"] == pytest.approx(
        {
            "loss": F.mse_loss(values, labels.float()).item(),
            "pearson": pearsonr(values, labels).statistic,
            "mse": mean_squared_error(labels, values),
        },
        rel=1e-4,
    )


def test_similarity_scores_are_those_of_scipy(model, sets, scores):
    embeddings, labels = by_hand(model, sets, "pairs")
    cosines = F.cosine_similarity(embeddings[:, 0], embeddings[:, 1], dim=-1)
    batches = zip(cosines.split(10), labels.split(10), strict=True)
    assert scores["pairs"] == pytest.approx(
        {
            "loss": sum(cosent(*batch).item() for batch in batches) / 23,
            "cosine_spearman": spearmanr(cosines, labels).statistic,
            "mean_cosine_related": cosines[labels >= 4].mean().item(),
            "mean_cosine_unrelated": cosines[labels <= 1].mean().item(),
        },
        rel=1e-4,
    )


def test_contrastive_scores_rank_the_positive_among_all_positives_and_negatives(model, sets, scores):
    embeddings, _ = by_hand(model, sets, "search")
    vectors = F.normalize(embeddings, dim=-1)
    candidates = vectors[:, 1:].reshape(-1, vectors.shape[-1])
    ranks = []
    for row, anchor in enumerate(vectors[:, 0]):
        cosines = candidates @ anchor
        ranks.append(int((cosines >= cosines[2 * row]).sum()))
    assert max(ranks) > 1, "premise"
    loss = 0.0
    for batch in embeddings.split(10):
        loss += multiple_negatives_ranking(batch.flatten(0, 1), torch.arange(3 * len(batch)).view(-1, 3)).item()
    assert scores["search"] == pytest.approx(
        {
            "loss": loss / 23,
            "mrr": np.mean([1 / rank for rank in ranks]),
            "accuracy_at_1": np.mean([rank == 1 for rank in ranks]),
        },
        rel=1e-4,
    )


def test_loss_over_pairs_reads_the_sentences_of_its_batch_and_no_others(model, monkeypatch):
    torch.manual_seed(0)
    embeddings, rows = torch.randn(50, model.config.embedding_dim), torch.randint(50, (12, 3))
    read, task_loss = [], scores_module.task_loss

    def reading(settings, logits, labels, embeddings, rows):
        read.append(len(embeddings))
        return task_loss(settings, logits, labels, embeddings, rows)

    monkeypatch.setattr(scores_module, "task_loss", reading)
    found = scores_module.answer_task(model, "search", embeddings, rows, torch.ones(12), batch_size=4)
    batches = rows.split(4)
    assert read == [len(batch.unique()) for batch in batches]
    options = model.config.tasks["search"].loss_options
    assert found.loss == sum(multiple_negatives_ranking(embeddings, batch, **options).item() for batch in batches) / 12


def test_right_answers_are_no_wrong_ones_for_each_other():
    # Sentences 0 to 4. Of rows (0, 1), (0, 2), (1, 0), (3, 4), candidates are 0, 1, 2 and 4.
    found = never_negatives([0, 0, 1, 3], [1, 2, 0, 3], [0, 1, 2, 4])  # positives by their places
    assert found == [[0, 2], [0, 1], [1], []]


def test_perfect_embeddings_rank_first_whatever_else_is_right():
    embeddings = torch.eye(3)[[0, 0, 0, 1, 1, 2]]  # sentences 0 to 2 mean the same, 3 and 4 do, 5 does not
    rows = torch.tensor([[0, 1], [1, 0], [0, 2], [1, 2], [3, 4], [4, 3]])
    assert positive_ranks_of(embeddings, rows).tolist() == [1] * 6
    # What is only another row's answer still counts as wrong.
    rows = torch.tensor([[0, 1], [3, 2]])
    assert positive_ranks_of(embeddings, rows).tolist() == [2, 2]


def test_losses_of_single_rows_do_not_depend_on_the_batch_size(model, sets, scores):
    evaluation = Evaluation(sets, model.config.tasks, "validation")
    embeddings = torch.from_numpy(model.encode(evaluation.sentences, normalize=False))
    for task in helpers.MEAN_LOSS_TASKS:
        rows, labels = evaluation.rows[task], evaluation.labels[task]
        answers = answer_task(model, task, embeddings, rows, labels, 1000)
        assert task_scores(model.config.tasks[task], answers) == pytest.approx(scores[task], rel=1e-5)


def test_evaluation_holds_every_distinct_sentence_once_and_only_labelled_rows(model):
    labelled_set = helpers.make_set(["sentiment"], validation=3)
    rows = {"sentences": [["word1"], ["word2"], ["word1"], ["word3"]], "label_sentiment": [2, None, 0, None]}
    labelled_set.splits["validation"] = type(labelled_set.splits["validation"]).from_dict(rows)
    evaluation = Evaluation([labelled_set], model.config.tasks, "validation")
    assert list(evaluation.sentences) == ["word1", "word2", "word3"]
    assert evaluation.rows["sentiment"].tolist() == [[0], [0]]
    assert evaluation.labels["sentiment"].tolist() == [2, 0]


def test_evaluation_leaves_out_sets_without_the_split_and_tasks_without_labels(model, sets):
    evaluation = Evaluation(sets, model.config.tasks, "test")
    assert (list(evaluation.sentences), evaluation.rows, evaluation.labels) == ([], {}, {})
    only_pairs = {"pairs": model.config.tasks["pairs"]}
    assert list(Evaluation(sets, only_pairs, "validation").rows) == ["pairs"]


def test_scoring_restores_training_mode(model, sets):
    evaluation = Evaluation(sets, model.config.tasks, "validation")
    embeddings = torch.from_numpy(model.encode(evaluation.sentences, normalize=False))
    model.train()
    answer_task(model, "sentiment", embeddings, evaluation.rows["sentiment"], evaluation.labels["sentiment"])
    assert all(module.training for module in model.modules())
    model.eval()


def test_combined_score_is_the_mean_of_the_primary_metrics_and_nan_counts_as_zero(model):
    scores = {
        "sentiment": {"loss": 9.0, "macro_f1": 0.1, "accuracy": 0.6},
        "rating": {"loss": 9.0, "mse": 3.0, "pearson": math.nan},
        "pairs": {"loss": 9.0, "cosine_spearman": 0.9, "mean_cosine_related": 1.0},
    }
    assert combined_score(model.config.tasks, scores) == pytest.approx((0.6 + 0 + 0.9) / 3)


def f1_at(threshold: float, probabilities: np.ndarray, labels: np.ndarray) -> float:
    return f1_score(labels, probabilities >= threshold, zero_division=0)


def test_chosen_thresholds_are_the_worked_example():
    probabilities = np.array([[0.9, 0.8, 0.1], [0.7, 0.6, 0.2], [0.4, 0.2, 0.3], [0.2, 0.1, 0.4]])
    labels = np.array([[1, 1, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]])
    # First: from 0.4 on 2 of 3 are right (F1 0.8). Second: from 0.2 on all are. Third: no row has the label.
    chosen = choose_thresholds(probabilities, labels)
    assert 0.2 < chosen[0] <= 0.4
    assert 0.1 < chosen[1] <= 0.2
    assert chosen[2] == 0.5


def test_chosen_thresholds_have_the_best_f1_of_all():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, (50, 4))
    probabilities = np.clip(generator.normal(0.3 + 0.2 * labels, 0.2), 0.01, 0.99).astype(np.float32)
    for column, threshold in enumerate(choose_thresholds(probabilities, labels)):
        own = probabilities[:, column], labels[:, column]
        assert f1_at(threshold, *own) == max(f1_at(candidate, *own) for candidate in probabilities[:, column])


def test_chosen_thresholds_stand_between_probabilities_so_that_rounding_cannot_flip_a_row():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, (50, 4))
    labels[:, 3] = 1
    probabilities = generator.random((50, 4)).astype(np.float32)
    for column, threshold in enumerate(choose_thresholds(probabilities, labels)):
        assert 0 <= threshold <= 1
        assert abs(probabilities[:, column] - threshold).min() > 1e-6
