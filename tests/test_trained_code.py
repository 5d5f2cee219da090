"""Layers refuse spikes of another code than the code of the spikes that they were trained with."""

import copy
import io
import pickle
from collections import OrderedDict

import pytest
import torch
from torch import nn

from layer_cases import CASES, every
from tandem_cuda import IF, Decode, Encode, RadixIF, SpikeTrain, TandemLinear, convert, freeze
from tandem_cuda.freeze import FrozenNetwork

READING_SPIKES = [case for case in CASES if case.has_weights and not case.encodes]
CODES = pytest.mark.parametrize("radix", [True, False], ids=["radix", "rate"])
REFUSAL = r"radix=\w+\), with which the layer was trained"


def step(layer, inputs):
    """Train by one step."""
    layer.train()
    layer(*inputs).value.sum().backward()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 1 / 64
    return layer.eval()


def both(case, radix):
    """Inputs of a code, and of the other one."""
    return case.inputs(time_steps=4, radix=radix), case.inputs(time_steps=4, radix=not radix)


def two_phase(radix):
    return {"neuron": RadixIF(4.0) if radix else IF(0.5, initial=0.5, two_phase=True)}


@every(READING_SPIKES)
@CODES
def test_every_layer(case, radix):
    layer = case.make(**({} if "neuron" in case.named else two_phase(radix)))
    ours, others = both(case, radix)
    step(layer, ours)
    for copied in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        copied(*ours)
        with pytest.raises(ValueError, match=REFUSAL):
            copied(*others)


def network(radix):
    return nn.Sequential(TandemLinear(6, 5, **two_phase(radix)), Decode(), nn.Linear(5, 2))


def trains(radix, steps=4):
    bits = (torch.rand(steps, 3, 6) < 0.5).float()
    return SpikeTrain.from_dense(bits, radix=radix), SpikeTrain.from_dense(bits, radix=not radix)


@CODES
def test_frozen_networks_and_files(radix):
    net, (ours, other) = network(radix), trains(radix)
    step(net[0], [ours])
    frozen, file = freeze(net.eval()), io.BytesIO()
    torch.save(frozen, file)
    file.seek(0)
    for network_ in (frozen, pickle.loads(pickle.dumps(frozen)), torch.load(file, weights_only=False)):
        network_(ours)
        with pytest.raises(ValueError, match=REFUSAL):
            network_(other)


@CODES
def test_saved_files(radix, tmp_path):
    pytest.importorskip("safetensors")
    net, (ours, other) = network(radix), trains(radix)
    step(net[0], [ours])
    freeze(net.eval()).save(tmp_path / "net")
    loaded = FrozenNetwork.load(tmp_path / "net")
    assert torch.equal(loaded(ours), net(ours))
    with pytest.raises(ValueError, match=REFUSAL):
        loaded(other)


def test_files_leave_out_what_the_graph_says():
    net = nn.Sequential(Encode(4), TandemLinear(6, 5), TandemLinear(5, 4), Decode(), nn.Linear(4, 2))
    before = freeze(net.eval())
    net.train()(torch.rand(3, 6)).sum().backward()
    torch.optim.SGD(net.parameters(), 0.1).step()
    net.eval()(torch.rand(3, 6))
    assert net[2].trained_radix is False
    after = freeze(net)
    assert [node.layer.settings() for node in after.nodes] == [node.layer.settings() for node in before.nodes]
    before.load_state_dict(after.state_dict())


@CODES
def test_advice_is_right(radix):
    """Another train, or another training."""
    net, (ours, other) = network(radix), trains(radix)
    step(net[0], [ours])
    with pytest.raises(ValueError, match=f"make the train with radix={radix}, or set the layer's trained_radix to N"):
        net(other)
    net(other.replace(radix=radix))
    net[0].trained_radix = None
    step(net[0], [other])
    net(other)
    with pytest.raises(ValueError, match=REFUSAL):
        net(ours)


@CODES
def test_neurons_exchanged_after_training(radix):
    net = nn.Sequential(TandemLinear(6, 5, **two_phase(radix)), TandemLinear(5, 4, **two_phase(True)), Decode())
    step(net[1], [net[0](trains(True)[0])])
    net[0].neuron = two_phase(not radix)["neuron"]
    with pytest.raises(ValueError, match=rf"TandemLinear.*{REFUSAL}"):
        net(trains(True)[0])
    with pytest.raises(ValueError, match="TandemLinear '1': input must be"):
        freeze(net.eval())


def test_untrained_layers_take_both():
    net, (rate, radix) = network(True), trains(False)
    for x in (rate, radix, rate):
        net.train()(x).sum().backward()
        net.eval()(x)
    assert net[0].trained_radix is None


def test_loading_is_no_training():
    net, (rate, radix) = network(True), trains(False)
    net(rate)
    net.load_state_dict(network(True).state_dict())
    net(radix)
    step(net[0], [radix])
    net.load_state_dict(network(True).state_dict())  # a checkpoint of this training, for example
    with pytest.raises(ValueError, match=REFUSAL):
        net(rate)


@CODES
def test_state_dicts(radix):
    """They keep the ANN's keys: the note is in their metadata, which files have, too."""
    net, (ours, other) = network(radix), trains(radix)
    step(net[0], [ours])
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    for state in (net.state_dict(), copy.deepcopy(net.state_dict()), torch.load(file)):
        assert [*state] == ["0.weight", "0.bias", "2.weight", "2.bias"]
        loaded = network(radix).eval()
        loaded.load_state_dict(state)
        assert torch.equal(loaded(ours), net(ours))
        for refusing in (loaded, freeze(loaded)):
            with pytest.raises(ValueError, match=REFUSAL):
                refusing(other)
    net.load_state_dict(OrderedDict(net.state_dict().items()))  # without metadata
    with pytest.raises(ValueError, match=REFUSAL):
        net(other)


@CODES
def test_state_dicts_of_converted_networks(radix):
    def converted():
        ann = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
        return convert(ann, 4, mode="spikes", example=torch.zeros(1, 6), **two_phase(radix))

    net, (ours, other) = converted(), trains(radix)
    net.train()(ours).sum().backward()
    torch.optim.SGD(net.parameters(), 0.1).step()
    state, loaded = net.eval().state_dict(), converted().eval()
    assert [*state] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    loaded(other)
    loaded.load_state_dict(state)
    loaded.ann().load_state_dict(state)
    assert torch.equal(loaded(ours), net(ours))
    with pytest.raises(ValueError, match=REFUSAL):
        loaded(other)


def test_real_input_is_no_train():
    layer = TandemLinear(6, 5, neuron=RadixIF(4.0))
    step(layer, [Encode(4, "impulse")(torch.rand(3, 6))])
    for x in trains(False):
        layer(x)
    assert layer.trained_radix is None


def test_compiled_calls_refuse_too():
    net, (rate, radix) = network(True), trains(False)
    step(net[0], [radix])
    net[0](radix)
    with pytest.raises(Exception, match="with which the layer was trained"):
        torch.compile(net, backend="eager")(rate)
