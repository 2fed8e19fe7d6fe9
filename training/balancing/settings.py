"""The recipe's `balancing`: which method makes one loss of the tasks' losses, and with which options.

    METHODS            the methods, each with its options and their defaults
    BalancingConfig    a method and its options, checked when they are made
    format_balancing   the same in words

balancers.py holds the methods themselves, making.py gets one ready for a run.
"""

from dataclasses import asdict, dataclass
from typing import Any

from ...checks_multitask import check_choice, check_keys, is_number, suggest

# Each method's options with their defaults: those of the torchjd class. uncertainty has none there; its own learning
# rate is Adam's, whose steps have about that size, so that hundreds of steps are enough for a log-variance to settle.
METHODS: dict[str, dict[str, Any]] = {
    "sum": {},
    "uncertainty": {"lr": 0.01},
    "dwa": {"temperature": 2.0},
    "famo": {"lr": 0.025, "weight_decay": 1e-3},
    "geometric_mean": {},
    "random": {},
    "pcgrad": {},
    "upgrad": {},
    "aligned_mtl": {"scale_mode": "min"},
}
GRADIENT_METHODS = ("pcgrad", "upgrad", "aligned_mtl")
SCALE_MODES = ("min", "median", "rmse")


@dataclass(frozen=True)
class BalancingConfig:
    """
    A method and its options; an option that is not given has its default, one that the method does not know is `None`.

    Attributes:
        method: one of `METHODS`.
        lr, weight_decay, temperature, scale_mode: the options; see `METHODS` for who has which.

    Raises:
        ValueError: the method, an option or its value is unknown; says what would be right.
    """

    method: str = "sum"
    lr: float | None = None
    weight_decay: float | None = None
    temperature: float | None = None
    scale_mode: str | None = None

    @classmethod
    def from_recipe(cls, balancing: Any) -> "BalancingConfig":
        """The settings of a recipe's `balancing`: a method's name, or `{"method": name, **options}`."""
        if balancing is None or isinstance(balancing, cls):
            return balancing or cls()
        if not isinstance(balancing, dict):
            return cls(balancing)
        method, options = balancing.get("method"), {key: balancing[key] for key in balancing if key != "method"}
        if method is None:
            raise ValueError(f"balancing has no method, but should be one of {', '.join(METHODS)}.")
        cls(method)._check_options(options)
        return cls(**balancing)

    def _check_options(self, options: dict[str, Any]) -> None:
        known = METHODS[self.method]
        hint = f"The options of {self.method}: {', '.join(known)}." if known else f"{self.method} has no options."
        check_keys("balancing", options, known, hint)
        for key, value in options.items():
            if key == "scale_mode":
                check_choice("balancing.scale_mode", value, SCALE_MODES)
            elif not is_number(value) or value < 0:
                raise ValueError(f"balancing.{key} is {value!r}, but should be a number of at least 0.")
            elif key == "temperature" and value == 0:
                raise ValueError("balancing.temperature is 0, but should be above 0.")

    def __post_init__(self):
        if not isinstance(self.method, str) or self.method not in METHODS:
            raise ValueError(
                f"balancing is {self.method!r}, but should be one of {', '.join(METHODS)}."
                f"{suggest(self.method, METHODS)}"
            )
        given = {key: value for key, value in asdict(self).items() if key != "method" and value is not None}
        self._check_options(given)
        for key, default in METHODS[self.method].items():
            if getattr(self, key) is None:
                object.__setattr__(self, key, default)

    def to_recipe(self) -> dict[str, Any]:
        """`{"method": name, **options}` with every option of the method."""
        return {"method": self.method, **{key: getattr(self, key) for key in METHODS[self.method]}}


def format_balancing(settings: dict[str, Any]) -> str:
    """`famo (lr 0.025, weight_decay 0.001)`, from what `to_recipe` gives."""
    options = ", ".join(f"{key} {value}" for key, value in settings.items() if key != "method")
    return settings["method"] + (f" ({options})" if options else "")
