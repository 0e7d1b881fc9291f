"""To ONNX and into onnxruntime: the exporter and the kernels are the libraries', the integers are ours.

The graph is exported in real numbers, with our weights dequantized, and rounded again by onnxruntime's rule, which for
matrices is the same (max|w| / 127 for each output); so it stores the same integers, and runs them with integer kernels.
Tables are rounded per tensor there, inputs on one grid a batch instead of one a token.
"""

import contextlib
import copy
import logging
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.modeling_outputs import QuestionAnsweringModelOutput, SequenceClassifierOutput

from course_lib.compress import quantized
from course_lib.errors import CourseError, unknown
from course_lib.objectives import Batch

LEVELS = {
    "none": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC", "extended": "ORT_ENABLE_EXTENDED", "all": "ORT_ENABLE_ALL",
}  # fmt: skip
GROUPS = (16, 32, 64, 128, 256)  # neighbouring inputs for whose scales the runtime has products


class Bare(nn.Module):
    """A model as a function of its inputs in order, giving tensors."""

    def __init__(self, model: Any, names: Sequence[str]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: torch.Tensor) -> Any:
        """Logits, or (start, end) of spans."""
        found = self.model(**dict(zip(self.names, inputs, strict=True)))
        return (found.start_logits, found.end_logits) if "start_logits" in found else found.logits


def to_onnx(model: Any, path: Path, batches: Sequence[Batch]) -> None:
    """Write a model, quantized or not, for any number of rows and tokens. `batches`: texts to trace with (the first
    one) and to calibrate a static scheme on. Raises CourseError that names an operation without an ONNX form.
    """
    layers = quantized.layers(model).values()
    bits = next((m.bits for m in layers if isinstance(m, quantized.QuantizedLinear)), None)
    tables = any(isinstance(m, quantized.QuantizedEmbedding) for m in layers)
    floats = quantized.plain(copy.deepcopy(model).cpu()).eval()
    example = {k: v[:2].cpu() for k, v in batches[0].items() if k != "labels"}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, quiet():
        plain = Path(scratch) / "plain.onnx"
        export(floats, example, plain)
        _round(plain, path, bits, tables, batches)


def export(model: Any, example: Batch, path: Path) -> None:
    """The graph in real numbers."""
    if hasattr(model, "config"):
        model.config.use_cache = False
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    try:
        torch.onnx.export(
            Bare(model, list(example)).eval(),
            tuple(example.values()),
            path,
            input_names=list(example),
            dynamo=True,
            verbose=False,
            dynamic_shapes=(tuple(axes for _ in example),),
            external_data=False,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        text, cause = "", error
        while cause is not None:
            text, cause = f"{text} {cause}", cause.__cause__  # type: ignore[assignment]
        op = re.search(r"OpOverload\(op='([^']+)'|(aten[.:]+\w+)", text)
        named = f"the operation '{op[1] or op[2]}'" if op else f"this model ({type(error).__name__})"
        raise CourseError(
            f"ONNX has no form of {named}. Replace it in the model, or measure without export."
        ) from error
    _strip(path)


def _strip(path: Path) -> None:
    """Remove what only debuggers read: stack traces weigh more than a small model's norms."""
    import onnx

    graph = onnx.load(path)
    for node in [*graph.graph.node, *graph.graph.value_info, *graph.graph.input, *graph.graph.output]:
        del node.metadata_props[:]
    del graph.graph.value_info[:], graph.metadata_props[:], graph.graph.metadata_props[:]
    onnx.save(graph, path)


def check(bits: quantized.Bits) -> None:
    """Raise CourseError for integers that the runtime cannot multiply."""
    if bits.per == "group" and bits.bits not in (2, 4, 8):
        raise CourseError(f"onnxruntime has no products of {bits.bits} bits. Use 2, 4 or 8.")
    if bits.per == "group" and bits.group not in GROUPS:
        known = ", ".join(map(str, GROUPS[:-1]))
        raise CourseError(f"onnxruntime has no groups of {bits.group} inputs. Use {known} or {GROUPS[-1]}.")
    if bits.per != "group" and bits.scheme == "weight":
        raise CourseError("onnxruntime multiplies reals with integers in groups only. Use dynamic or static, or int4.")


def _round(plain: Path, path: Path, bits: quantized.Bits | None, tables: bool, batches: Sequence[Batch]) -> None:
    """Integers where the model has some."""
    from onnxruntime import quantization as rounding

    if bits is None:
        path.write_bytes(plain.read_bytes())
        return
    check(bits)
    kinds = ["MatMul", "Gemm", *["Gather"] * tables]
    common: dict[str, Any] = {"per_channel": bits.per == "channel", "weight_type": rounding.QuantType.QInt8}
    if bits.per == "group":
        import onnx
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        how = {"bits": bits.bits, "block_size": bits.group, "is_symmetric": False, "accuracy_level": 4}
        small = MatMulNBitsQuantizer(onnx.load(plain), **how)
        small.process()
        small.model.save_model_to_file(str(plain), False)
        kinds = ["Gather"] * tables
    if bits.scheme == "static":
        feeds = _Feeds([feed(batch) for batch in batches])
        # The same grid 128 higher: x86 multiplies unsigned by signed bytes; signed inputs take a slow way around.
        common["activation_type"] = rounding.QuantType.QUInt8
        rounding.quantize_static(plain, path, feeds, op_types_to_quantize=kinds, **common)
    elif kinds:
        rounding.quantize_dynamic(plain, path, op_types_to_quantize=kinds, **common)
    else:
        path.write_bytes(plain.read_bytes())


class _Feeds:
    """What onnxruntime calibrates on; duck-typed, so that nothing is imported before it is needed."""

    def __init__(self, feeds: list[dict[str, np.ndarray]]):
        self.left = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next one, or None."""
        return next(self.left, None)


def feed(batch: Batch) -> dict[str, np.ndarray]:
    """A batch as onnxruntime takes it."""
    return {name: value.cpu().numpy() for name, value in batch.items() if name != "labels"}


def optimisation(level: str) -> str:
    """What onnxruntime calls a level. Raises CourseError for one that it does not have."""
    if level not in LEVELS:
        raise unknown("optimisation level", level, LEVELS)
    return LEVELS[level]


def session(path: Path, threads: int = 1, level: str = "all") -> Any:
    """The runtime with a model in it. `level` of graph optimisation: none, basic, extended or all."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, optimisation(level))
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Runtime(nn.Module):
    """A session that looks like the model it was made of, so that heads judge it in the same way."""

    def __init__(self, session: Any, config: Any):
        super().__init__()
        self.session, self.config = session, config
        self.names = [item.name for item in session.get_inputs()]
        self.where = nn.Parameter(torch.zeros(0), requires_grad=False)  # says that it lives on the CPU

    def forward(self, **batch: torch.Tensor) -> Any:
        """Outputs as `transformers` gives them."""
        found = self.session.run(None, {name: batch[name].numpy() for name in self.names})
        tensors = [torch.from_numpy(value) for value in found]
        return (
            QuestionAnsweringModelOutput(None, *tensors)
            if len(tensors) == 2
            else SequenceClassifierOutput(None, *tensors)
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporter and quantizer say much that is no help here; errors still come through."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
