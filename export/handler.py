"""What an Inference Endpoint of the Hub calls in an exported repository; it needs no torch.

    EndpointHandler(folder)({"inputs": ["What a lovely evening!"], "parameters": {"embeddings": True}})

`inputs` is a sentence, a list of them, or a list of pairs `["first", "second"]`. `parameters` are those of `predict`:
`head` and `embeddings`. The answer is a dictionary for each row, as `predict(as_list=True)` gives it.
"""

import os
import sys
from typing import Any

PARAMETERS = ("head", "embeddings")


class EndpointHandler:
    """The model of a folder; called with each request."""

    def __init__(self, path: str = ""):
        folder = os.path.abspath(path or os.path.dirname(__file__))
        sys.path.insert(0, folder)
        from runtime_multitask import MultiTaskRuntime  # ty: ignore[import-not-found] - it stands in the folder

        self.model = MultiTaskRuntime.from_pretrained(folder)

    def __call__(self, data: dict[str, Any]) -> list[dict[str, Any]]:
        """
        Answer a request.

        Raises:
            TypeError: `inputs` is no text, or holds something else than texts or pairs of texts.
            ValueError: `inputs` is missing, a parameter or task is unknown, or no task reads this kind of input.
        """
        if not isinstance(data, dict) or "inputs" not in data:
            raise ValueError('The request has no inputs. Send {"inputs": ["a sentence", ...]}.')
        parameters = data.get("parameters") or {}
        for name in parameters:
            if name not in PARAMETERS:
                raise ValueError(f"parameters: unknown key {name!r}. Known keys: {', '.join(PARAMETERS)}.")
        inputs = data["inputs"]
        return self.model.predict([inputs] if isinstance(inputs, str) else inputs, as_list=True, **parameters)
