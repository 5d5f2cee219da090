"""TandemModule of the training example: two twins, other numbers of steps, seeds, checkpoints."""

import re
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from tandem_cuda import IF, SpikeTrain, TandemNetwork, models
from tandem_cuda.analysis import diagnose
from tandem_cuda.ops import checks
from waiting import captured_on_the_host

lightning = pytest.importorskip("lightning")
pytestmark = [
    pytest.mark.slow,  # with the others, since `make test` installs no Lightning
    pytest.mark.filterwarnings("ignore::UserWarning"),  # Lightning's advice on workers and the like
]

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import graphed  # noqa: E402 (only where Lightning is there)
import tandem_module as example  # noqa: E402

SAMPLES = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(32) % 10


def module(seed=0, **options):
    torch.manual_seed(0)
    return example.TandemModule(models.mnist_cnn(size=8, dropout=0.5), [1, 8, 8], seed=seed, **options)


def settled(**options):
    """In eval mode, with statistics of the samples."""
    made = module(**options)
    x = spikes(8) if made.encoding == "spikes" else SAMPLES
    with torch.no_grad():
        for _ in range(4):
            made(x)
    return made.eval()


def spikes(time_steps):
    return SpikeTrain.from_dense((torch.linspace(0.7, 0.9, time_steps).view(-1, 1, 1, 1, 1) < SAMPLES).float())


class Steps(lightning.LightningDataModule):
    """Three batches to train with, two to validate with."""

    def __init__(self, x, target):
        super().__init__()
        self.batch = x, target

    def train_dataloader(self):
        return DataLoader([self.batch] * 3, batch_size=None)

    def val_dataloader(self):
        return DataLoader([self.batch] * 2, batch_size=None)


def fit(made, x=SAMPLES, target=LABELS, epochs=1, ckpt_path=None, **options):
    trainer = lightning.Trainer(
        **options,
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        inference_mode=False,
    )
    trainer.fit(made, datamodule=Steps(x, target), ckpt_path=ckpt_path)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_twins_have_one_state():
    snn, ann = module(), module(spiking=False)
    assert isinstance(snn.net, TandemNetwork)
    assert snn.ann is snn.net.ann()
    assert ann.ann is ann.net
    assert list(snn.state_dict()) == list(ann.state_dict())
    assert len(list(snn.parameters())) == len(list(ann.parameters()))
    ann.load_state_dict(snn.state_dict())


def test_threshold_of_every_layer():
    made = module(threshold=0.5)
    for net in (made.net, made.network_at(3)):
        neurons = [net.snn.get_submodule(name).neuron for name in net.spiking_layers]
        assert neurons
        assert all(neuron.threshold == 0.5 for neuron in neurons)


@pytest.mark.parametrize("threshold", [0.5, {"conv2": 0.5}])
def test_clip(threshold):
    for clip in (False, True):
        made = module(threshold=threshold, clip=clip)
        for net in (made.net, made.network_at(3)):
            assert {net.snn.get_submodule(name).neuron.clip for name in net.spiking_layers} == {clip}


def test_thresholds_of_some_layers():
    made = module(threshold={"conv2": 0.5, "hidden": 0.25})
    for net in (made.net, made.network_at(3)):
        thresholds = {name: net.snn.get_submodule(name).neuron.threshold for name in net.spiking_layers}
        assert thresholds == {"conv1": 1, "conv2": 0.5, "conv3": 1, "hidden": 0.25}
    with pytest.raises(ValueError, match="threshold: layers are conv1, conv2, conv3, hidden, got 'readout'"):
        module(threshold={"readout": 0.5})


def test_levels():
    made = module(level={"conv2": 2}, encoding="impulse")
    for net, steps in ((made.net, 8), (made.network_at(3), 3)):
        neurons = {name: net.snn.get_submodule(name).neuron for name in net.spiking_layers}
        assert neurons.pop("conv2") == IF(2 / steps, amplitude=2 / steps)
        assert {*neurons.values()} == {IF(3 / steps, amplitude=3 / steps)}
    with pytest.raises(ValueError, match="level: layers are conv1, conv2, conv3, hidden, got 'readout'"):
        module(level={"readout": 0.5})
    with pytest.raises(ValueError, match=r"threshold: must be 1 with a level, which is T thresholds, got 0\.5"):
        module(level=3, threshold=0.5)
    with pytest.raises(ValueError, match="level: must be given with several time_steps, got None"):
        module(time_steps=[2, 4])


