"""A training step of PyTorch networks on the CPU, converted by `bncpu.torch.convert` and not, in turn in one process.

    pip install torch==2.13.0 && pip install .
    python comparisons/torch_training.py            # a quarter of an hour
    python comparisons/torch_training.py --quick resnet20
    python comparisons/torch_training.py --layers   # single layers, from which size on ours are faster
    python comparisons/torch_training.py --parts    # a batch in 32 parts by `bncpu.torch.accumulate`: memory and time

Forward, loss, backward and a step of SGD. The ratio is the median over pairs of steps, above 1 where the converted
network is faster; behind it the share of the step that its norms and ReLUs take, as a network without them says. Peak
memory is that of a process of its own for each. The first losses are compared.
"""

import argparse
import copy
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import bncpu.torch


def conv(n_in, n_out, kernel=3, stride=1, groups=1, activation=nn.ReLU):
    """Convolution, batch norm, activation."""
    layers = [nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(n_out)]
    return nn.Sequential(*layers, activation(inplace=True)) if activation else nn.Sequential(*layers)


class Block(nn.Module):
    """The block of ResNet: two convolutions, and what they add to."""

    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.shortcut = nn.Conv2d(n_in, n_out, 1, stride, bias=False) if n_in != n_out else nn.Identity()

    def forward(self, x):
        """Two convolutions beside a shortcut."""
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + self.shortcut(x))


