"""Networks of transformers, from a local folder or the hub, loaded without any random weights."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from refbench.errors import AdapterError
from refbench.storage.files import path_sha256


def load_network(kind: Any, model: str, revision: str, dtype: Any) -> Any:
    """`kind.from_pretrained(model)` in evaluation mode; `model` is a folder of `save_pretrained` or a model id of the
    hub.

    Raises:
        AdapterError: the model cannot be loaded, or its checkpoint lacks weights of this architecture.
    """
    try:
        network, info = kind.from_pretrained(model, revision=revision, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise AdapterError(
            f"{model} cannot be loaded as {kind.__name__}: {error}; pass a folder written by `save_pretrained` "
            "or a model id of the Hugging Face hub"
        ) from error
    # A checkpoint of another architecture loads "fine", with random weights where keys do not match.
    wrong = sorted(info.get("missing_keys") or []) + sorted(str(k) for k in info.get("mismatched_keys") or [])
    if wrong:
        raise AdapterError(
            f"{model} lacks {len(wrong)} weights of {kind.__name__}, for example {wrong[0]}; these weights "
            "would be initialised randomly"
        )
    return network.eval()


class SharedTokenizer:
    """A tokenizer of transformers that several threads can call.

    Fast tokenizers change their padding and truncation settings at each call, and fail if another thread is using them
    at the same time.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        with self._lock:
            return self._tokenizer(*arguments, **options)

    def __reduce__(self) -> Any:
        # Locks cannot be pickled; another process needs one of its own.
        return SharedTokenizer, (self._tokenizer,)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._tokenizer, name)


def weights_sha256(model: str, revision: str) -> str:
    """The sha256 of the files of a local model, or its id and revision on the hub."""
    return path_sha256(Path(model)) if Path(model).is_dir() else f"{model}@{revision}"
