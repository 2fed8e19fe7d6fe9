"""Several threads on one model: those that compute take part together, one that changes the model waits for its turn.

    sharing      inside, the tasks and the mode of a model stay what they are
    evaluating   the same, in eval mode; what was in training mode is so again when the last thread leaves
    changing     inside, no other thread computes with the model; `changes_model` is the same for a whole method

A thread that computes may also change the model, as it ever could. Training in one thread and computing in another is
not what this is for: `forward` takes no part.
"""

import contextlib
import functools
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch.nn as nn

Method = TypeVar("Method", bound=Callable[..., Any])


class Turns:
    """Who is inside with one model, and who waits, in the order of coming."""

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.inside: Counter[int] = Counter()  # by thread, how often
        self.owner: int | None = None  # the thread that changes the model
        self.line: list[tuple[int, bool]] = []  # threads that wait, and whether to change the model
        self.evaluating = 0
        self.training: list[nn.Module] = []  # what goes back into training mode

    def wait(self, to_change: bool) -> None:
        """Wait for the turn of this thread, which is not inside; called with the condition held."""
        place = (threading.get_ident(), to_change)
        self.line.append(place)

        def is_due() -> bool:
            before = self.line[: self.line.index(place)]
            if self.owner is not None or any(changes for _, changes in before):
                return False
            return not (to_change and (self.inside or before))

        try:
            self.condition.wait_for(is_due)
        finally:  # also where Ctrl-C ends the wait: whoever came later would wait for this thread for ever
            self.line.remove(place)
            self.condition.notify_all()


_TURNS: WeakKeyDictionary[nn.Module, Turns] = WeakKeyDictionary()
_LOCK = threading.Lock()


def _renew_in_child() -> None:
    """A forked child has only the thread that forked: nobody else is inside there."""
    global _LOCK
    _LOCK = threading.Lock()
    _TURNS.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_renew_in_child)


def _turns_of(model: nn.Module) -> Turns:
    found = _TURNS.get(model)
    if found is None:
        with _LOCK:
            found = _TURNS.setdefault(model, Turns())
    return found


@contextlib.contextmanager
def sharing(model: nn.Module) -> Iterator[None]:
    """Inside, other threads may compute with the model, and none changes it."""
    turns, me = _turns_of(model), threading.get_ident()
    with turns.condition:
        if me not in turns.inside and turns.owner != me:
            turns.wait(to_change=False)
        turns.inside[me] += 1
    try:
        yield
    finally:
        with turns.condition:
            turns.inside[me] -= 1
            if not turns.inside[me]:
                del turns.inside[me]
                turns.condition.notify_all()


@contextlib.contextmanager
def changing(model: nn.Module) -> Iterator[None]:
    """Inside, no other thread computes with the model; those that want to wait."""
    turns, me = _turns_of(model), threading.get_ident()
    with turns.condition:
        is_inside = me in turns.inside or turns.owner == me
        if not is_inside:  # else two that compute and want to change something would wait for each other
            turns.wait(to_change=True)
            turns.owner = me
    try:
        yield
    finally:
        if not is_inside:
            with turns.condition:
                turns.owner = None
                turns.condition.notify_all()


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Eval mode inside, each module's own mode restored by the last thread that leaves; gives all modules."""
    modules = [model]
    with sharing(model):
        for module in modules:  # `model.modules()` takes twice as long, which tells for a single sentence
            modules.extend(child for child in module._modules.values() if child is not None)
        turns = _turns_of(model)
        with turns.condition:
            turns.evaluating += 1
            for module in modules:
                if module.training:
                    turns.training.append(module)
                    module.training = False
        try:
            yield modules
        finally:
            with turns.condition:
                turns.evaluating -= 1
                if not turns.evaluating:
                    for module in turns.training:
                        module.training = True
                    turns.training.clear()


def changes_model(method: Method) -> Method:
    """A model's method that runs while no other thread computes with it."""

    @functools.wraps(method)
    def alone(self, *args, **kwargs):
        with changing(self):
            return method(self, *args, **kwargs)

    return alone


__all__ = ["changes_model", "changing", "evaluating", "sharing"]
