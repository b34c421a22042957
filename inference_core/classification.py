"""Outputs as a request wants them: those that it names, as tensors or as their best classes.

The latter is the classification extension of the Open Inference Protocol:
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_classification.md
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference_core.errors import InvalidInput
from inference_core.tensors import Parameter, Tensors, refuse_shared_memory

PARAMETER = "classification"


def class_count(output: str, parameters: Mapping[str, Parameter]) -> int:
    """How many of its best classes `output` is to come as, by its `parameters`; 0 for the tensor itself.

    Raises `InvalidInput` for a number that is not whole or not 1 or more, and for shared memory.
    """
    refuse_shared_memory(f"output {output!r}", parameters)
    value = parameters.get(PARAMETER)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidInput(
            f"output {output!r}: parameter {PARAMETER} must be a whole number >= 1, got {value!r}"
        )
    return value


def check_outputs(wanted: Collection[str], present: Collection[str]) -> None:
    """Raise `InvalidInput` for a wanted output that is not among those of the model."""
    for name in wanted:
        if name not in present:
            raise InvalidInput(f"output {name!r}: the model has {', '.join(map(repr, present))} only")


def select(outputs: Tensors, wanted: Mapping[str, int], labels: Sequence[str]) -> Tensors:
    """The wanted ones of `outputs`, by name, each with how many of its best classes it is to be given as, 0
    for the tensor itself; all of them where none is named. Raises what `check_outputs` and `classes` do.
    """
    if not wanted:
        return outputs
    check_outputs(wanted, outputs)
    return {
        name: classes(name, outputs[name], count, labels) if count else outputs[name]
        for name, count in wanted.items()
    }


def classes(name: str, output: NDArray[Any], count: int, labels: Sequence[str]) -> NDArray[Any]:
    """The `count` highest values of each sample of `output`, as `BYTES` of shape `[samples, count]`.

    Each is "value:index:label", the highest first and the lower index first among equals; a class without
    a label has no third part. Fewer classes than `count` are all given. `output` is called `name` and has
    the shape `[samples, ...]`, whose other axes are taken as one; raises `InvalidInput` for another.
    """
    if output.ndim < 1 or output.dtype.kind not in "iuf":
        raise InvalidInput(f"output {name!r}: {output.dtype}{list(output.shape)} has no classes")
    rows = output.reshape(len(output), math.prod(output.shape[1:]))
    # Negated, NaN goes last and equals keep their order; unsigned integers cannot be negated.
    order = np.argsort(-rows.astype(np.float64), axis=1, kind="stable")[:, :count]
    found = np.empty(order.shape, dtype=object)
    for row, best in enumerate(order.tolist()):
        for at, index in enumerate(best):
            label = f":{labels[index]}" if index < len(labels) else ""
            found[row, at] = f"{_value(rows[row, index])}:{index}{label}".encode()
    return found


def _value(value: np.generic) -> str:
    return f"{float(value):f}" if value.dtype.kind == "f" else str(int(value))