class MBConv(nn.Module):
    """The block of EfficientNet: wider, depthwise, squeezed and excited, narrower."""

    def __init__(self, n_in, n_out, stride, wider=4):
        super().__init__()
        n = n_in * wider
        self.expand, self.depthwise = conv(n_in, n, 1, activation=nn.SiLU), conv(n, n, 3, stride, n, nn.SiLU)
        self.squeeze = nn.Sequential(nn.Conv2d(n, n_in // 4, 1), nn.SiLU(), nn.Conv2d(n_in // 4, n, 1), nn.Sigmoid())
        self.project = conv(n, n_out, 1, activation=None)
        self.adds = stride == 1 and n_in == n_out

    def forward(self, x):
        """All of it."""
        y = self.depthwise(self.expand(x))
        y = self.project(y * self.squeeze(F.adaptive_avg_pool2d(y, 1)))
        return x + y if self.adds else y


def head(n):
    """Mean over the pixels, and ten classes."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n, 10))


def mobilenet():
    """Depthwise and pointwise convolutions, as in MobileNet, at a quarter of its width."""
    widths = [(16, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1)]
    blocks = [nn.Sequential(conv(a, a, 3, s, a), conv(a, b, 1)) for a, b, s in widths]
    return nn.Sequential(conv(3, 16, 3, 2), *blocks, head(256)), torch.randn(32, 3, 112, 112)


def efficientnet():
    """Blocks of EfficientNet."""
    blocks = [MBConv(16, 24, 2), MBConv(24, 24, 1), MBConv(24, 40, 2), MBConv(40, 40, 1), MBConv(40, 80, 2)]
    return nn.Sequential(conv(3, 16, 3, 2, activation=nn.SiLU), *blocks, head(80)), torch.randn(32, 3, 112, 112)


def resnet20():
    """The network for images of 32 by 32 pixels with 20 layers."""
    ends = [(16, 16, 1)] * 3 + [(16, 32, 2)] + [(32, 32, 1)] * 2 + [(32, 64, 2)] + [(64, 64, 1)] * 2
    blocks = [Block(*end) for end in ends]
    return nn.Sequential(conv(3, 16), *blocks, head(64)), torch.randn(128, 3, 32, 32)


def vgg():
    """Plain convolutions."""
    widths = [(3, 32), (32, 32), None, (32, 64), (64, 64), None, (64, 128), (128, 128), None]
    return nn.Sequential(*(conv(*w) if w else nn.MaxPool2d(2) for w in widths), head(128)), torch.randn(64, 3, 32, 32)


def mlp(n):
    """Three layers of 256, on `n` rows."""
    layers = [layer for i in (64, 256, 256) for layer in (nn.Linear(i, 256), nn.BatchNorm1d(256), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(256, 10)), torch.randn(n, 64)


NETWORKS = {
    "mobilenet": mobilenet,
    "efficientnet": efficientnet,
    "resnet20": resnet20,
    "vgg": vgg,
    "mlp-256": lambda: mlp(256),
    "mlp-8192": lambda: mlp(8192),
}


def without(model):
    """A copy without norms, and without the ReLUs behind them."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d, nn.ReLU)):
                setattr(parent, name, nn.Identity())
    return model


class Training:
    """A network with its optimizer and data."""

    def __init__(self, model, x):
        self.model, self.x = model, x
        self.target = torch.arange(len(x)) % 10
        self.optimizer = torch.optim.SGD(model.parameters(), 0.01)

    def step(self):
        """One step; the loss."""
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(self.x), self.target)
        loss.backward()
        self.optimizer.step()
        return loss.item()


def trainings(name, layout):
    """The same network three times: as it is, converted, and without norms."""
    torch.manual_seed(0)
    model, x = NETWORKS[name]()
    if layout == "channels_last" and x.ndim == 4:
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    models = {"torch": model, "bncpu": bncpu.torch.convert(copy.deepcopy(model)), "none": without(model)}
    return {kind: Training(m, x) for kind, m in models.items()}


def compare(name, layout, n_threads, n_steps):
    """Print a line."""
    torch.set_num_threads(n_threads)
    each = trainings(name, layout)
    losses = {kind: [t.step() for _ in range(3)] for kind, t in each.items()}
    np.testing.assert_allclose(losses["bncpu"], losses["torch"], rtol=2e-4)
    seconds = {kind: [] for kind in each}
    for i in range(n_steps):
        # None comes twice in a row: it would find its arrays in the cache.
        for kind in ("torch", "bncpu", "none") if i % 2 else ("bncpu", "torch", "none"):
            start = time.perf_counter()
            each[kind].step()
            seconds[kind].append(time.perf_counter() - start)
    theirs, ours, none = (np.array(seconds[kind]) for kind in each)
    ratios = theirs / ours
    low, high = np.percentile(ratios, [25, 75])
    memory = [peak(name, layout, n_threads, kind) for kind in ("torch", "bncpu")]
    print(
        f"{name:<13}{layout if each['torch'].x.ndim == 4 else 'rows':<15}{n_threads} threads  "
        f"{np.median(theirs) * 1e3:7.1f} ms  {np.median(ratios):5.2f} ({low:.2f} to {high:.2f})  "
        f"norms {1 - np.median(none / theirs):4.0%} -> {1 - np.median(none / ours):4.0%}  "
        f"memory {memory[0]:5.0f} -> {memory[1]:5.0f} MB",
        flush=True,
    )


def peak(name, layout, n_threads, kind):
    """The most memory of a process that makes three steps, in MB, beyond what it has before the first."""
    command = [sys.executable, __file__, name, "--layout", layout, "--threads", str(n_threads), "--peak", kind]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


LAYERS = {
    "batch": (nn.BatchNorm2d, [(8, 64, 8), (32, 64, 8), (32, 32, 16), (32, 64, 16), (32, 64, 32), (32, 64, 56)]),
    "instance": (lambda n: nn.InstanceNorm2d(n, affine=True), [(8, 32, 32), (32, 64, 16), (32, 64, 32), (32, 64, 56)]),
    "group": (lambda n: nn.GroupNorm(8, n), [(32, 64, 32), (32, 64, 56), (32, 64, 112)]),
    "rows": (nn.BatchNorm1d, [(256, 256), (1024, 256), (4096, 256), (16384, 256), (32768, 256)]),
    "layer": (nn.LayerNorm, [(4096, 512), (8192, 768), (16384, 1024)]),
}


def layer_ratio(make, x, learns, n_turns=8):
    """How many times as fast our layer is with the ReLU after it, on arrays that the cache does not hold."""
    theirs = nn.Sequential(make(x.shape[1]), nn.ReLU(inplace=True)).train(learns)
    ours = bncpu.torch.convert(copy.deepcopy(theirs), always=True)
    inputs = [torch.empty_like(x).copy_(x).requires_grad_(learns) for _ in range(max(2, int(1e8 / x.nbytes)))]

    def seconds(model, z):
        start = time.perf_counter()
        with torch.set_grad_enabled(learns):
            y = model(z)
            if learns:
                torch.autograd.grad(y, (z, *model.parameters()), x)
        return time.perf_counter() - start

    turns = [seconds(theirs, z) / seconds(ours, z) for _ in range(n_turns) for z in inputs]
    return np.median(turns[len(inputs) :])


def layers():
    """Print a line for each layer, size and layout: training, and inference without gradients."""
    for name, (make, shapes) in LAYERS.items():
        for shape in shapes:
            x = torch.randn(*shape, shape[-1]) if len(shape) == 3 else torch.randn(shape)
            for layout in ("contiguous", "channels_last") if x.ndim == 4 else ("rows",):
                z = x.to(memory_format=torch.channels_last) if layout == "channels_last" else x
                ratios = "  ".join(f"{layer_ratio(make, z, learns):5.2f}" for learns in (True, False))
                print(f"{name:<10}{layout:<15}{x.numel():>9} values  training, inference: {ratios}", flush=True)


def parts(name, kind):
    """Print memory and time of one backward pass over 256 images: of the whole batch, or in parts of 8."""
    torch.manual_seed(0)
    model, x, labels = NETWORKS[name]()[0], torch.randn(256, 3, 96, 96), torch.arange(256) % 10

    def loss(y, t):
        return F.cross_entropy(y, t, reduction="sum") / 256

    Path("/proc/self/clear_refs").write_text("5")
    before, start = kilobytes("VmRSS"), time.perf_counter()
    if kind == "whole":
        loss(model(x), labels).backward()
    else:
        with tempfile.TemporaryDirectory() as folder:
            bncpu.torch.accumulate(model, zip(x.split(8), labels.split(8), strict=True), loss, folder=folder)
    seconds, memory = time.perf_counter() - start, (kilobytes("VmHWM") - before) / 1024
    print(f"{name:<13}{kind:<8}{memory:6.0f} MB  {seconds:5.1f} s", flush=True)


def kilobytes(name):
    """A number of /proc/self/status."""
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def main():
    """Print a line for each network, layout and number of threads."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("networks", nargs="*", metavar="network", help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--layout", choices=("contiguous", "channels_last"))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--quick", action="store_true", help="10 steps instead of 40")
    parser.add_argument("--peak", choices=("torch", "bncpu"), help=argparse.SUPPRESS)
    parser.add_argument("--layers", action="store_true", help="time single layers instead")
    parser.add_argument("--parts", nargs="?", const="both", help="a batch in parts instead")
    args = parser.parse_args()
    torch.set_num_threads(args.threads or torch.get_num_threads())
    if args.layers:
        return layers()
    if args.parts == "both":
        for name in ("vgg", "mobilenet"):
            for kind in ("whole", "parts"):  # each in a process of its own
                subprocess.run([sys.executable, __file__, name, "--parts", kind], check=True)
        return None
    if args.parts:
        return parts(args.networks[0], args.parts)
    if args.peak:
        torch.set_num_threads(args.threads)
        training = trainings(args.networks[0], args.layout)[args.peak]
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before = kilobytes("VmRSS")
        for _ in range(3):
            training.step()
        print((kilobytes("VmHWM") - before) / 1024)
        return None
    for name in args.networks or NETWORKS:
        layouts = ("contiguous",) if name.startswith("mlp") else ("contiguous", "channels_last")
        for layout in (args.layout,) if args.layout else layouts:
            for n_threads in (args.threads,) if args.threads else (1, 2):
                compare(name, layout, n_threads, 10 if args.quick else 40)
    return None


if __name__ == "__main__":
    main()
