"""The public names of :mod:`tandem_cuda.analysis.diagnostics`."""

from .analysis.diagnostics import AgreementTable, LayerAgreement, counts_and_activations, diagnose

__all__ = ["AgreementTable", "LayerAgreement", "counts_and_activations", "diagnose"]
