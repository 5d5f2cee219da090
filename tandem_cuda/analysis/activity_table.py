"""The average activity of a network's layers, as a table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .._table import table

# Energy of a float32 operation in a 45 nm process at 0.9 V: M. Horowitz, "Computing's energy problem (and what we can
# do about it)", ISSCC 2014, doi:10.1109/ISSCC.2014.6757323, figure 1.1.9: 3.7 pJ per multiplication, 0.9 per addition.
ADDITION_PJ = 0.9
MAC_PJ = 4.6


@dataclass(frozen=True)
class LayerActivity:
    """The activity of one layer, averaged over the samples.

    Examples:
        >>> net = nn.Sequential(Encode(4), TandemLinear(784, 50), Decode(), nn.Linear(50, 10)).eval()
        >>> layer = synops(net, torch.rand(8, 784))[0]
        >>> layer.name, layer.neurons, layer.time_steps
        ('1', 50, 4)
    """

    name: str
    """Qualified name in the model, as in ``named_modules``."""
    neurons: int
    """Output neurons per sample."""
    time_steps: int
    """T; 1 for a layer without spikes that reads real values."""
    firing_rate: float | None
    """Spikes per output neuron and time step, in [0, 1]; None for a layer without spikes, such as a read-out."""
    saturation: float | None
    """Share of output neurons that spike as often as they can; None for a layer without spikes."""
    silent: float | None
    """Share of output neurons that do not spike for a sample; None for a layer without spikes."""
    dead: float | None
    """Share of output neurons that do not spike for any sample; None for a layer without spikes."""
    synops: float
    """Synaptic operations per sample: additions of one weight to one neuron. 0 for an analogue layer."""
    macs: int
    """Multiply-accumulates per sample of the same layer in the ANN, without taps in the zero padding."""
    analogue: bool
    """Whether the input is real, neither spikes nor counts. The layer then does the ANN's ``macs`` once for all T."""

    @property
    def snn_energy_pj(self) -> float:
        """Estimated energy of the spiking layer's arithmetic per sample, in picojoules; see :func:`synops`."""
        if self.analogue:
            return MAC_PJ * self.macs
        return (MAC_PJ if self.firing_rate is None else ADDITION_PJ) * self.synops

    @property
    def ann_energy_pj(self) -> float:
        """Estimated energy of the ANN layer's arithmetic per sample, in picojoules."""
        return MAC_PJ * self.macs


class ActivityTable(list[LayerActivity]):
    """A list of :class:`LayerActivity`, one per layer in order of execution, that prints as a table.

    Examples:
        >>> net = nn.Sequential(Encode(4), TandemLinear(784, 50), Decode(), nn.Linear(50, 10)).eval()
        >>> table = synops(net, torch.rand(8, 784))
        >>> len(table), table.not_counted
        (2, ())
    """

    def __init__(self, activities: Iterable[LayerActivity] = (), not_counted: Iterable[str] = ()) -> None:
        super().__init__(activities)
        self.not_counted = tuple(not_counted)
        """What ran but is not in the table: other modules with parameters, and products outside weight layers."""

    def __str__(self) -> str:
        rows = [["layer", "neurons", "firing rate", "saturated", "silent", "dead"]]
        rows[0] += ["SynOps", "SNN MACs", "ANN MACs", "SNN / ANN", "SNN nJ", "ANN nJ"]
        for a in self:
            rates = ["" if x is None else f"{x:.1%}" for x in (a.firing_rate, a.saturation, a.silent, a.dead)]
            rows.append([a.name, f"{a.neurons:,}", *rates, *_costs([a])])
        spiking = [(a.firing_rate, a.neurons) for a in self if a.firing_rate is not None]
        rate = sum(rate * neurons for rate, neurons in spiking) / max(1, sum(neurons for _, neurons in spiking))
        total = ["total", f"{sum(a.neurons for a in self):,}", f"{rate:.1%}", "", "", "", *_costs(self)]
        missing = f"\nNot counted: {', '.join(self.not_counted)}" if self.not_counted else ""
        return table([*rows, total]) + missing


def _costs(activities: Iterable[LayerActivity]) -> list[str]:
    """Return the total operations and energy of some layers, as cells of the table."""
    layers = list(activities)
    snn_macs, macs = sum(a.macs for a in layers if a.analogue), sum(a.macs for a in layers)
    synops = sum(a.synops for a in layers)
    counts = [f"{x:,.0f}" if x else "-" for x in (synops, snn_macs, macs)]
    energies = [sum(a.snn_energy_pj for a in layers), sum(a.ann_energy_pj for a in layers)]
    ratio = f"{(synops + snn_macs) / macs:.2f}" if macs else "-"  # a TandemAdd of identities has no MACs
    return [*counts, ratio, *(f"{x / 1000:,.1f}" for x in energies)]
