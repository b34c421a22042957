"""Weights stored in fewer bits than they are computed with: a smaller file, and the same arithmetic.

Models are the bytes of an ONNX file, in and out.
"""

from collections.abc import Callable

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from inference_core.errors import ModelError
from toolchain.graph import quiet
from toolchain.nodes import name_nodes, used_names

Stored = tuple[list[TensorProto], list[NodeProto]]  # constants, and the nodes that restore the weights

_SMALL = 64  # elements; smaller initializers stay FP32
_LINEAR = ("QuantizeLinear", "DequantizeLinear")
_BYTE_MAX = 127
_HALF_ERROR = 2.0**-10  # of the largest weight, that FP16 may be off by
_NIBBLE_BLOCK = 32  # weights that share a scale
_NIBBLE_LEAST = 1 << 14  # weights of a MatMul from which on four bits are worth their scales
_ACCURATE = 4  # MatMulNBits multiplies in INT8, the fastest that CPUs have


def half_weights(model: bytes) -> bytes:
    """`model` with its FP32 weights stored as FP16, each behind a Cast.

    ONNX Runtime folds the Casts when it loads the model, so arithmetic and speed stay FP32. Weights
    that FP16 cannot hold, too large or all too close to zero, small tensors, and the scales of INT8 layers
    stay as they are.
    """

    def store(weights: TensorProto) -> Stored | None:
        values = numpy_helper.to_array(weights)
        most = np.abs(values).max()
        if most > np.finfo(np.float16).max:
            return None
        stored = values.astype(np.float16)
        if np.abs(values - stored.astype(np.float32)).max() > _HALF_ERROR * most:
            return None
        half = numpy_helper.from_array(stored, f"{weights.name}.fp16")
        return [half], [helper.make_node("Cast", [half.name], [weights.name], to=TensorProto.FLOAT)]

    return _store(model, store)


def byte_weights(model: bytes) -> bytes:
    """`model` with its FP32 weights stored as S8 and a scale per first axis; arithmetic stays FP32.

    What `half_weights` says of folding and of what is left alone holds here too; vectors and infinite
    masks are left alone, too.
    """

    def store(weights: TensorProto) -> Stored | None:
        values, name = numpy_helper.to_array(weights), weights.name
        if values.ndim < 2 or not np.isfinite(values).all():
            return None
        most = np.abs(values).max(axis=tuple(range(1, values.ndim)), keepdims=True)
        scale = np.maximum(most / _BYTE_MAX, np.finfo(np.float32).tiny).astype(np.float32)
        steps = numpy_helper.from_array(np.rint(values / scale).astype(np.int8), f"{name}.int8")
        factor = numpy_helper.from_array(scale, f"{name}.scale")
        cast = helper.make_node("Cast", [steps.name], [f"{name}.cast"], to=TensorProto.FLOAT)
        return [steps, factor], [cast, helper.make_node("Mul", [cast.output[0], factor.name], [name])]

    return _store(model, store)


def nibble_weights(model: bytes) -> bytes | None:
    """`model` with the weights of large matrix products in 4 bits (`MatMulNBits`), in blocks of 32.

    None where there is no such product of at least `_NIBBLE_LEAST` weights. Convolutions stay as they
    are. Raises `ModelError` when the quantizer fails.
    """
    loaded = onnx.load_from_string(model)
    _open_gemms(loaded)
    name_nodes(loaded.graph)  # by which the small products are left out
    weights = {tensor.name: tensor for tensor in loaded.graph.initializer}
    small = []
    large = 0
    for node in loaded.graph.node:
        tensor = weights.get(node.input[1]) if node.op_type == "MatMul" else None
        if tensor is None:
            continue
        fits = len(tensor.dims) == 2 and np.prod(tensor.dims) >= _NIBBLE_LEAST
        large += int(fits)
        if not fits:
            small.append(node.name)
    if not large:
        return None
    with quiet():
        # Its import sets up logging for the whole process, which `quiet` takes back.
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        try:
            quantizer = MatMulNBitsQuantizer(
                loaded, block_size=_NIBBLE_BLOCK, accuracy_level=_ACCURATE, nodes_to_exclude=small
            )
            quantizer.process()
        except Exception as error:
            raise ModelError(f"the model cannot be stored in 4 bits: {error}") from error
    result: bytes = quantizer.model.model.SerializeToString()
    return result


def _open_gemms(model: ModelProto) -> None:
    """Writes every plain Gemm with constant weights as MatMul and Add, which is what can be in 4 bits."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        plain = values.get("alpha", 1.0) == values.get("beta", 1.0) == 1.0 and not values.get("transA", 0)
        if node.op_type != "Gemm" or not plain or node.input[1] not in weights:
            nodes.append(node)
            continue
        matrix = numpy_helper.to_array(weights[node.input[1]])
        name, product = f"{node.output[0]}.weight", f"{node.output[0]}.product"
        turned = np.ascontiguousarray(matrix.T if values.get("transB", 0) else matrix)
        model.graph.initializer.append(numpy_helper.from_array(turned, name))
        biased = len(node.input) > 2 and node.input[2]
        target = product if biased else node.output[0]
        nodes.append(
            helper.make_node("MatMul", [node.input[0], name], [target], f"{node.name or target}.matmul")
        )
        if biased:
            nodes.append(helper.make_node("Add", [product, node.input[2]], [node.output[0]]))
    used = used_names(nodes)
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(kept)


def _store(model: bytes, store: Callable[[TensorProto], Stored | None]) -> bytes:
    """`model` with each large FP32 initializer for which `store` has another form in that form."""
    loaded = onnx.load_from_string(model)
    graph = loaded.graph
    scales = {name for node in graph.node if node.op_type in _LINEAR for name in node.input[1:]}
    tensors: list[TensorProto] = []
    nodes: list[NodeProto] = []
    for tensor in graph.initializer:
        large = tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims) >= _SMALL
        stored = store(tensor) if large and tensor.name not in scales else None
        constants, restoring = stored or ([tensor], [])
        tensors += constants
        nodes += restoring
    changed = helper.make_graph([*nodes, *graph.node], graph.name, graph.input, graph.output, tensors)
    loaded.graph.CopyFrom(changed)
    result: bytes = loaded.SerializeToString()
    return result
