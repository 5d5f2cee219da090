"""Random networks: converted, trained for three steps, evaluated, frozen, written to files, exported, reported."""

import copy
import tempfile
import warnings

import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_leaves

from fuzz import conversions
from fuzz.draw import Draw
from tandem_cuda import IF, LIF, FrozenNetwork, convert, freeze, quantise, synops
from tandem_cuda.exchange import to_nir

from .digest import attempt, digest, gradients_of, refusal, state_of

COUNT = 500


def names():
    return [f"network {i}" for i in range(COUNT)]


def made(name):
    """(draw, ANN, SNN, images, messages of the conversion) of a case."""
    draw = Draw(int(name.split()[1]))
    torch.manual_seed(draw.int(0, 2**31))
    ann, x = conversions.network(draw)
    settings = {
        "mode": draw.one(("constant", "constant", "impulse")),
        "engine": draw.one(("auto", "auto", "event", "dense")),
        "weights": draw.one((None, None, None, "int8", "int16")),
        "calibrate": x if draw.chance(0.8) else None,
    }
    if settings["calibrate"] is None:
        settings["neuron"] = draw.one((None, IF(), IF(0.5, initial=0.5), LIF(leak=0.9), IF(two_phase=True)))
    else:
        settings["neuron"] = draw.one((None, None, IF(), IF(initial=0.5), IF(initial=0.5, two_phase=True)))
        settings["per_channel"] = draw.one((True, True, False))
        settings["correct_bias"] = draw.one((None, None, False))
        settings["percentile"] = draw.one((None, None, 99.0))
    settings = {key: value for key, value in settings.items() if value is not None} | {"example": x}
    if draw.chance(0.15):
        settings["spiking_layers"] = draw.int(1, 3)
    steps = draw.one((1, 2, 4, 4, 8, 11))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        snn = convert(ann, steps, **settings)
    return draw, ann, snn, x, [str(message.message) for message in said]


def run(name):
    try:
        draw, ann, snn, x, said = made(name)
    except Exception as error:
        return {"conversion": refusal(error)}
    found = {"warnings": digest(said), "network": str(snn.snn), "report": attempt(lambda: str(snn.report()))}
    found["levels"] = digest(None if snn.levels is None else dict(snn.levels))
    try:
        found.update(trained(snn, x))
    except RuntimeError as error:
        return found | {"training": refusal(error)}
    found.update(evaluated(draw, ann, snn, x))
    found.update(written(snn, x))
    return found


def trained(snn, x):
    found = {}
    labels = torch.arange(len(x)) % 4
    optimiser = torch.optim.SGD(snn.parameters(), 0.02, momentum=0.9)
    snn.train()
    for step in range(3):
        torch.manual_seed(step)
        optimiser.zero_grad()
        out = snn(x)
        F.cross_entropy(logits(out), labels).backward()
        found[f"output of step {step}"] = digest(out)
        found[f"gradients of step {step}"] = digest(gradients_of(snn))
        optimiser.step()
    snn.eval()
    found["state"] = digest(state_of(snn))
    return found


def logits(out):
    """Of several outputs, the first."""
    return tree_leaves(out)[0]


def evaluated(draw, ann, snn, x):
    with torch.no_grad():
        found = {"eval": attempt(snn, x), "eval again": attempt(snn, x), "copy": attempt(copy.deepcopy(snn), x)}
        found["ann"] = attempt(ann, x)
    found["report after training"] = attempt(lambda: str(snn.report(x)))
    found["operations"] = attempt(lambda: str(synops(snn, x)))
    found["graph"] = attempt(lambda: graph(to_nir(snn, x[:1])))
    other = copy.deepcopy(snn)
    found["other time steps"] = attempt(lambda: other.set_time_steps(6) or other(x))
    if draw.chance(0.3):
        found["quantised"] = attempt(lambda: quantise(other, 8) or other(x))
    return found


def graph(nir_graph):
    """The nodes and edges of a NIR graph, for `digest`."""
    nodes = {}
    for name, node in nir_graph.nodes.items():
        values = vars(node).items()
        nodes[name] = [type(node).__name__, *((key, torch.as_tensor(v)) for key, v in values if hasattr(v, "dtype"))]
    return {
        **nodes,
        "edges": sorted(map(str, nir_graph.edges)),
        "metadata": sorted(map(str, nir_graph.metadata.items())),
    }


def written(snn, x):
    try:
        frozen = freeze(snn)
    except Exception as error:
        return {"frozen": refusal(error)}
    found = {"frozen": digest(frozen(x)), "nodes": str(frozen)}
    with tempfile.TemporaryDirectory() as folder:
        frozen.save(f"{folder}/net.safetensors")
        found["loaded"] = attempt(lambda: FrozenNetwork.load(f"{folder}/net.safetensors")(x))
    found["predictions"] = attempt(lambda: frozen.predict(x, 0.6))
    found["predictions of the whole"] = attempt(lambda: frozen.predict(x, 0.6, chunk=snn.time_steps))
    found["stream"] = attempt(lambda: chunks(frozen, x))
    return found


def chunks(frozen, x):
    stream, outputs = frozen.stream(x), []
    while stream.remaining:
        outputs.append(stream.advance(min(3, stream.remaining)))
    return outputs