def test_thresholds_that_learn():
    made = module(learn_thresholds=True, level=3, clip=True, time_steps=[4, 8])
    assert [name for name in made.state_dict() if "log" in name] == [
        f"net.{name}.log_threshold" for name in ("conv1", "conv2", "conv3", "hidden")
    ]
    fit(made, epochs=2)
    assert all(p != 0 for p in made.log_thresholds.values())
    weights, learned = made.optimizers().param_groups
    assert weights["weight_decay"] == 0.01
    assert learned["weight_decay"] == 0
    assert {*map(id, learned["params"])} == {*map(id, made.log_thresholds.values())}
    assert {*map(id, (*weights["params"], *learned["params"]))} == {*map(id, made.parameters())}
    for net in (made.net, made.network_at(4)):
        assert {*map(id, net.parameters())} == {*map(id, made.parameters())}
    again = module(learn_thresholds=True, level=3, clip=True, time_steps=[4, 8])
    found = checkpoint(made)
    again.on_load_checkpoint(found)
    again.load_state_dict(found["state_dict"])
    made.eval()
    again.eval()
    with torch.no_grad():
        assert torch.equal(made(SAMPLES), again(SAMPLES))
        assert torch.equal(again.network_at(8)(SAMPLES), again(SAMPLES))
    plain = module()
    fit(plain)
    assert len(plain.optimizers().param_groups) == 1


def test_ann_runs_channels_last():
    made = module(spiking=False)
    filters = [p for p in made.net.parameters() if p.dim() == 4]
    assert filters
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in filters)


@pytest.mark.parametrize("encoding", ["constant", "impulse", "spikes"])
def test_what_is_logged(encoding):
    x = spikes(8) if encoding == "spikes" else SAMPLES
    metrics = fit(module(encoding=encoding), x)
    layers = ("conv1", "conv2", "conv3", "hidden")
    wanted = {f"{what}/{layer}" for what in ("firing_rate", "count_error") for layer in layers} | {"synops"}
    assert set(metrics) == wanted | {f"{part}_{what}" for part in ("train", "val") for what in ("loss", "accuracy")}
    assert all(0 < metrics[f"firing_rate/{layer}"] < 1 for layer in layers)
    assert all(metrics[f"count_error/{layer}"] > 0 for layer in layers)
    assert metrics["synops"] > 0


def test_ann_logs_no_spikes():
    metrics = fit(module(spiking=False, encoding="spikes"), spikes(8))
    assert set(metrics) == {f"{part}_{what}" for part in ("train", "val") for what in ("loss", "accuracy")}


def test_training_is_a_function_of_the_seed():
    runs = [module(seed=1), module(seed=1), module(seed=2)]
    for made in runs:
        torch.manual_seed(torch.seed())
        fit(made, epochs=2)
    states = [made.state_dict() for made in runs]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])  # other dropout


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "none"])
def test_schedules(schedule):
    made = module(schedule=schedule, learning_rate=0.01)
    fit(made, epochs=2)
    rate = made.optimizers().param_groups[0]["lr"]
    assert made._steps == (None if schedule == "none" else 6)
    assert rate == 0.01 if schedule == "none" else rate < 0.005  # the step after the last


def test_final_momentum():
    """It moves over the second half of the steps, and is the network's own again when training is over."""
    made, seen = module(final_momentum=0.1), []
    norm = made.ann.norm1
    made.net.snn.conv2.register_forward_hook(lambda *args: seen.append(norm.momentum) if made.training else None)
    fit(made, epochs=2)
    assert seen == pytest.approx([0.9, 0.9, 0.9, 0.9, 0.9 - 0.8 / 3, 0.9 - 1.6 / 3])
    assert norm.momentum == 0.9
    with pytest.raises(ValueError, match=r"final_momentum: must be in \(0, 1\], got 0"):
        module(final_momentum=0)
    with pytest.raises(ValueError, match=r"final_momentum: must be null without --trainer.max_epochs"):
        fit(module(final_momentum=0.1, schedule="none"), epochs=-1)


