"""Does an exported graph give what the model gives? Asked of the files, on real and on odd text, before they are kept.

SENTENCES     what is tried
check_tokens  the runtime cuts texts into the same tokens
differences   the largest difference of each output
"""

import numpy as np
import torch

from ..heads_multitask import task_logits
from ..modeling_multitask import MultiTaskModel
from ..runtime import MultiTaskRuntime
from ..tokenizer_multitask import own_tokenizer, token_ids

TOLERANCE = 1e-5  # of an output that is about 1; of larger ones, that share
SENTENCES = [
    "The committee will publish its findings in spring.",
    "I would happily stay here again!",
    "no",
    "Prices went up; nobody was surprised, least of all the shopkeepers around the corner from the old station.",
    "@someone thanks a lot #done https://example.org/a?b=c&d 100% :-)",
    "Cafe, naive, emoji \N{ROCKET} and a little \N{ARABIC LETTER ALEF}\N{ARABIC LETTER LAM}.",
    "\N{CJK UNIFIED IDEOGRAPH-4E2D}\N{CJK UNIFIED IDEOGRAPH-6587}",
    "",
    "\t\n ",
    "one\N{ZERO WIDTH SPACE}word e\N{COMBINING ACUTE ACCENT} \N{REPLACEMENT CHARACTER} <s> [SEP] </s> [MASK]\N{NULL}",
    "word " * 3 + "a" * 400,
    "It took so long that nobody could say any more how it had begun. " * 80,
]


def check_tokens(model: MultiTaskModel, runtime: MultiTaskRuntime) -> None:
    """Raise a ValueError where the runtime, which has tokenizer.json alone, reads a text otherwise than the model."""
    expected = token_ids(own_tokenizer(model), SENTENCES, model.config.max_length)
    for sentence, ids, wanted in zip(SENTENCES, runtime.tokenize(SENTENCES), expected, strict=True):
        if ids != wanted:
            raise ValueError(
                f"The tokenizer {type(model.tokenizer).__name__} reads {sentence[:40]!r} as {wanted[:12]}..., but "
                f"tokenizer.json alone as {ids[:12]}..., so a runtime without transformers would answer wrongly. "
                "Save the model with a tokenizer whose tokenizer.json holds all of it (PreTrainedTokenizerFast)."
            )


@torch.no_grad()
def differences(model: MultiTaskModel, runtime: MultiTaskRuntime) -> dict[str, float]:
    """By output, the largest difference between a runtime and its model; of values above 1, relative to them."""
    tasks, token_ids = model.config.tasks, runtime.tokenize(SENTENCES)
    embeddings = torch.as_tensor(model.encode(SENTENCES, normalize=False))
    rows = torch.arange(len(SENTENCES))
    rows = torch.stack([rows, rows.roll(1)], dim=1)  # (pairs, 2)
    expected, given = {}, {}
    for is_pair in (False, True):
        names = [name for name, task in tasks.items() if task.pair == is_pair]
        logits = task_logits(model, embeddings, names, dict.fromkeys(names, rows if is_pair else None))
        expected |= {f"logits.{name}": values for name, values in logits.items()}
        outputs = [f"logits.{name}" for name in names]
        if is_pair:
            given |= runtime.compare(runtime.encode(SENTENCES, normalize=False), rows.numpy(), outputs)
        else:
            given |= runtime.compute(token_ids, outputs)
    expected["sentence_embedding"] = torch.from_numpy(model.encode(SENTENCES))
    given |= runtime.compute(token_ids, ["sentence_embedding"])
    found = {}
    for name, wanted in expected.items():
        wanted = wanted.numpy()
        found[name] = float(np.max(np.abs(given[name] - wanted) / np.maximum(1.0, np.abs(wanted)), initial=0.0))
    return found


def check_answers(model: MultiTaskModel, runtime: MultiTaskRuntime, where: str) -> dict[str, float]:
    """The differences; a ValueError that names the worst output where one is above `TOLERANCE`."""
    found = differences(model, runtime)
    worst = max(found, key=lambda name: (np.isnan(found[name]), found[name]))
    if not found[worst] <= TOLERANCE:  # NaN is no good either
        raise ValueError(
            f"{where}: the output {worst} differs from the model's by {found[worst]:.1e}, but should by at most "
            f"{TOLERANCE:g}. Nothing was written. Another version of onnx, onnxscript or openvino may do better."
        )
    return found
