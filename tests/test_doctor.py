"""The doctor: doors of a saved folder opened in clean processes and compared."""

from pathlib import Path

import numpy as np
import pytest

from multitask_sentence import MultiTaskModel
from multitask_sentence.commands import _doors, doctor
from multitask_sentence.commands._doors import DOORS, SENTENCES


@pytest.fixture
def folder(tiny_model: MultiTaskModel, tmp_path: Path) -> Path:
    tiny_model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_doors_give_the_same_numbers_here_and_in_a_clean_process(folder: Path) -> None:
    reference = DOORS["AutoModel"](str(folder))
    assert set(reference) == {"embedding", "mood", "tags", "rating"}
    found, message = doctor.open_door("SentenceTransformer", str(folder))
    assert message == ""
    assert doctor.largest_difference(found, reference) <= 1e-6


def test_a_task_may_be_called_like_an_argument_of_numpy(tiny_backbone: str, tmp_path: Path) -> None:
    tasks = {name: {"problem_type": "regression"} for name in ("file", "allow_pickle")}
    MultiTaskModel.from_backbone(tiny_backbone, tasks=tasks).save_pretrained(tmp_path)
    found, message = doctor.open_door("AutoModel", str(tmp_path))
    assert message == "" and set(found) == {"embedding", "file", "allow_pickle"}


def test_doctor_tries_empty_and_odd_text_and_text_beyond_the_positions(
    folder: Path, tiny_model: MultiTaskModel
) -> None:
    tokens = max(len(tiny_model.tokenizer(sentence)["input_ids"]) for sentence in SENTENCES)
    assert tokens > tiny_model.config.backbone_config.max_position_embeddings
    assert "" in SENTENCES and any(not sentence.isascii() for sentence in SENTENCES)
    assert DOORS['pipeline("feature-extraction")'](str(folder)) == {}


def test_of_many_heads_some_are_opened_as_sequence_classifiers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, classify = DOORS["AutoModel"](str(folder)), DOORS['pipeline("text-classification")']
    opened = {}
    for most in (1, 2):
        monkeypatch.setattr(_doors, "MOST_HEADS", most)
        opened[most] = classify(str(folder))
        assert doctor.largest_difference(opened[most], reference) <= 1e-6
    assert {most: set(found) for most, found in opened.items()} == {1: {"mood"}, 2: {"mood", "tags"}}


def test_shut_door_says_why(folder: Path) -> None:
    (folder / "config.json").write_text("{", encoding="utf-8")
    found, message = doctor.open_door("AutoConfig", str(folder))
    assert found is None
    assert "config.json' is not a valid JSON file" in message


def test_door_leaves_no_compiled_code_in_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    (folder / "runtime_multitask.py").write_text("raise ValueError('it ran')")
    assert doctor.open_door("MultiTaskRuntime (onnx)", str(folder)) == (None, "ValueError: it ran")
    (folder / "runtime_multitask.py").write_text("MultiTaskRuntime = None")
    assert "'NoneType' object" in doctor.open_door("MultiTaskRuntime (onnx)", str(folder))[1]
    assert not (folder / "__pycache__").exists()


def test_a_door_with_other_numbers_does_not_count_as_open(monkeypatch) -> None:
    answers = {door: ({"embedding": np.ones((2, 3))}, "") for door in DOORS}
    answers["SentenceTransformer"] = ({"embedding": np.ones((2, 3)) + 2e-5}, "")
    answers["AutoConfig"] = ({}, "")
    answers['pipeline("multitask")'] = (None, "KeyError: 'multitask'")
    monkeypatch.setattr(doctor, "open_door", lambda door, source: answers[door])
    rows = {row["door"]: row for row in doctor.examine("anything")}
    shut = {door for door, row in rows.items() if not row["works"]}
    assert shut == {"SentenceTransformer", 'pipeline("multitask")'}
    assert rows["SentenceTransformer"]["difference"] == pytest.approx(2e-5, rel=1e-6)
    assert "differs" in rows["SentenceTransformer"]["message"]
    assert rows["AutoConfig"]["works"] and rows["AutoConfig"]["difference"] is None


def test_a_door_that_leaves_a_task_out_does_not_count_as_open(monkeypatch) -> None:
    everything = {"embedding": np.ones((2, 3)), "mood": np.ones((2, 2))}
    answers = dict.fromkeys(DOORS, (everything, ""))
    answers['pipeline("multitask")'] = ({"embedding": np.ones((2, 3))}, "")
    answers["SentenceTransformer"] = ({"embedding": np.ones((2, 3))}, "")  # it has no tasks
    monkeypatch.setattr(doctor, "open_door", lambda door, source: answers[door])
    shut = {row["door"]: row["message"] for row in doctor.examine("anything") if not row["works"]}
    assert shut == {'pipeline("multitask")': "does not answer mood"}


def test_values_in_their_own_units_are_compared_relatively() -> None:
    reference = {"rating": np.array([2000.0, -1.5])}
    one_ulp = {"rating": np.array([2000.0001220703125, -1.5])}
    assert doctor.largest_difference(one_ulp, reference) == pytest.approx(6.1e-8, rel=0.01)
    assert doctor.largest_difference({"rating": np.array([2000.0, -1.50002])}, reference) > doctor.TOLERANCE


def test_a_door_whose_package_is_missing_is_not_tried_and_not_shut(monkeypatch, capsys) -> None:
    everything = {"embedding": np.ones((2, 3)), "mood": np.ones((2, 2))}
    monkeypatch.setattr(doctor, "open_door", lambda door, source: (everything, ""))
    monkeypatch.setitem(doctor.PACKAGES, "SentenceTransformer", "no_such_package")
    with pytest.raises(SystemExit) as exited:
        doctor.main(["anything"])
    assert exited.value.code == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("SentenceTransformer"))
    assert row.split()[1] == "-" and "not tried: no-such-package is not installed here" in row


def test_nan_is_a_difference() -> None:
    same = {"embedding": np.ones(3), "mood": np.array([np.nan])}
    assert not doctor.largest_difference(same, same) <= 1.0


def test_model_saved_in_bfloat16_is_sound(tiny_model: MultiTaskModel, tmp_path: Path) -> None:
    tiny_model.bfloat16().save_pretrained(tmp_path)
    reference = DOORS["AutoModel"](str(tmp_path))
    for door in ("model.encode, model.predict", 'pipeline("text-classification")'):
        found = DOORS[door](str(tmp_path))
        assert found, door
        assert doctor.largest_difference(found, reference) <= doctor.TOLERANCE


@pytest.mark.parametrize(("works", "status"), [(True, 0), (False, 1)])
def test_exit_status_tells_whether_every_door_opens(monkeypatch, capsys, works: bool, status: int) -> None:
    row = {"door": "AutoModel", "works": works, "difference": 0.0, "seconds": 1.0, "message": ""}
    monkeypatch.setattr(doctor, "examine", lambda source: [row])
    with pytest.raises(SystemExit) as exited:
        doctor.main(["folder"])
    assert exited.value.code == status
    assert ("yes" if works else "NO") in capsys.readouterr().out
