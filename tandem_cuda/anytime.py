"""The public names of :mod:`tandem_cuda.freeze.anytime`."""

from .freeze.anytime import EXIT_CONFIDENCES, AccuracyCurve, OperatingPoint, Prediction, accuracy_curve, predict

__all__ = ["EXIT_CONFIDENCES", "AccuracyCurve", "OperatingPoint", "Prediction", "accuracy_curve", "predict"]
