"""Text, sound and time series: recurrent and convolutional."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.utils import weight_norm as old_weight_norm
from torch.nn.utils.parametrizations import weight_norm

from .network import Network, noise, pictures, tokens


def weights_init(m):
    classname = m.__class__.__name__
    if classname.find("Conv") != -1 or classname.find("Linear") != -1:
        nn.init.kaiming_normal_(m.weight.data)
        m.bias.data.fill_(0)
    elif classname.find("BatchNorm") != -1:
        m.weight.data.normal_(1.0, 0.02)
        m.bias.data.fill_(0)


class CRNN(nn.Module):
    """Text recognition: columns of a feature map as a sequence, a two-way LSTM, CTC's outputs, time first."""

    def __init__(self, img_height=16, num_classes=11):
        super(CRNN, self).__init__()
        self.cnn = nn.Sequential(
            nn.Conv2d(1, 12, 3, 1, 1),
            nn.ReLU(True),
            nn.MaxPool2d(2, 2),
            nn.Conv2d(12, 24, 3, 1, 1),
            nn.BatchNorm2d(24),
            nn.ReLU(True),
            nn.MaxPool2d((2, 2), (2, 1), (0, 1)),
            nn.Conv2d(24, 24, (img_height // 4, 2)),
            nn.ReLU(True),
        )
        self.rnn = nn.LSTM(24, 16, bidirectional=True)
        self.embedding = nn.Linear(32, num_classes)
        self.apply(weights_init)

    def forward(self, input):
        conv = self.cnn(input)
        b, c, h, w = conv.size()
        assert h == 1, "the height of conv must be 1"
        conv = conv.squeeze(2)
        conv = conv.permute(2, 0, 1)  # [w, b, c]
        recurrent, _ = self.rnn(conv)
        T, b, h = recurrent.size()
        output = self.embedding(recurrent.view(T * b, h)).view(T, b, -1)
        return F.log_softmax(output, dim=2)


class GRUClassifier(nn.Module):
    """Sentiment tutorials: embedding, GRU with an explicit first state, its last hidden states joined, a sigmoid."""

    def __init__(self, vocab_size=80, embedding_dim=16, hidden_dim=24, n_layers=2):
        super().__init__()
        self.n_layers, self.hidden_dim = n_layers, hidden_dim
        self.embedding = nn.Embedding(vocab_size, embedding_dim, padding_idx=0)
        self.gru = nn.GRU(embedding_dim, hidden_dim, n_layers, batch_first=True, bidirectional=True, dropout=0.2)
        self.dropout = nn.Dropout(0.3)
        self.fc1 = nn.Linear(2 * hidden_dim, 32)
        self.fc2 = nn.Linear(32, 1)
        for name, param in self.named_parameters():
            if "weight" in name and param.dim() > 1:
                nn.init.xavier_normal_(param.data, gain=1.5)
            else:
                nn.init.normal_(param.data, mean=0, std=0.01)

    def forward(self, text):
        embedded = self.dropout(self.embedding(text))
        h0 = torch.zeros(self.n_layers * 2, text.size(0), self.hidden_dim).to(text.device)
        _, hidden = self.gru(embedded, h0)
        hidden = torch.cat((hidden[-2, :, :], hidden[-1, :, :]), dim=1)
        return torch.sigmoid(self.fc2(F.relu(self.fc1(self.dropout(hidden))))).squeeze(1)


class Chomp(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, x):
        return x[:, :, : -self.size].contiguous()


class TemporalBlock(nn.Module):
    def __init__(self, cin, cout, k, dilation, dropout):
        super().__init__()
        pad = (k - 1) * dilation
        layers = []
        for c in (cin, cout):
            layers.append(weight_norm(nn.Conv1d(c, cout, k, padding=pad, dilation=dilation)))
            layers += [Chomp(pad), nn.ReLU(), nn.Dropout(dropout)]
        self.net = nn.Sequential(*layers)
        self.downsample = nn.Conv1d(cin, cout, 1) if cin != cout else None
        self.relu = nn.ReLU()

    def forward(self, x):
        res = x if self.downsample is None else self.downsample(x)
        return self.relu(self.net(x) + res)


class TCN(nn.Module):
    """Temporal convolutional networks: parametrised weight norm, padding cut off again, the last step read."""

    def __init__(self, input_size=2, output_size=3, num_channels=(12, 12, 16), kernel_size=3):
        super().__init__()
        layers = []
        for i, c in enumerate(num_channels):
            layers.append(TemporalBlock(num_channels[i - 1] if i else input_size, c, kernel_size, 2**i, 0.2))
        self.network = nn.Sequential(*layers)
        self.linear = nn.Linear(num_channels[-1], output_size)

    def forward(self, x):
        """x: (N, length, features)"""
        y = self.network(x.transpose(1, 2))
        return self.linear(y[:, :, -1])


class CausalConv1d(nn.Conv1d):
    def __init__(self, cin, cout, kernel_size, dilation=1, **kwargs):
        super().__init__(cin, cout, kernel_size, dilation=dilation, **kwargs)
        self.left = (kernel_size - 1) * dilation

    def forward(self, x):
        return super().forward(F.pad(x, (self.left, 0)))


class WaveNet(nn.Module):
    """WaveNet: causal convolutions, tanh times sigmoid, skips summed, weight norm of the older kind by a loop."""

    def __init__(self, channels=16, skips=12, layers=4, quantiles=20):
        super().__init__()
        self.start = CausalConv1d(1, channels, 2)
        self.dilated = nn.ModuleList()
        self.residual, self.skip = nn.ModuleList(), nn.ModuleList()
        for i in range(layers):
            self.dilated.append(CausalConv1d(channels, 2 * channels, 2, dilation=2**i))
            self.residual.append(nn.Conv1d(channels, channels, 1))
            self.skip.append(nn.Conv1d(channels, skips, 1))
        self.end1, self.end2 = nn.Conv1d(skips, 24, 1), nn.Conv1d(24, quantiles, 1)
        for module in [*self.residual, *self.skip, self.end1, self.end2]:
            nn.init.xavier_uniform_(module.weight, gain=2**0.5)
            old_weight_norm(module)

    def forward(self, wave):
        x = self.start(wave)
        skip = 0
        for dilated, residual, to_skip in zip(self.dilated, self.residual, self.skip, strict=True):
            filter, gate = torch.split(dilated(x), x.size(1), dim=1)
            z = torch.tanh(filter) * torch.sigmoid(gate)
            skip = to_skip(z) + skip
            x = (residual(z) + x) * 0.5**0.5
        return self.end2(F.relu(self.end1(F.relu(skip))))


class TextCNN(nn.Module):
    """Sentences by Kim's network: windows over embeddings as Conv2d, maxima over time, joined."""

    def __init__(self, V=100, D=16, C=4, Co=12, Ks=(2, 3, 4)):
        super(TextCNN, self).__init__()
        self.embedding = nn.Embedding(V, D)
        self.embedding.weight.requires_grad = False  # pretrained vectors
        self.windows = nn.ModuleList([nn.Conv2d(1, Co, (K, D)) for K in Ks])
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(Co * len(Ks), C)

    def conv_and_pool(self, x, conv):
        x = F.relu(conv(x)).squeeze(3)  # batch, filters, places
        return F.max_pool1d(x, x.size(2)).squeeze(2)

    def forward(self, words):
        out = self.embedding(words).unsqueeze(1)
        out = torch.cat([self.conv_and_pool(out, conv) for conv in self.windows], 1)
        return self.fc(self.dropout(out))


class SubSpectralNorm(nn.Module):
    def __init__(self, channels, bands):
        super().__init__()
        self.bands = bands
        self.bn = nn.BatchNorm2d(channels * bands)

    def forward(self, x):
        n, c, f, t = x.size()
        return self.bn(x.view(n, c * self.bands, f // self.bands, t)).view(n, c, f, t)


class BroadcastBlock(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.frequency = nn.Sequential(
            nn.Conv2d(c, c, (3, 1), padding=(1, 0), groups=c, bias=False), SubSpectralNorm(c, 4)
        )
        self.temporal = nn.Sequential(
            nn.Conv2d(c, c, (1, 3), padding=(0, 2), dilation=(1, 2), groups=c, bias=False),
            nn.BatchNorm2d(c),
            nn.SiLU(),
            nn.Conv2d(c, c, 1, bias=False),
            nn.Dropout2d(0.1),
        )

    def forward(self, x):
        out = self.frequency(x)
        along_time = self.temporal(out.mean(2, keepdim=True))
        return F.relu(along_time + out + x)  # broadcast over frequencies


class KeywordNet(nn.Module):
    """Keyword spotting on spectrograms: frequency bands normalised apart, a mean over frequencies broadcast back."""

    def __init__(self, n_mels=16, classes=12):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 5, stride=(1, 2), padding=2)
        self.bn1 = nn.BatchNorm2d(16)
        self.block1, self.block2 = BroadcastBlock(16), BroadcastBlock(16)
        self.depthwise = nn.Conv2d(16, 16, (n_mels, 3), groups=16)
        self.pointwise = nn.Conv2d(16, 24, 1)
        self.classifier = nn.Conv2d(24, classes, 1)

    def forward(self, spectrogram):
        if spectrogram.dim() == 3:
            spectrogram = spectrogram.unsqueeze(1)
        x = F.relu(self.bn1(self.conv1(spectrogram)))
        x = self.block2(self.block1(x))
        x = F.relu(self.pointwise(self.depthwise(x)))
        x = self.classifier(x.mean(-1, keepdim=True))
        return x.squeeze()


NETWORKS: dict[str, Network] = {
    "crnn": Network(CRNN, pictures(1, 16, 32)),
    "gru_text": Network(GRUClassifier, tokens(80, 20)),
    "tcn": Network(TCN, noise(32, 2)),
    "wavenet": Network(WaveNet, noise(1, 64)),
    "text_cnn": Network(TextCNN, tokens(100, 24)),
    "keyword_spotting": Network(KeywordNet, noise(16, 32)),
}
