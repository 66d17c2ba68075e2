"""The speed of a network, declared as Episteme declares it, in PyTorch (training) and ONNX Runtime (forward).

Usage: network.py HEIGHTxWIDTHxCHANNELS BATCH train|forward LAYER...   (a residual block is JSON)

T: threads. DEVICE=cuda: on a GPU, forward in PyTorch too, as in bf16. VARIANT: any of channels_last, compile and bf16, joined by +, or eager.
"""
import json
import math
import os
import statistics
import sys
import tempfile
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

size, batch, mode, *layers = sys.argv[1:]
height, width, channels = map(int, size.split("x"))
batch = int(batch)
threads = int(os.environ.get("T", "2"))
device = os.environ.get("DEVICE", "cpu")
variant = os.environ.get("VARIANT", "channels_last").split("+")
order = torch.channels_last if "channels_last" in variant else torch.contiguous_format
torch.set_num_threads(threads)
torch.manual_seed(0)
ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


class Residual(nn.Module):
    def __init__(self, branch, shortcut, activation):
        super().__init__()
        self.branch, self.shortcut, self.activation = branch, shortcut, ACTIVATIONS.get(activation, nn.Identity)()

    def forward(self, x):
        return self.activation(self.branch(x) + self.shortcut(x))


def build(layers, shape):
    """The layers as a module, and the shape of what they give for one example."""
    modules = nn.Sequential()
    for text in layers:
        if isinstance(text, dict) or text.startswith("{"):
            block = text if isinstance(text, dict) else json.loads(text)
            ways = [build(block.get(key, []), shape)[0] for key in ("residual", "shortcut")]
            module = Residual(*ways, block.get("activation"))
        else:
            module = layer(text, shape)
        modules.append(module)
        with torch.inference_mode():
            shape = tuple(module.eval()(torch.zeros(2, *shape)).shape[1:])
        module.train()
    return modules, shape


def layer(text, shape):
    kind, *words = text.split()
    c = shape[0]
    if kind in ("conv", "depthwise"):
        number = lambda word: int(words[words.index(word) + 1]) if word in words else 1
        filters, size = (c, words[0]) if kind == "depthwise" else (int(words[0]), words[1])
        groups = c if kind == "depthwise" else number("groups")
        rows, columns = map(int, size.split("x"))
        stride, dilation = number("stride"), number("dilation")
        # Numbers, not "same": ONNX Runtime has no dilation beside that.
        padding = ((rows - 1) * dilation // 2, (columns - 1) * dilation // 2) if "same" in words else 0
        module = nn.Conv2d(c, filters, (rows, columns), stride=stride, padding=padding, dilation=dilation, groups=groups)
    elif kind == "pool":
        module = nn.MaxPool2d(int(words[0]))
    elif kind == "globalmaxpool":
        module = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten())
    elif kind == "globalpool":
        module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    elif kind == "batchnorm":
        module = nn.BatchNorm2d(c) if len(shape) == 3 else nn.BatchNorm1d(c)
    elif kind == "dense":
        module = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), int(words[0])))
    else:
        sys.exit(f"no peer for the layer `{text}`")
    return nn.Sequential(module, ACTIVATIONS[words[-1]]()) if words and words[-1] in ACTIVATIONS else module


def rate(step, images, rounds=5):
    step()
    rates = []
    for _ in range(rounds):
        start = time.perf_counter()
        step()
        rates.append(images / (time.perf_counter() - start))
    return statistics.median(rates)


def examples():
    x = torch.randn(batch, channels, height, width).to(device, memory_format=order)
    return x, torch.randint(0, 10, (batch,)).to(device)


def mixed():
    return torch.autocast(device, torch.bfloat16, enabled="bf16" in variant)


def finish():
    if device == "cuda":
        torch.cuda.synchronize()


net, _ = build(layers, (channels, height, width))
if mode == "train" or device != "cpu" or "bf16" in variant:
    net = net.to(device, memory_format=order)
    if "compile" in variant:
        net = torch.compile(net)
# About as many examples a round as ours takes; on a GPU they go by too fast for that.
repeats = 10 if device == "cuda" else max(2, min(10, 1280 // batch))
if mode == "train":
    optimiser = torch.optim.Adam(net.parameters())
    x, y = examples()

    def steps():
        for _ in range(repeats):
            optimiser.zero_grad()
            with mixed():
                loss = F.cross_entropy(net(x), y)
            loss.backward()
            optimiser.step()
        finish()

    print(f"pytorch_train {rate(steps, repeats * batch):.0f} images/s")
elif device != "cpu" or "bf16" in variant:
    x, _ = examples()
    net.eval()

    def passes():
        with torch.inference_mode(), mixed():
            for _ in range(repeats):
                net(x)
        finish()

    print(f"pytorch_forward {rate(passes, repeats * batch):.0f} images/s")
else:
    import onnxruntime as ort

    path = os.path.join(tempfile.mkdtemp(), "net.onnx")
    x = torch.randn(batch, channels, height, width)
    torch.onnx.export(net.eval(), x, path, input_names=["x"], dynamic_axes={"x": {0: "n"}}, dynamo=False)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    values = x.numpy()
    calls = max(1, 1024 // batch)

    def calls_():
        for _ in range(calls):
            session.run(None, {"x": values})

    print(f"ort_forward {rate(calls_, calls * batch):.0f} images/s")