def test_autoencoder():
    made = example.TandemModule(models.autoencoder(64, (16, 8, 16)), [1, 8, 8], loss="mse")
    metrics = fit(made, SAMPLES, SAMPLES)
    assert "val_loss" in metrics
    assert "val_accuracy" not in metrics


# --- other numbers of steps ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["constant", "impulse", "spikes"])
def test_same_steps_same_network(encoding):
    made = settled(encoding=encoding)
    x = spikes(8) if encoding == "spikes" else SAMPLES
    with torch.no_grad():
        assert torch.equal(made.network_at(8)(x), made(x))


@pytest.mark.parametrize("encoding", ["constant", "impulse"])
@pytest.mark.parametrize("time_steps", [2, 16, 64])
def test_other_steps_same_ann(encoding, time_steps):
    """What the ANN has by itself does not depend on T; counts come nearer to it with more steps."""
    made = settled(encoding=encoding)
    activations = []
    for net in (made.net, made.network_at(time_steps)):
        assert {id(p) for p in net.parameters()} == {id(p) for p in made.parameters()}
        found = []
        layer = net.snn.conv1
        hook = layer.register_forward_hook(
            lambda module, args, train, found=found: found.append((args[0], train.count))
        )
        net(SAMPLES)
        hook.remove()
        ((x, count),) = found
        value = x.value * x.time_steps if x.mode == "constant" else x.value
        activations.append(torch.relu(layer.norm(nn.functional.conv2d(value, layer.weight, None, 1, 1))))
        if encoding == "constant":
            wanted = activations[-1].clamp(max=x.time_steps)
            assert (count <= wanted + 1).all()
            assert (count >= wanted - 1 - 1e-4).all()
    torch.testing.assert_close(*activations)


def test_more_steps_come_nearer_to_the_ann():
    made = settled()
    errors = [diagnose(made.network_at(t).snn, SAMPLES, lambda y: y.sum())[0].count_error for t in (2, 8, 64)]
    assert errors[0] >= errors[1] >= errors[2]


