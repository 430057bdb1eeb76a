"""InsightFace's models by the user's path: detectors, recognisers, readers of attributes. Their weights are for
non-commercial research and are not shipped; ``insightface.model_zoo`` tells by its shape what a file is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def load(path: Path, what: str, providers: Sequence[str] | None = None, threads: int = 0) -> Any:
    """The model that ``insightface.model_zoo`` makes of an ONNX file, None where it knows no such network.

    what: was expected, for the errors. providers: of onnxruntime, default insightface's. threads: of the processor, 0
    for all. FileNotFoundError, ValueError where there is no such file, or one that cannot be loaded.
    """
    if not path.is_file() or path.suffix != ".onnx":
        raise FileNotFoundError(f"{path}: no such .onnx file; name {what}")
    import onnxruntime  # seconds to import, with insightface: only where a file is named
    from insightface.model_zoo import get_model

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    try:
        return get_model(str(path), providers=providers, sess_options=options)
    except Exception as error:  # onnxruntime raises its own kinds for whatever is wrong with a file
        raise ValueError(f"{path}: onnxruntime cannot load it ({error}); expected {what}: fetch it again") from error
