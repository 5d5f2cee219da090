"""Networks of several inputs or outputs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from .network import Network, noise, pictures, pixels, tokens


class SiameseNet(nn.Module):
    """Verification: one branch for two images, joined along the batch and split again; the distance judged."""

    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(1, 12, 5), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(12, 16, 3), nn.ReLU(inplace=True)
        )
        self.embed = nn.Sequential(spectral_norm(nn.Linear(16 * 3 * 3, 48)), nn.Tanh())
        self.judge = nn.Linear(48, 1)

    def forward_once(self, x):
        x = self.branch(x)
        x = F.max_pool2d(x, kernel_size=3, stride=2, ceil_mode=True)
        return self.embed(x.view(x.size()[0], -1))

    def forward(self, first, second):
        both = self.forward_once(torch.cat([first, second], dim=0))
        a, b = both[: first.size(0)], both[first.size(0) :]
        return self.judge(torch.abs(a - b)).squeeze(-1), F.pairwise_distance(a, b)


class FiLM(nn.Module):
    def __init__(self, condition, channels):
        super().__init__()
        self.generator = nn.Linear(condition, 2 * channels)

    def forward(self, x, condition):
        gamma, beta = self.generator(condition).chunk(2, dim=-1)
        return (1 + gamma)[:, :, None, None] * x + beta[..., None, None]


class VisualReasoning(nn.Module):
    """Questions on images: an image, integer words and a vector in; the words modulate the channels of the image."""

    def __init__(self, vocabulary: int = 30, answers: int = 8) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(vocabulary, 16, mode="mean")
        self.stem = nn.Conv2d(3, 16, kernel_size=4, stride=4)
        self.convs = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(16, affine=False) for _ in range(2))
        self.films = nn.ModuleList(FiLM(16 + 4, 16) for _ in range(2))
        self.classifier = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, answers))

    def forward(self, image: Tensor, question: Tensor, context: Tensor | None = None) -> Tensor:
        condition = self.words(question)
        if context is not None:
            condition = torch.cat([condition, context], dim=1)
        x = F.relu(self.stem(image))
        for conv, norm, film in zip(self.convs, self.norms, self.films, strict=True):
            x = x + F.relu(film(norm(conv(x)), condition))
        return self.classifier(x.amax((2, 3)))


class MultiTask(nn.Module):
    """Driving: a dict in, missing values filled by torch.where, a ModuleDict of heads, a dict out."""

    def __init__(self, tasks=None, width=24):
        super().__init__()
        tasks = tasks or {"steer": 1, "speed": 1, "sign": 6}
        self.encoders = nn.ModuleDict(
            {
                "camera": nn.Sequential(
                    nn.Conv2d(3, 12, 5, stride=2), nn.BatchNorm2d(12), nn.ReLU(), nn.AdaptiveMaxPool2d(3), nn.Flatten(),
                    nn.Linear(108, width), nn.ReLU(),
                ),
                "state": nn.Sequential(nn.Linear(8, width), nn.ReLU()),
            }
        )  # fmt: skip
        self.missing = nn.Parameter(torch.zeros(8))
        self.register_buffer("scale", torch.linspace(0.5, 2.0, 8))
        self.heads = nn.ModuleDict({task: nn.Linear(2 * width, n) for task, n in tasks.items()})

    def forward(self, batch):
        state = torch.where(batch["valid"], batch["state"] * self.scale, self.missing)
        encoded = [self.encoders["camera"](batch["camera"]), self.encoders["state"](state)]
        joint = F.dropout(torch.cat(encoded, dim=-1), 0.1, self.training)
        out = {task: head(joint) for task, head in self.heads.items()}
        out["steer"] = out["steer"].tanh()
        out["prediction"] = out["sign"].argmax(dim=1)
        return out


def layer_init(layer, std=2**0.5, bias_const=0.0):
    torch.nn.init.orthogonal_(layer.weight, std)
    torch.nn.init.constant_(layer.bias, bias_const)
    return layer


class ActorCritic(nn.Module):
    """Reinforcement learning: orthogonal weights, ELU, a clamped log deviation, a duelling critic for each action."""

    def __init__(self, obs=12, actions=4, log_std_min=-5, log_std_max=2):
        super().__init__()
        self.bounds = log_std_min, log_std_max
        self.trunk = nn.Sequential(layer_init(nn.Linear(obs, 64)), nn.ELU(), layer_init(nn.Linear(64, 64)), nn.ELU())
        self.mean, self.log_std = layer_init(nn.Linear(64, actions), 0.3), layer_init(nn.Linear(64, actions), 0.3)
        self.value = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))
        self.advantage = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, actions))

    def forward(self, obs):
        h = self.trunk(obs)
        std = torch.clamp(self.log_std(h), *self.bounds).exp()
        a = self.advantage(h)
        q = self.value(h) + a - a.mean(dim=1, keepdim=True)
        return torch.tanh(self.mean(h)), std, q


def two_images(n):
    return *pixels(1, 20, 20)(n), *pixels(1, 20, 20)(n)


def question(n):
    return *pictures(3, 32, 32)(n), *tokens(30, 7)(n), *noise(4)(n)


def drive(n):
    return ({"camera": pixels(3, 24, 32)(n)[0], "state": torch.randn(n, 8), "valid": torch.rand(n, 8) > 0.2},)


NETWORKS: dict[str, Network] = {
    "siamese": Network(SiameseNet, two_images),
    "visual_reasoning": Network(VisualReasoning, question),
    "multi_task": Network(MultiTask, drive),
    "actor_critic": Network(ActorCritic, noise(12)),
}
