"""The methods that make one loss of the tasks' losses: static weights, torchjd's scalarizations and aggregations.

    Balancer               static weights (`sum`), and what every method has
    Uncertainty, DynamicWeightAverage, Famo, GeometricMean, RandomWeights    scalarizations: weights of losses
    GradientBalancer       aggregations: weights of each task's gradient on the shared parameters

Whatever scalar f a scalarization makes of the losses, its gradient is `sum(df/dloss_t * gradient of loss_t)`. So every
scalarization is used through its slopes `df/dloss_t`, as weights: the loss stays exactly `sum(weight_t * loss_t)`, and
micro-batches and processes, which see only their share of a loss, agree on the weights. uncertainty, dwa and random
know them before the step; famo and geometric_mean need the losses of the whole step first, which rules out gradient
accumulation.

A *value* is a task's loss times its static `loss_weight`. A task whose value is zero in a step (it has no row, or rows
with nothing to learn) has no say in that step: no ratio, logarithm or average is made of the zero, nothing that is
learnt about the task changes, and famo, geometric_mean and the gradient methods balance the others alone.

torchjd is imported where it is used, so that `sum` works without it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate.utils import reduce
from scipy.optimize import nnls

from .settings import BalancingConfig


def slopes(scalarizer: Callable[[torch.Tensor], torch.Tensor], values: torch.Tensor) -> torch.Tensor:
    """The derivatives of a scalarization by each of the values, `(tasks,)`."""
    with torch.enable_grad():
        values = values.detach().clone().requires_grad_()
        (found,) = torch.autograd.grad(scalarizer(values), values)
    return found


def _make_adam(parameters: list[torch.nn.Parameter], lr: float, weight_decay: float = 0.0) -> torch.optim.Adam:
    """Adam whose moments are there from the start, as it would make them at its first step."""
    optimizer = torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay)
    for parameter in parameters:
        moments = {name: torch.zeros_like(parameter, requires_grad=False) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": torch.tensor(0.0), **moments}
    return optimizer


def _learnt_state(optimizer: torch.optim.Adam) -> list[dict[str, Any]]:
    """Parameters and moments as plain numbers; JSON gives every float back to the last bit."""
    (group,) = optimizer.param_groups
    return [
        {"value": parameter.tolist(), **{name: moment.tolist() for name, moment in optimizer.state[parameter].items()}}
        for parameter in group["params"]
    ]


def _load_learnt_state(optimizer: torch.optim.Adam, state: list[dict[str, Any]]) -> None:
    (group,) = optimizer.param_groups
    for parameter, saved in zip(group["params"], state, strict=True):
        parameter.data = torch.tensor(saved["value"])
        for name, moment in optimizer.state[parameter].items():
            moment.copy_(torch.tensor(saved[name]))


class Balancer:
    """
    Static weights, and what every method has.

    All vectors are `(tasks,)`, float32, on the CPU, of the whole optimizer step, and so the same on every process.

    Args:
        config: the method and its options.
        num_tasks: how many tasks there are.
        seed: of the run.
    """

    needs_values = False  # whether the weights follow from the losses of the step that they are for
    learns_after_step = False  # whether it asks how the optimizer step changed the losses

    def __init__(self, config: BalancingConfig, num_tasks: int, seed: int = 0):
        self.config, self.num_tasks, self.seed = config, num_tasks, seed

    @property
    def method(self) -> str:
        return self.config.method

    def weights(self, step: int, epoch: int, values: torch.Tensor | None) -> torch.Tensor:
        """
        What each task's value is multiplied with in a step; asking again in the same step changes nothing.

        Args:
            step: optimizer steps made so far.
            epoch: epochs finished so far.
            values: of this step, where `needs_values`.
        """
        return torch.ones(self.num_tasks)

    def weights_of_share(self, values: torch.Tensor, step: int, epoch: int) -> torch.Tensor:
        """The same for this process's share of a step's values, `(tasks,)` on any device; alike in all its shares."""
        if self.method == "sum":
            return torch.ones_like(values)
        mean = reduce(values.detach(), reduction="mean").cpu() if self.needs_values else None
        return self.weights(step, epoch, mean).to(values.detach())

    def update(self, values: torch.Tensor) -> None:
        """Learn from the values of a step, once all of it was seen."""

    def update_after_step(self, values: torch.Tensor) -> None:
        """Learn from the values of the same batch after the optimizer step."""

    def state(self) -> Any:
        """What it has learnt, as JSON."""

    def load_state(self, state: Any) -> None:
        """Go on from what `state` gave."""


class Uncertainty(Balancer):
    """`½ exp(-s_t) * value_t + ½ s_t` with a learned log-variance `s_t` (Kendall et al. 2018, arXiv 1705.07115).

    The log-variances have an Adam of their own with a constant learning rate and no weight decay: those of a model
    move them too little to matter, and nothing of them gets into the model.
    """

    def __init__(self, config: BalancingConfig, num_tasks: int, seed: int = 0):
        from torchjd.scalarization import UW

        super().__init__(config, num_tasks, seed)
        self.scalarizers = [UW(()) for _ in range(num_tasks)]
        self.optimizer = _make_adam([scalarizer.log_var for scalarizer in self.scalarizers], config.lr)

    def weights(self, step: int, epoch: int, values: torch.Tensor | None) -> torch.Tensor:
        ones = torch.ones(self.num_tasks)  # a slope here is the same at any value
        return torch.stack([slopes(scalarizer, one) for scalarizer, one in zip(self.scalarizers, ones, strict=True)])

    def update(self, values: torch.Tensor) -> None:
        for scalarizer, value in zip(self.scalarizers, values, strict=True):
            if value > 0:  # otherwise there is no gradient, which Adam leaves alone
                with torch.enable_grad():
                    scalarizer(value).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state(self) -> Any:
        return _learnt_state(self.optimizer)

    def load_state(self, state: Any) -> None:
        _load_learnt_state(self.optimizer, state)


class DynamicWeightAverage(Balancer):
    """More weight where the mean value of the last epoch fell less from the epoch before (Liu et al. 2019, DWA).

    A task's mean is over the steps that had rows of it. Until a task has two means, its rate counts as 1.
    """

    def __init__(self, config: BalancingConfig, num_tasks: int, seed: int = 0):
        super().__init__(config, num_tasks, seed)
        self.epoch = 0
        self.sums, self.counts = [0.0] * num_tasks, [0] * num_tasks  # of the epoch so far
        self.means: list[list[float]] = [[] for _ in range(num_tasks)]  # of the last two epochs that had the task

    def weights(self, step: int, epoch: int, values: torch.Tensor | None) -> torch.Tensor:
        from torchjd.scalarization import DWA

        if epoch != self.epoch:
            self._end_epoch()
            self.epoch = epoch
        scalarizer = DWA(self.config.temperature)
        for age in (0, 1):
            scalarizer(torch.tensor([means[age] if len(means) == 2 else 1.0 for means in self.means]))
            scalarizer.step()
        return slopes(scalarizer, torch.ones(self.num_tasks))

    def _end_epoch(self) -> None:
        for task, count in enumerate(self.counts):
            if count:
                self.means[task] = [*self.means[task], self.sums[task] / count][-2:]
        self.sums, self.counts = [0.0] * self.num_tasks, [0] * self.num_tasks

    def update(self, values: torch.Tensor) -> None:
        for task, value in enumerate(values.tolist()):
            if value > 0:
                self.sums[task] += value
                self.counts[task] += 1

    def state(self) -> Any:
        return {"epoch": self.epoch, "sums": self.sums, "counts": self.counts, "means": self.means}

    def load_state(self, state: Any) -> None:
        self.epoch, self.sums, self.counts, self.means = (state[k] for k in ("epoch", "sums", "counts", "means"))


class Famo(Balancer):
    """All values fall at about the same rate (Liu et al. 2023, FAMO), learnt from how a step changed them."""

    needs_values = True
    learns_after_step = True

    def __init__(self, config: BalancingConfig, num_tasks: int, seed: int = 0):
        from torchjd.scalarization import FAMO

        super().__init__(config, num_tasks, seed)
        options = {"lr": config.lr, "weight_decay": config.weight_decay}
        self.scalarizer = FAMO(num_tasks, **options)
        # torchjd keeps logits and optimizer to itself; a checkpoint needs both.
        self.logits = self.scalarizer._w
        self.optimizer = self.scalarizer._optimizer = _make_adam([self.logits], **options)
        self.present = torch.ones(num_tasks, dtype=torch.bool)

    @contextmanager
    def _only_present(self) -> Iterator[None]:
        """Let the softmax go over the tasks that are present, and leave all that belongs to the others as it is."""
        absent = ~self.present
        moments = self.optimizer.state[self.logits]
        tensors = [self.logits.data, moments["exp_avg"], moments["exp_avg_sq"]]
        kept = [tensor[absent] for tensor in tensors]
        self.logits.data[absent] = -1e4  # a softmax of exactly 0
        try:
            yield
        finally:
            for tensor, values in zip(tensors, kept, strict=True):
                tensor[absent] = values

    def weights(self, step: int, epoch: int, values: torch.Tensor | None) -> torch.Tensor:
        self.present = values > 0
        with self._only_present():
            return slopes(self.scalarizer, values.where(self.present, 1.0))

    def update_after_step(self, values: torch.Tensor) -> None:
        with self._only_present():
            self.scalarizer.update(values.where(self.present, 1.0))

    def state(self) -> Any:
        return _learnt_state(self.optimizer)

    def load_state(self, state: Any) -> None:
        _load_learnt_state(self.optimizer, state)


class GeometricMean(Balancer):
    """The geometric mean of the values (Chennupati et al. 2019): each task's slope is inverse to its value."""

    needs_values = True

    def weights(self, step: int, epoch: int, values: torch.Tensor | None) -> torch.Tensor:
        from torchjd.scalarization import GeometricMean

        weights, present = torch.zeros(self.num_tasks), values > 0
        if present.any():
            weights[present] = slopes(GeometricMean(), values[present])
        return weights


