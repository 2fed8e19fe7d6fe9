"""The pipeline that answers every task at once, opened from a saved folder as a user would."""

from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from transformers import AutoModel, pipeline

from multitask_sentence import MultiTaskModel

SENTENCES = ["the cat sat on the mat .", "a good film", "bad market news today !", "the dog"]
PAIRS = [("the cat sat", "a cat sat on the mat"), ("good film", "bad news")]


@pytest.fixture(scope="module")
def saved(tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[MultiTaskModel, str]:
    tasks = {
        "mood": {"problem_type": "single_label_classification", "labels": ["negative", "neutral", "positive"]},
        "tags": {"problem_type": "multi_label_classification", "labels": ["animal", "place"]},
        "rating": {"problem_type": "regression"},
        "entails": {"problem_type": "single_label_classification", "labels": ["no", "yes"], "pair": True},
        "similarity": {"problem_type": "similarity"},
    }
    model = MultiTaskModel.from_backbone(tiny_backbone, tasks=tasks, max_length=20)
    folder: Path = tmp_path_factory.mktemp("pipeline") / "saved"
    model.save_pretrained(folder)
    return model, str(folder)


@pytest.fixture(scope="module")
def opened(saved: tuple[MultiTaskModel, str]) -> tuple:
    model, folder = saved
    return model, pipeline("multitask", model=folder, trust_remote_code=True)


def test_rows_hold_what_encode_and_predict_give(opened: tuple) -> None:
    model, answer = opened
    rows, expected, embeddings = answer(SENTENCES), model.predict(SENTENCES), model.encode(SENTENCES)
    assert len(rows) == len(SENTENCES)
    for index, row in enumerate(rows):
        np.testing.assert_allclose(row["embedding"], embeddings[index], rtol=0, atol=1e-6)
        assert row["mood"]["label"] == expected["mood"]["labels"][index]
        assert row["mood"]["score"] == pytest.approx(expected["mood"]["probabilities"][index].max(), abs=1e-6)
        assert list(row["mood"]["scores"]) == ["negative", "neutral", "positive"]
        assert row["tags"]["labels"] == expected["tags"]["labels"][index]
        assert row["rating"]["value"] == pytest.approx(expected["rating"]["values"][index], abs=1e-6)
        assert set(row) == {"embedding", "mood", "tags", "rating"}


def test_one_sentence_gives_one_dictionary(opened: tuple) -> None:
    _, answer = opened
    single, listed = answer(SENTENCES[1]), answer(SENTENCES)[1]
    assert single["mood"]["label"] == listed["mood"]["label"]
    np.testing.assert_allclose(single["embedding"], listed["embedding"], rtol=0, atol=1e-5)


def test_pairs_are_answered_by_the_pair_tasks(opened: tuple) -> None:
    model, answer = opened
    expected = model.predict(PAIRS)
    for row, similarity in zip(answer(PAIRS), expected["similarity"]["scores"], strict=True):
        assert set(row) == {"embedding", "entails", "similarity"}
        assert row["similarity"]["score"] == pytest.approx(similarity, abs=1e-6)
        assert np.shape(row["embedding"]) == (2, 32)
    as_dictionary = answer({"text": PAIRS[0][0], "text_pair": PAIRS[0][1]})
    assert as_dictionary["entails"] == answer(PAIRS[0])["entails"]


def test_a_datasets_column_and_a_generator_give_the_same_rows(opened: tuple) -> None:
    _, answer = opened
    expected = [row["mood"] for row in answer(SENTENCES)]
    assert [row["mood"] for row in answer(Dataset.from_dict({"text": SENTENCES})["text"])] == expected
    generated = answer(sentence for sentence in SENTENCES)
    assert not isinstance(generated, list)
    assert [row["mood"] for row in generated] == expected


@pytest.mark.parametrize("wrong", [3, ("a", "pair")])
def test_row_that_is_no_sentence_is_named_by_its_place_in_all_rows(
    opened: tuple, monkeypatch: pytest.MonkeyPatch, wrong: object
) -> None:
    _, answer = opened
    monkeypatch.setitem(type(answer)._answer_rows.__globals__, "ROWS_PER_WINDOW", 2)
    rows = [*SENTENCES, wrong]
    for given in (rows, iter(rows)):
        with pytest.raises(TypeError, match=r"^Sentence 4 is .* should be a string"):
            list(answer(given))
    with pytest.raises(TypeError, match=r"^Row 4 is 'the cat'.* should be a pair of strings"):
        answer([*PAIRS, *PAIRS, "the cat"])


def test_heads_and_batch_size_are_passed_on(opened: tuple) -> None:
    _, answer = opened
    assert set(answer(SENTENCES, head=["mood"], batch_size=1)[0]) == {"embedding", "mood"}
    assert answer(SENTENCES, tasks=["mood"]) == answer(SENTENCES, head="mood")
    with pytest.raises(ValueError, match="There is no task 'mod'"):
        answer(SENTENCES, head=["mod"])


def test_heads_and_batch_size_hold_for_all_calls_where_the_pipeline_is_given_them(saved: tuple, monkeypatch) -> None:
    answer = pipeline("multitask", model=saved[1], trust_remote_code=True, head="mood", batch_size=1)
    sizes, pooled_batch = [], answer.model._pooled_batch
    monkeypatch.setattr(answer.model, "_pooled_batch", lambda ids: sizes.append(len(ids)) or pooled_batch(ids))
    assert set(answer(SENTENCES[0])) == {"embedding", "mood"}
    assert set(answer(SENTENCES)[0]) == {"embedding", "mood"}
    assert set(sizes) == {1}
    assert set(answer(SENTENCES, tasks=["tags"], batch_size=4)[0]) == {"embedding", "tags"}
    assert sizes[-1] == 4


def test_feature_extraction_pipeline_gives_token_states(opened: tuple) -> None:
    model, answer = opened
    extract = pipeline("feature-extraction", model=answer.model, tokenizer=model.tokenizer)
    states = np.array(extract(SENTENCES[0]))[0]
    assert states.shape == (len(model.tokenizer(SENTENCES[0])["input_ids"]), 32)


def test_model_that_is_open_already_is_taken(saved: tuple[MultiTaskModel, str]) -> None:
    model, folder = saved
    expected = model.predict(SENTENCES, as_list=True)
    for opened_model in (model, AutoModel.from_pretrained(folder, trust_remote_code=True)):
        answer = pipeline("multitask", model=opened_model)
        assert answer.model is opened_model
        assert [row["mood"] for row in answer(SENTENCES)] == [row["mood"] for row in expected]


def test_num_workers_are_taken_and_change_nothing(opened: tuple) -> None:
    _, answer = opened
    assert answer(SENTENCES, num_workers=2) == answer(SENTENCES, num_workers=0) == answer(SENTENCES)
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'top_k'"):
        answer(SENTENCES, top_k=2)


def test_pipeline_saves_what_opens_as_a_pipeline(saved: tuple[MultiTaskModel, str], tmp_path: Path) -> None:
    answer = pipeline("multitask", model=saved[0])
    answer.save_pretrained(tmp_path / "again")
    again = pipeline("multitask", model=str(tmp_path / "again"), trust_remote_code=True)
    assert again(SENTENCES) == answer(SENTENCES)


def test_labels_are_withheld_below_the_confidence_of_a_call_or_of_all_calls(saved: tuple[MultiTaskModel, str]) -> None:
    model, folder = saved
    sure = model.predict(SENTENCES)["mood"]["probabilities"].max(axis=1)
    least = {"confidence": float(np.sort(sure)[1:3].mean())}
    given = (sure >= least["confidence"]).tolist()
    assert 0 < sum(given) < len(SENTENCES)
    for answer, call in (
        (pipeline("multitask", model=folder, trust_remote_code=True), {"abstain": least}),
        (pipeline("multitask", model=folder, trust_remote_code=True, abstain=least), {}),
    ):
        assert [row["mood"]["label"] is not None for row in answer(SENTENCES, **call)] == given
        assert None not in [row["mood"]["label"] for row in answer(SENTENCES, abstain=False)]
