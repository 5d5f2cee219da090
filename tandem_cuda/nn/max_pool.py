"""Max pooling of spike trains."""

from __future__ import annotations

from torch import Tensor, nn

from .. import ops
from ..spike_train import SpikeTrain
from .coupling import carrying, needs_gradient
from .geometry import check_image


class SpikingMaxPool2d(nn.MaxPool2d):
    """Max pooling of spikes by count: the pooled count is exactly nn.MaxPool2d of the counts, whatever T.

    Let c_i[t] be the number of spikes of neuron i up to step t. A pooled neuron spikes when the largest count of its
    window grows::

        M[t] = max over i of c_i[t],      s[t] = M[t] - M[t-1]

    A count grows by at most one per step, and so does M, so s[t] is 0 or 1. The tandem coupling is therefore exact in
    value and gradient; the gradient goes to the neuron with the most spikes, as in torch. The usual rule passes on the
    spikes of the neuron that has fired most so far (Rueckauer et al. 2017, doi:10.3389/fnins.2017.00682). Unlike it,
    this layer drops the spikes with which another neuron only catches up. For T = 1 the result is the OR of the
    window's spikes. (The CifarNet of Wu et al. 2021 has strided convolutions instead of pooling.) The output's
    ``amplitude`` is that of the input.

    Pooling needs one counter per input neuron and takes much less time than the convolution before it
    (docs/performance.md). It has no synaptic operations (SynOps), since it adds nothing to a membrane potential.

    Args:
        kernel_size: size of the window, an int or a pair.
        stride: an int or a pair; defaults to ``kernel_size``.
        padding: silent neurons added around the image, an int or a pair.
        dilation: spacing of the window's neurons, an int or a pair.
        return_indices: must be False.
        ceil_mode: let the last windows extend beyond the padded image.

    Shape:
        SpikeTrain [N, C, H, W] -> SpikeTrain [N, C, Ho, Wo].

    Raises:
        TypeError: the input is not a SpikeTrain.
        ValueError: the input is not [N, C, H, W], a window is larger than the padded image, or ``return_indices`` is
            True.

    Examples:
        >>> bits = torch.tensor([[0b0001, 0b0111], [0b0000, 0b1000]], dtype=torch.uint8)  # T = 4, 2 x 2 neurons
        >>> x = SpikeTrain(bits.view(1, 1, 1, 2, 2), time_steps=4)
        >>> SpikingMaxPool2d(2)(x).count.item()
        3.0
    """

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        if return_indices:
            raise ValueError(
                "SpikingMaxPool2d: return_indices must be False, since the maximum moves from step to step"
            )
        super().__init__(kernel_size, stride, padding, dilation, return_indices, ceil_mode)

    def forward(self, x: SpikeTrain) -> SpikeTrain:  # type: ignore[override]
        check_image(self, x)
        bits, _ = self.spikes(x)
        # The ANN's pooling of the counts has the same values, except for windows entirely in the padding, where it
        # is negative: clamp those.
        largest = super().forward(x.count).clamp(min=0) if needs_gradient(x.carried_count) else None
        return carrying(bits, x, largest)

    def spikes(self, x: SpikeTrain, count: Tensor | None = None, want_count: bool = False) -> tuple[Tensor, Tensor]:
        """Return the bits and the inputs' final counts; ``count`` continues an earlier call."""
        pooling = (self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)
        return ops.max_pool_spikes.trusted(
            x.bits, *pooling, time_steps=x.time_steps, count=count, want_count=want_count
        )


class SpikingGlobalMaxPool2d(nn.Module):
    """Max pooling of spikes by count over the whole image, whatever its size.

    As :class:`SpikingMaxPool2d` with a window that covers the image: the count is the largest count of each channel.

    Shape:
        SpikeTrain [N, C, H, W] -> SpikeTrain [N, C, 1, 1].

    Raises:
        TypeError: the input is not a SpikeTrain.
        ValueError: the input is not [N, C, H, W].

    Examples:
        >>> x = SpikeTrain.from_dense(torch.ones(4, 2, 3, 7, 5))
        >>> SpikingGlobalMaxPool2d()(x).shape
        torch.Size([2, 3, 1, 1])
    """

    def forward(self, x: SpikeTrain) -> SpikeTrain:
        check_image(self, x)
        bits, _ = self.spikes(x)
        largest = x.count.amax((2, 3), keepdim=True) if needs_gradient(x.carried_count) else None
        return carrying(bits, x, largest)

    def spikes(self, x: SpikeTrain, count: Tensor | None = None, want_count: bool = False) -> tuple[Tensor, Tensor]:
        """Return the bits and the inputs' final counts; ``count`` continues an earlier call."""
        window = (*x.shape[2:],)
        return ops.max_pool_spikes.trusted(x.bits, window, time_steps=x.time_steps, count=count, want_count=want_count)