# --- one network for several T ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["constant", "impulse"])
def test_training_draws_from_the_list(encoding):
    made = module(time_steps=[2, 4, 8], encoding=encoding, level={"conv2": 2, "conv1": 8}, two_phase=True, initial=0.5)
    assert made.time_steps == made.net.time_steps == 8
    trained, validated = [], []

    def note(module, args):
        t = module.encode.time_steps
        assert module.conv1.neuron == IF(8 / t, amplitude=8 / t, initial=0.5, two_phase=True)
        assert module.conv2.neuron.threshold == 2 / t
        (trained if module.training else validated).append(t)

    hook = made.net.snn.register_forward_pre_hook(note)
    fit(made, epochs=20)
    hook.remove()
    assert set(trained) == {2, 4, 8}
    assert set(validated) == {8, 4}  # there are two batches
    assert made.net.time_steps == 8
    again = module(time_steps=[8, 2, 4], encoding=encoding, level={"conv2": 2, "conv1": 8}, two_phase=True, initial=0.5)
    fit(again, epochs=20)
    assert all(torch.equal(x, y) for x, y in zip(made.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_after_epochs_without_validation_it_has_the_largest_again(epochs):
    made = module(time_steps=[2, 4, 8], level=3)
    fit(made, epochs=epochs, limit_val_batches=0)
    assert made.net.time_steps == 8


def test_all_of_the_list_share_weights():
    made = settled(time_steps=[2, 4, 8], level=3, encoding="impulse", two_phase=True, initial=0.5)
    with torch.no_grad():
        assert torch.equal(made.network_at(8)(SAMPLES), made(SAMPLES))
    for t in (2, 4):
        net = made.network_at(t)
        assert {id(p) for p in net.parameters()} == {id(p) for p in made.parameters()}
        made.set_time_steps(t)
        with torch.no_grad():
            assert torch.equal(net(SAMPLES), made(SAMPLES))


def test_a_T_outside_the_list_is_told():
    made = module(time_steps=[2, 4], level=3)
    with pytest.warns(UserWarning, match="T = 3 is none that the network was trained for: 2, 4"):
        made.network_at(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made.network_at(2)
        module(time_steps=8).network_at(3)


class Data:
    """What at_time_steps asks a DataModule for."""

    def __init__(self):
        self.parts = {"train": [(SAMPLES, LABELS), (SAMPLES.flip(0) * 0.5, LABELS)]}

    def loader(self, samples, shuffle, alone):
        assert shuffle
        assert alone
        return samples


@pytest.mark.parametrize("radix", [False, True])
def test_statistics_for_other_steps(radix):
    """Those of the training batches at that T, for so long; a T that was trained for keeps its own."""
    made = settled(time_steps=[2, 4], encoding="impulse", level=3.0, two_phase=True, radix=radix)
    norm, cpu = made.ann.get_submodule("norm2"), torch.device("cpu")
    kept = {name: buffer.clone() for name, buffer in made.ann.named_buffers()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # T = 8 is not trained for
        want = made.network_at(8)
        torch.optim.swa_utils.update_bn(Data().parts["train"], want)
        mean = norm.running_mean.clone()
        for name, buffer in made.ann.named_buffers():
            buffer.copy_(kept[name])
        assert not torch.equal(mean, norm.running_mean)
        torch.manual_seed(0)
        with example.at_time_steps(made, 8, Data(), cpu) as net:
            assert net.time_steps == 8
            torch.testing.assert_close(norm.running_mean, mean, rtol=0.2, atol=0.05)  # but for dropout
    assert all(torch.equal(buffer, kept[name]) for name, buffer in made.ann.named_buffers())
    with example.at_time_steps(made, 2, None, cpu) as net:
        assert net.time_steps == 2
        assert torch.equal(norm.running_mean, kept["norm2.running_mean"])


def test_recordings_keep_their_statistics():
    made = settled(time_steps=8, encoding="spikes", level=3.0)
    with example.at_time_steps(made, 4, None, torch.device("cpu")) as net:
        assert net.time_steps == 4


def test_evaluate():
    made = settled()
    batches = [(SAMPLES[:20], LABELS[:20]), (SAMPLES[20:], LABELS[20:])]
    result = example.evaluate(made, made.net, batches, torch.device("cpu"))
    with torch.no_grad():
        output = made(SAMPLES)
    assert result["samples"] == 32
    assert result["accuracy"] == pytest.approx(float((output.argmax(1) == LABELS).float().mean()))
    assert result["loss"] == pytest.approx(float(made.loss_of(output, LABELS)), rel=1e-5)
    # Pixels and taps along an axis, of 8, 4 and 2 pixels: a tap is missing at each border, with stride 2 at the first.
    convolutions = 32 * 22**2 + 32 * 64 * 11**2 + 64 * 64 * 5**2
    assert result["ann_macs_per_sample"] == convolutions + 256 * 128 + 1280
    assert result["snn_macs_per_sample"] == 32 * 22**2
    assert [layer["name"] for layer in result["layers"]] == ["conv1", "conv2", "conv3", "hidden", "readout"]
    baseline = example.evaluate(module(spiking=False), module(spiking=False).net, batches, torch.device("cpu"))
    assert set(baseline) == {"samples", "loss", "accuracy"}


# --- checkpoints -----------------------------------------------------------------------------------------------------


def checkpoint(made):
    found = {"state_dict": made.state_dict()}
    made.on_save_checkpoint(found)
    return found


def test_checkpoint_of_the_same_run():
    found = checkpoint(module())
    found["tandem"]["seconds"] = 12.5
    made = module()
    made.on_load_checkpoint(found)
    assert made.seconds == 12.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time_steps": 9}, "was trained with time_steps = 9, this run has 8"),
        ({"time_steps": [8, 4], "level": 3}, r"was trained with time_steps = \[4, 8\], this run has 8"),
        ({"level": 3}, "was trained with level = 3, this run has None"),
        ({"initial": 0.5}, "was trained with initial = 0.5, this run has 0.0"),
        ({"two_phase": True}, "was trained with two_phase = True, this run has False"),
        ({"encoding": "impulse"}, "was trained with encoding = impulse, this run has constant"),
        ({"threshold": 0.5}, "was trained with threshold = 0.5, this run has 1.0"),
        ({"threshold": {"conv2": 0.5}}, r"was trained with threshold = \{'conv2': 0.5\}, this run has 1.0"),
        ({"spiking": False}, "was trained with spiking = False, this run has True"),
        ({"learn_thresholds": True}, "was trained with learn_thresholds = True, this run has False"),
    ],
)
def test_checkpoint_of_another_run(options, message):
    with pytest.raises(example.CheckpointError, match=message):
        module().on_load_checkpoint(checkpoint(module(**options)))


def test_checkpoint_of_another_network():
    other = example.TandemModule(models.mnist_cnn(size=8, classes=3), [1, 8, 8])
    with pytest.raises(example.CheckpointError, match=r"net.readout.weight is \[3, 128\] there and \[10, 128\] here"):
        module().on_load_checkpoint(checkpoint(other))
    with pytest.raises(example.CheckpointError, match=r"net.conv1.weight is missing there"):
        module().on_load_checkpoint({"state_dict": {}})
    more = checkpoint(module())
    more["state_dict"] = {**more["state_dict"], "net.extra": torch.zeros(2)}
    with pytest.raises(example.CheckpointError, match=r"net.extra is \[2\] there and missing here"):
        module().on_load_checkpoint(more)


# --- steps in a CUDA graph -------------------------------------------------------------------------------------------


@pytest.fixture
def stand_in(monkeypatch):
    """The host calls what a device would replay, and refuses what a graph could not capture."""
    monkeypatch.setattr(checks, "check_finite", lambda *named: None)  # on the CPU alone it reads values
    monkeypatch.setattr(example, "check_graph_trainer", lambda trainer: None)
    monkeypatch.setattr(graphed, "on_a_stream_of_its_own", lambda f: f())
    monkeypatch.setattr(graphed, "capture", captured_on_the_host)


class Sizes(Steps):
    """Batches to train with, of which the one before the last is smaller."""

    def train_dataloader(self):
        x, target = self.batch
        part = [slice(i, i + 8) for i in range(0, 20, 4)] + [slice(0, 5), slice(3, 11)]
        return DataLoader([(x[rows], target[rows]) for rows in part], batch_size=None)


class Noted(lightning.Callback):
    def __init__(self):
        self.losses, self.steps, self.rates = [], [], []

    def on_train_batch_end(self, trainer, module, outputs, *rest):
        self.losses.append(float(outputs["loss"]))
        self.steps.append(trainer.global_step)
        self.rates.append(float(module.optimizers().param_groups[0]["lr"]))


GRAPHED = {
    "ANN": ({"spiking": False}, 1),
    "spiking": ({"level": 3, "clip": True, "learn_thresholds": True, "schedule": "cosine"}, 1),
    "two phases": ({"threshold": 0.5, "two_phase": True, "initial": 0.5, "schedule": "none"}, 1),
    "as the configurations": ({"level": 3, "clip": True, "two_phase": True, "final_momentum": 0.02}, 1),
    "several T": ({"level": 3, "time_steps": [4, 8]}, 2),
}


@pytest.mark.parametrize(("options", "graphs"), GRAPHED.values(), ids=GRAPHED)
def test_steps_of_a_graph_are_those_of_lightning(options, graphs, stand_in, monkeypatch):
    """Losses, weights, schedule, logs and numbers of steps, with a batch of another size in between."""
    captures, capture = [], graphed.capture
    monkeypatch.setattr(graphed, "capture", lambda f: captures.append(f) or capture(f))
    monkeypatch.setattr(sys.modules[__name__], "Steps", Sizes)
    noted = {}
    for graph in (False, True):
        noted[graph] = Noted()
        made = module(cuda_graph=graph, **options)
        metrics = fit(made, epochs=2, callbacks=[noted[graph]])
        noted[graph].metrics, noted[graph].state = metrics, made.state_dict()
    want, got = noted[False], noted[True]
    assert len(captures) == graphs
    assert got.steps == want.steps == [*range(1, 15)]
    assert got.rates == want.rates
    assert got.losses == want.losses
    assert got.metrics == want.metrics
    assert all(torch.equal(got.state[name], value) for name, value in want.state.items())


def test_recorded_spikes_in_a_graph(stand_in):
    """A SpikeTrain keeps the counts that it has computed; those of the next batch are others."""
    x = spikes(8)
    made = module(encoding="spikes", schedule="none", cuda_graph=True)
    made.on_train_start()
    optimizer = torch.optim.AdamW(made.parameters(), 0.0)
    for _ in range(6):
        made.graphed_step((x, LABELS), optimizer)
    silent = SpikeTrain(torch.zeros_like(x.bits), 8)
    torch.manual_seed(0)
    got = float(made.graphed_step((silent, LABELS), optimizer)["loss"])
    other = module(encoding="spikes", schedule="none")
    other.load_state_dict(made.state_dict())
    torch.manual_seed(0)
    assert got == float(other.loss_of(other(silent), LABELS))


def test_momentum_of_an_ann_cannot_be_captured():
    with pytest.raises(ValueError, match=r"^final_momentum: must be null with cuda_graph and an ANN"):
        module(cuda_graph=True, final_momentum=0.1, spiking=False)


def test_a_graph_needs_a_cuda_device():
    with pytest.raises(ValueError, match=r"^cuda_graph: must be false without a CUDA device: training is on the cpu$"):
        fit(module(cuda_graph=True, schedule="none"))


UNCAPTURED_TRAINERS = {
    "accumulation": ({"accumulate_grad_batches": 2}, "accumulate_grad_batches = 2: every replayed step updates"),
    "clipping": ({"gradient_clip_val": 1.0}, "gradient_clip_val: Lightning clips in steps"),
    "precision": ({"precision": "bf16-mixed"}, "precision bf16-mixed: the backward pass"),
    "processes": ({"strategy": "ddp", "devices": 2}, "several processes: they average gradients"),
}


@pytest.mark.parametrize(("options", "message"), UNCAPTURED_TRAINERS.values(), ids=UNCAPTURED_TRAINERS)
def test_trainers_whose_steps_cannot_be_captured(options, message, monkeypatch):
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **options)
    monkeypatch.setattr(type(trainer.strategy), "root_device", torch.device("cuda"))
    with pytest.raises(ValueError, match=f"^cuda_graph: must be false with {re.escape(message)}"):
        example.check_graph_trainer(trainer)


def test_what_changes_a_step_after_its_capture_is_refused(stand_in):
    made = module(cuda_graph=True, schedule="none")
    made.penalty = lambda: torch.zeros(())
    with pytest.raises(RuntimeError, match="cuda_graph: must be false with callbacks that change the loss"):
        fit(made)
    with pytest.raises(ValueError, match="cuda_graph: must be false with detect_anomaly"):
        fit(module(cuda_graph=True, schedule="none"), detect_anomaly=True)


class Saves(lightning.Callback):
    """The state at the end of the first epoch."""

    def __init__(self, path):
        self.path = path

    def on_train_epoch_end(self, trainer, module):
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)


def test_a_resumed_run_of_a_graph_is_the_uninterrupted_one(stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "Steps", Sizes)
    options = {"cuda_graph": True, "schedule": "cosine", "level": 3}
    whole, rest = module(**options), module(**options)
    fit(whole, epochs=2, callbacks=[Saves(tmp_path / "first.ckpt")])
    fit(rest, epochs=2, ckpt_path=tmp_path / "first.ckpt")
    assert all(torch.equal(value, rest.state_dict()[name]) for name, value in whole.state_dict().items())
