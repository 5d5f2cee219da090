"""The recipes of examples/recipes.py: stages, what stays fixed, resumed runs, refusals; on digits. Slow and nightly."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

EXAMPLES = Path(__file__).parents[1] / "examples"

lightning = pytest.importorskip("lightning")
for name in ("jsonargparse", "tensorboard", "torchvision"):
    pytest.importorskip(name)
sys.path.insert(0, str(EXAMPLES))  # where these are; none loads without what was asked for above
import data  # noqa: E402
import recipes  # noqa: E402
import tandem_module  # noqa: E402
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint  # noqa: E402

from anns import per_layer  # noqa: E402
from exact import generator, same  # noqa: E402
from tandem_cuda import FiringRatePenalty, SpikeTrain, TandemNetwork, convert, freeze, models  # noqa: E402
from tandem_cuda.quantisation import quantiser  # noqa: E402

pytestmark = pytest.mark.slow  # with the others, since `make test` installs no Lightning


@pytest.fixture(autouse=True)
def quiet():
    import console

    console.quieten_lightning()


def network():
    torch.manual_seed(0)
    layers = []
    for _ in range(3):
        layers += [nn.Linear(8, 8), nn.BatchNorm1d(8, momentum=0.5), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(8, 3))


def batches(n, seed):
    x = torch.rand(n, 8, generator=generator(seed))
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=16)


class Seen(lightning.Callback):
    """What the recipes did, epoch by epoch."""

    def __init__(self):
        self.layers, self.losses, self.weights, self.penalties = [], [], [], []

    def on_train_epoch_end(self, trainer, module):
        spiking = isinstance(module.net, TandemNetwork)
        self.layers.append(len(module.net.spiking_layers) if spiking else 0)
        self.losses.append(float(trainer.callback_metrics["train_loss"]))
        self.weights.append({k: v.clone() for k, v in module.ann.state_dict().items()})
        logged = trainer.callback_metrics
        kinds = (recipes.RateRegulariser, recipes.ActiveRegulariser, recipes.SynOpsRegulariser)
        self.penalties.append(next((logged[kind.logged] for kind in kinds if kind.logged in logged), None))


def fit(callbacks, epochs, folder=None, checkpoint=None, **settings):
    """A module after training, with what was seen."""
    module = tandem_module.TandemModule(network(), [8], learning_rate=0.01, schedule="none", **settings)
    seen = Seen()
    kept = [] if folder is None else [ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)]
    kept += [callback for callback in callbacks if isinstance(callback, ModelCheckpoint)]
    callbacks = [callback for callback in callbacks if callback not in kept]
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=bool(kept),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        inference_mode=False,
        callbacks=[*callbacks, *kept, seen],
    )
    trainer.fit(module, batches(64, 0), batches(32, 1), ckpt_path=checkpoint)
    return module, seen, trainer


def test_ann_first():
    recipe = recipes.AnnFirst(2, percentile=99)
    module, seen, trainer = fit([recipe], 5)
    assert seen.layers == [0, 0, 3, 3, 3]
    assert module.net.levels == recipe.levels
    assert {id(p) for p in trainer.optimizers[0].param_groups[0]["params"]} == {id(p) for p in module.net.parameters()}
    assert any((seen.weights[-1][k] != seen.weights[2][k]).any() for k in seen.weights[0] if k.endswith("weight"))
    # The ANN of the first two epochs is what training an ANN alone gives.
    _, alone, _ = fit([], 2, spiking=False)
    same(tuple(seen.weights[1].values()), tuple(alone.weights[1].values()))
    # Calibrated on that ANN, with the training batches and nothing else.
    ann = network()
    ann.load_state_dict(seen.weights[1])
    assert convert(ann, 8, calibrate=batches(64, 0), percentile=99, **per_layer()).levels == recipe.levels


def test_progressive():
    recipe = recipes.ProgressiveTandem(percentile=99, patience=1)
    module, seen, trainer = fit([recipe], 60)
    assert seen.layers == sorted(seen.layers)
    assert set(seen.layers) == {0, 1, 2, 3}
    assert trainer.current_epoch < 60  # the patience of the last stage ended it
    assert module.net.spiking_layers == ("0", "3", "6")
    first = [seen.layers.index(k) for k in range(4)]
    for k, names in ((2, ["0.", "1."]), (3, ["3.", "4."])):  # fixed as of stage k, statistics included
        stage = seen.weights[first[k] - 1 :]
        for name in stage[0]:
            if name.startswith(tuple(names)):
                assert all((weights[name] == stage[0][name]).all() for weights in stage), name
    newest = seen.weights[first[3] - 1], seen.weights[-1]
    for name in ("6.weight", "7.running_mean", "9.weight"):  # the newest and what is behind it are not
        assert (newest[0][name] != newest[1][name]).any(), name
    # Thresholds are kept: those of the last stage hold the ones found in the first.
    ann = network()
    ann.load_state_dict(seen.weights[first[1] - 1])
    how = {"calibrate": batches(64, 0), "percentile": 99, **per_layer()}
    level = convert(ann, 8, spiking_layers=1, **how).levels["0"]
    assert module.net.levels["0"] == level


def test_few_bits():
    module, seen, _ = fit([recipes.QuantiseWeights(3, from_epoch=1)], 3)
    layers = [m for m in module.modules() if isinstance(m, nn.Linear)]
    assert len(layers) == 4
    for layer in [*layers, *(m for m in module.ann.modules() if isinstance(m, nn.Linear))]:
        assert quantiser(layer).bits == 3
        assert all(len(channel.unique()) <= 7 for channel in layer.weight)
    assert any((seen.weights[2][k] != seen.weights[1][k]).any() for k in seen.weights[0])
    frozen = freeze(module.net.eval())
    x = next(iter(batches(8, 2)))[0]
    with torch.no_grad():
        same(frozen(x), module.net(x))


@pytest.mark.parametrize("kind", [recipes.RateRegulariser, recipes.ActiveRegulariser, recipes.SynOpsRegulariser])
@pytest.mark.parametrize("order", [1, -1])
def test_few_spikes(order, kind):
    rates = []
    for weight in (1e-9, 100.0):
        callbacks = [recipes.AnnFirst(1, percentile=90), kind(weight)][::order]
        module, seen, _ = fit(callbacks, 8)
        assert seen.penalties[0] is None
        assert all(p > 0 for p in seen.penalties[1:])
        assert module.penalty is None
        assert not any(m._forward_hooks for m in module.net.modules())
        rates.append(float(seen.penalties[-1]))
    assert rates[1] < 0.7 * rates[0]


@pytest.mark.parametrize("ramp", [0.0, 0.5, 1.0])
def test_penalties_grow(ramp):
    weights = []

    class Weights(lightning.Callback):
        def on_train_start(self, trainer, module):
            own, term = FiringRatePenalty(module.net), module.penalty

            def recorded():
                value = term()
                weights.append(float(value / own()))
                return value

            module.penalty = recorded

    _, _, trainer = fit([recipes.RateRegulariser(8.0, ramp=ramp), Weights()], 4)
    steps = trainer.global_step
    assert steps > 4
    assert weights == pytest.approx([8.0 * min(1.0, step / (ramp * steps)) if ramp else 8.0 for step in range(steps)])


RECIPES = {
    "ann_first": lambda: [recipes.AnnFirst(2)],
    "progressive": lambda: [recipes.ProgressiveTandem(patience=1, percentile=99)],
    "few_bits": lambda: [recipes.QuantiseWeights(4, from_epoch=2)],
    "everything": lambda: [
        recipes.RateRegulariser(0.1, 0.05),
        recipes.ProgressiveTandem(patience=1, percentile=99),
        recipes.QuantiseWeights(4, from_epoch=2),
    ],
}


@pytest.mark.parametrize("make", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("learn_thresholds", [False, True])
def test_resumed(learn_thresholds, make, tmp_path):
    """From the end of whichever epoch, a new process's run ends with the weights of the one that was not stopped."""
    settings = {"learn_thresholds": learn_thresholds, "clip": learn_thresholds}
    callbacks = make()
    progressive = any(isinstance(callback, recipes.ProgressiveTandem) for callback in callbacks)
    module, seen, trainer = fit(callbacks, 40 if progressive else 5, tmp_path, **settings)
    learned = [p for name, p in module.named_parameters() if name.endswith("log_threshold")]
    assert [p.item() != 0 for p in learned] == [True] * (3 if learn_thresholds else 0)
    last = len(seen.layers) - 1
    changes = [e for e in range(1, last) if seen.layers[e] != seen.layers[e - 1]]
    for epoch in sorted({1, last - 1, *changes[-2:], *(e - 1 for e in changes[:2])}):
        callbacks = make()
        file = tmp_path / f"epoch={epoch}.ckpt"
        resumed, again, _ = fit(callbacks, trainer.max_epochs, checkpoint=file, **settings)
        assert again.layers[-(last - epoch) :] == seen.layers[epoch + 1 :]
        same(tuple(resumed.state_dict().values()), tuple(module.state_dict().values()))
        assert resumed.net.levels == module.net.levels


