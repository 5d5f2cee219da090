"""The ANN in ONNX Runtime's int8: exported from PyTorch, and quantised by its own tools."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import peers
from ann import Sides, check_close, folded


def int8_sides(ann: nn.Module, x: Tensor) -> Sides:
    """One side, calibrated on x: a scale for each channel of the weights, and for each tensor of activations.

    Without VNNI, weights have 7 bits, as ONNX Runtime advises: products of 8 bits saturate there.
    """
    peers.require("onnxruntime")
    import onnxruntime
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Calibration(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[dict[str, Any]] = iter([feed])

        def get_next(self) -> Any:
            return next(self.batches, None)

    feed = {"x": x.contiguous().numpy()}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported, prepared, quantised = (Path(folder, name) for name in ("float.onnx", "prepared.onnx", "int8.onnx"))
        torch.onnx.export(folded(ann), (x.contiguous(),), exported, input_names=["x"], verbose=False)
        quant_pre_process(exported, prepared)
        quantization.quantize_static(
            prepared, quantised, Calibration(), per_channel=True, reduce_range=not torch.cpu._is_vnni_supported()
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(quantised, options, ["CPUExecutionProvider"])

    def infer() -> Tensor:
        return torch.from_numpy(session.run(None, feed)[0])

    sides: Sides = {"ONNX Runtime int8": infer}
    check_close(ann, x, sides, 0.25)
    return sides
