"""Several threads on one model: answers are right while others change its mode, its tasks and its adapter."""

import signal
import threading
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from peft import LoraConfig

from multitask_sentence import MultiTaskModel
from multitask_sentence.turns_multitask import changing, evaluating, sharing

SENTENCES = ["the cat sat", "good film", "bad news today"]
NEW = {"problem_type": "single_label_classification", "labels": ["no", "yes"]}


def run_together(*works: Callable[[], None]) -> list[BaseException]:
    errors: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=[work], daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads), "nobody waits for ever"
    return errors


def test_thread_that_leaves_first_does_not_bring_dropout_to_the_other() -> None:
    model, inside, left = torch.nn.Dropout(), threading.Event(), threading.Event()
    modes = []

    def first() -> None:
        with evaluating(model):
            inside.set()
            left.wait(10)
            modes.append(model.training)

    def second() -> None:
        inside.wait(10)
        with evaluating(model):
            pass
        left.set()

    assert run_together(first, second) == []
    assert modes == [False]
    assert model.training, "restored by the last that left"


def order_beside_computing(model: torch.nn.Module, change: Callable[[], None]) -> list[str]:
    """What ends first: a change of the model, or a thread that computes with it since before."""
    inside, ended, order = threading.Event(), threading.Event(), []

    def compute() -> None:
        with sharing(model), sharing(model):
            inside.set()
            ended.wait(10)
            order.append("computed")

    def change_it() -> None:
        inside.wait(10)
        threading.Timer(0.3, ended.set).start()
        change()
        order.append("changed")

    assert run_together(compute, change_it) == []
    return order


def test_change_waits_for_those_who_compute() -> None:
    model = torch.nn.Linear(1, 1)

    def change() -> None:
        with changing(model):
            pass

    assert order_beside_computing(model, change) == ["computed", "changed"]


def test_interrupted_wait_for_a_turn_keeps_nobody_out() -> None:
    model, inside, ended, shared = torch.nn.Linear(1, 1), threading.Event(), threading.Event(), threading.Event()

    def compute() -> None:
        with sharing(model):
            inside.set()
            ended.wait(30)

    def compute_too() -> None:
        with sharing(model):
            shared.set()

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    threading.Thread(target=compute, daemon=True).start()
    try:
        inside.wait(10)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt), changing(model):
            pass
        threading.Thread(target=compute_too, daemon=True).start()
        assert shared.wait(10), "whoever computes comes in while another computes"
    finally:
        signal.signal(signal.SIGALRM, before)
        ended.set()


@pytest.mark.parametrize("method", ["add_adapter", "disable_adapters", "merge_adapter", "delete_adapter"])
def test_adapter_changes_wait_for_those_who_compute(tiny_backbone: str, method: str) -> None:
    model = MultiTaskModel.from_backbone(tiny_backbone)
    change = partial(model.add_adapter, LoraConfig(r=3, target_modules=["query"]))
    if method != "add_adapter":
        change()
        change = getattr(model, method)
    assert order_beside_computing(model, change) == ["computed", "changed"]


def test_thread_that_computes_may_change_the_model_itself(tiny_model: MultiTaskModel) -> None:
    with sharing(tiny_model):
        tiny_model.add_task("new", NEW)
        tiny_model.train()
    assert "new" in tiny_model.heads


@pytest.mark.filterwarnings("ignore")
def test_answers_are_right_while_others_change_mode_and_tasks(tiny_model: MultiTaskModel) -> None:
    expected = tiny_model.encode(SENTENCES), tiny_model.predict(SENTENCES)["mood"]["probabilities"]
    stop = threading.Event()

    def ask() -> None:
        try:
            for _ in range(20):
                np.testing.assert_allclose(tiny_model.encode(SENTENCES), expected[0], atol=1e-5)
                np.testing.assert_allclose(
                    tiny_model.predict(SENTENCES)["mood"]["probabilities"], expected[1], atol=1e-5
                )
        finally:
            stop.set()

    def change(name: str) -> None:
        while not stop.is_set():
            tiny_model.train()
            tiny_model.add_task(name, NEW)
            tiny_model.remove_task(name)

    assert run_together(ask, ask, lambda: change("one"), lambda: change("other")) == []