def test_recordings():
    """Stages without spikes take the counts."""
    torch.manual_seed(0)
    module = tandem_module.TandemModule(network(), [8], encoding="spikes")
    trains = [SpikeTrain.from_dense((torch.rand(8, 16, 8, generator=generator(s)) < 0.4).float()) for s in range(4)]
    loader = DataLoader([(x, x.count[:, :3].argmax(1)) for x in trains], batch_size=None)
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        inference_mode=False,
        callbacks=[recipes.AnnFirst(1)],
    )
    trainer.fit(module, loader, loader)
    assert len(module.net.levels) == 3


def test_other_numbers_of_steps():
    module, _, _ = fit([recipes.AnnFirst(1)], 2)
    x = next(iter(batches(32, 3)))[0]
    module.eval()
    with torch.no_grad():
        same(module.network_at(8)(x), module.net(x))
    other = module.network_at(32)
    assert other.levels == module.net.levels
    assert other.snn.get_submodule("encode").scale == 1 / 32
    for name, level in other.levels.items():
        neuron = other.snn.get_submodule(name).neuron
        assert neuron.threshold == neuron.amplitude == level / 32


def test_conversion_clips():
    module, _, _ = fit([recipes.AnnFirst(1)], 2, clip=True)
    for net in (module.net, module.network_at(32)):
        assert {net.snn.get_submodule(name).neuron.clip for name in net.spiking_layers} == {True}