class RandomWeights(Balancer):
    """A softmax of fresh normal numbers in every step (Lin et al. 2022, arXiv 2111.10603), from seed and step."""

    def weights(self, step: int, epoch: int, values: torch.Tensor | None) -> torch.Tensor:
        from torchjd.scalarization import Random

        with torch.random.fork_rng(devices=()):  # processes draw different dropout, but should draw the same weights
            (seed,) = np.random.SeedSequence([self.seed, step]).generate_state(1)
            torch.default_generator.manual_seed(int(seed))
            return slopes(Random(), torch.ones(self.num_tasks))


def project_onto_dual_cone(vectors: torch.Tensor, gramian: torch.Tensor) -> torch.Tensor:
    """
    UPGrad's projection (Quinton & Rey 2024, arXiv 2406.16232, proposition 1): minimise `v^T G v` over `v >= u`.

    With `v = u + x` this is a non-negative least squares problem in x, which scipy solves. (torchjd's own projector
    needs quadprog, which is under the GPL.) As there, the Gramian is scaled to trace 1 and regularised with 1e-4.

    Args:
        vectors: `(..., tasks)`, each of them a u.
        gramian: `(tasks, tasks)`, of the gradients.

    Returns:
        `(..., tasks)`, each of them a v.
    """
    matrix = gramian.detach().cpu().double().numpy()
    matrix = matrix / (matrix.trace() or 1.0) + 1e-4 * np.eye(len(matrix))
    root = np.linalg.cholesky(matrix).T  # root.T @ root is the matrix
    solved = [vector + nnls(root, -root @ vector)[0] for vector in vectors.detach().cpu().double().numpy()]
    return torch.tensor(np.array(solved)).to(gramian)