def test_what_was_best_is_forgotten(tmp_path):
    """A checkpoint of the ANN stage is no spiking network's best, nor does early stopping count from there."""
    best = ModelCheckpoint(tmp_path, filename="best", monitor="val_loss", mode="min", enable_version_counter=False)
    stop = EarlyStopping("val_loss", patience=50)
    _, seen, _ = fit([recipes.AnnFirst(12, percentile=100), best, stop], 13)
    assert seen.layers[-1] == 3
    state = torch.load(best.best_model_path, weights_only=True)
    assert state["epoch"] == 12
    assert best.best_model_score == stop.best_score
    assert list(best.best_k_models) == [best.best_model_path]
    assert [p.name for p in tmp_path.glob("*.ckpt")] == ["best.ckpt"]


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: recipes.AnnFirst(0), "AnnFirst: epochs must be at least 1, got 0"),
        (lambda: recipes.AnnFirst(2, percentile=0), r"AnnFirst: percentile must be in \(0, 100\], got 0"),
        (lambda: recipes.AnnFirst(2, calibration_batches=0), "AnnFirst: calibration_batches must be at least 1"),
        (lambda: recipes.ProgressiveTandem(patience=0), "ProgressiveTandem: patience must be at least 1, got 0"),
        (lambda: recipes.QuantiseWeights(9), "QuantiseWeights: bits must be from 2 to 8, or 16, got 9"),
        (lambda: recipes.QuantiseWeights(4, from_epoch=-1), "QuantiseWeights: from_epoch must not be negative"),
        (lambda: recipes.RateRegulariser(0.0), "RateRegulariser: weight must be positive, got 0.0"),
        (lambda: recipes.RateRegulariser(1.0, ramp=1.5), r"RateRegulariser: ramp must be a share of the training, in"),
        (
            lambda: fit([recipes.RateRegulariser(1.0)], -1),
            "RateRegulariser: ramp must be 0 without --trainer.max_epochs or --trainer.max_steps",
        ),
        (lambda: recipes.RateRegulariser(1.0, 1.0), r"RateRegulariser: target must be in \[0, 1\), got 1.0"),
        (lambda: recipes.SynOpsRegulariser(-1.0), "SynOpsRegulariser: weight must be positive, got -1.0"),
        (lambda: recipes.SynOpsRegulariser(1.0, -0.1), r"SynOpsRegulariser: target must be in \[0, inf\), got -0.1"),
        (
            lambda: fit([recipes.RateRegulariser(1.0), recipes.SynOpsRegulariser(1.0)], 2),
            "only one of RateRegulariser, ActiveRegulariser and SynOpsRegulariser",
        ),
        (lambda: fit([recipes.AnnFirst(3)], 3), "AnnFirst: epochs must be fewer than --trainer.max_epochs 3, got 3"),
        (lambda: fit([recipes.QuantiseWeights(4, 2)], 2), "from_epoch must be less than --trainer.max_epochs 2, got 2"),
        (lambda: fit([recipes.AnnFirst(1)], 2, spiking=False), "AnnFirst ends with a spiking network"),
        (lambda: fit([recipes.AnnFirst(1)], 2, threshold=0.5), "AnnFirst finds thresholds itself: .* got 0.5"),
        (lambda: fit([recipes.RateRegulariser(1.0)], 2, spiking=False), "RateRegulariser asks for fewer spikes"),
        (lambda: fit([recipes.AnnFirst(1), recipes.ProgressiveTandem()], 2), "only one of AnnFirst and Progressive"),
        (
            lambda: fit([recipes.ProgressiveTandem(monitor="loss")], 2),
            "must be logged in validation, got 'loss'",
        ),
        (lambda: fit([recipes.ProgressiveTandem(patience=9)], 2), "training is over with 0 of 3 layers spiking"),
    ],
)
def test_refused(make, message):
    with pytest.raises(recipes.RecipeError, match=message):
        make()