class GradientBalancer(Balancer):
    """
    Each task's gradient on the shared parameters, aggregated so that tasks do not undo each other's progress.

    `pcgrad` (Yu et al. 2020, arXiv 2001.06782), `upgrad` (Quinton & Rey 2024, arXiv 2406.16232) and `aligned_mtl`
    (Senushkin et al. 2023). All three give a weighted sum of the tasks' gradients. Heads get the plain gradient of
    their own task.
    """

    def __init__(self, config: BalancingConfig, num_tasks: int, seed: int = 0):
        from torchjd.aggregation import AlignedMTL, PCGrad, UPGrad

        super().__init__(config, num_tasks, seed)
        if self.method == "pcgrad":
            self.aggregator = PCGrad()
        elif self.method == "upgrad":
            self.aggregator = UPGrad(projector=project_onto_dual_cone)
        else:
            self.aggregator = AlignedMTL(scale_mode=config.scale_mode)

    def backward(
        self, values: torch.Tensor, shared: list[torch.nn.Parameter], own: list[torch.nn.Parameter]
    ) -> torch.Tensor:
        """
        Set the gradients of one step.

        Args:
            values: `(tasks,)`, with their graph.
            shared: the trainable parameters of backbone and projection.
            own: the trainable parameters of the heads.

        Returns:
            The weight `(tasks,)` of each task's gradient on the shared parameters; 0 for tasks that are absent.
        """
        from torchjd.autojac import backward, jac_to_grad

        weights = torch.zeros_like(values)
        present = (values > 0).nonzero().flatten()
        if not len(present):  # zero gradients, not absent ones, as in any other step
            values.sum().backward()
            return weights
        if own:
            torch.autograd.backward(values.sum(), inputs=own, retain_graph=True)
        # One task at a time: torch.vmap, torchjd's default, knows not every operation of every backbone.
        backward([values[task] for task in present], inputs=shared, parallel_chunk_size=1)
        weights[present] = jac_to_grad(shared, self.aggregator, optimize_gramian_computation=True).to(weights)
        return weights