def test_a_checkpoint_of_other_bits(tmp_path):
    fit([recipes.QuantiseWeights(4)], 1, tmp_path)
    with pytest.raises(recipes.RecipeError, match="the checkpoint was trained with weights of 4 bits, this run has 3"):
        fit([recipes.QuantiseWeights(3)], 2, checkpoint=tmp_path / "epoch=0.ckpt")


# --- digits ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mnist(laid_out):
    return laid_out("mnist")


def on_digits(mnist, callbacks, epochs):
    torch.set_num_threads(2)
    lightning.seed_everything(0, verbose=False)
    module = tandem_module.TandemModule(models.mnist_cnn(), [1, 28, 28], learning_rate=0.002, schedule="none")
    seen = Seen()
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        inference_mode=False,
        use_distributed_sampler=False,
        callbacks=[*callbacks, seen],
    )
    trainer.fit(module, datamodule=data.ImageData(str(mnist), limit=400, batch_size=32))
    return module, seen


@pytest.mark.nightly
def test_ann_first_on_digits(mnist):
    _, seen = on_digits(mnist, [recipes.AnnFirst(4, percentile=99)], 8)
    assert seen.layers == [0] * 4 + [4] * 4
    assert seen.losses[3] < 0.5 * seen.losses[0]
    assert seen.losses[-1] < 0.8 * seen.losses[4]


@pytest.mark.nightly
def test_progressive_on_digits(mnist):
    module, seen = on_digits(mnist, [recipes.ProgressiveTandem(percentile=99, patience=1)], 60)
    assert len(module.net.spiking_layers) == 4
    assert set(seen.layers) == {0, 1, 2, 3, 4}
    assert seen.losses[-1] < 0.3 * seen.losses[0]


@pytest.mark.nightly
def test_few_bits_and_spikes_on_digits(mnist):
    _, many = on_digits(mnist, [recipes.QuantiseWeights(4, from_epoch=2), recipes.RateRegulariser(1e-9)], 6)
    module, seen = on_digits(
        mnist, [recipes.QuantiseWeights(4, from_epoch=2), recipes.RateRegulariser(300.0, ramp=0.0)], 6
    )
    assert seen.losses[-1] < 0.5 * seen.losses[0]
    assert float(seen.penalties[-1]) < 0.7 * float(many.penalties[-1])
    for layer in module.ann.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            codes, scale = quantiser(layer).integers(layer.parametrizations.weight.original)
            shape = [-1] + [1] * (codes.dim() - 1)
            same(layer.weight.detach(), codes * scale.view(shape))
            assert codes.abs().max() <= 7


@pytest.mark.nightly
def test_configurations(mnist, tmp_path):
    """The command line: each configuration runs; one is resumed in the middle of its recipe."""
    common = ["--data.dir", mnist, "--data.limit", "200", "--threads", "2", "--test_time_steps", "[4]"]
    epochs = {"mnist_ann_first": 7, "mnist_4bit": 7, "mnist_progressive": 60}
    for name, count in epochs.items():
        config = EXAMPLES / "configs" / f"{name}.yaml"
        out = tmp_path / name
        command = [sys.executable, EXAMPLES / "train.py", "--config", config, "--out", out, *common]
        if name == "mnist_progressive":  # stopped too early, it says so, and goes on
            first = [*command, "--trainer.max_epochs", "2"]
            done = subprocess.run(first, capture_output=True, text=True, timeout=300, check=False)
            assert done.returncode == 1
            assert "training is over with 0 of 4 layers spiking" in done.stderr
            assert "Traceback" not in done.stderr
            command += ["--ckpt_path", "last"]
        command += ["--trainer.max_epochs", str(count)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr
        results = json.loads((out / "results.json").read_text())
        assert len([a for a in results["test"]["layers"] if a["firing_rate"] is not None]) == 4
        if name != "mnist_4bit":
            rows = [row for path in sorted(out.glob("csv/*/metrics.csv")) for row in csv.DictReader(path.open())]
            layers = [float(row["spiking_layers"]) for row in rows if row.get("spiking_layers")]
            assert layers == sorted(layers)
            assert (layers[0], layers[-1]) == (0, 4)


def test_configuration_with_a_wrong_recipe(tmp_path):
    command = [sys.executable, EXAMPLES / "train.py", "--config", EXAMPLES / "configs" / "mnist_4bit.yaml"]
    command += ["--data.dir", tmp_path, "--out", tmp_path / "out", "--trainer.callbacks.bits", "9"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
