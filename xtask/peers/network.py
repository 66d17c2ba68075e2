"""The speed of a network, declared as Episteme declares it, in PyTorch (training) and ONNX Runtime (forward).

Usage: network.py HEIGHTxWIDTHxCHANNELS BATCH train|forward LAYER...
"""
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
torch.set_num_threads(threads)
torch.manual_seed(0)
ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


def build():
    modules, c = [], channels
    for text in layers:
        kind, *words = text.split()
        if kind == "conv":
            rows, columns = map(int, words[1].split("x"))
            stride = int(words[words.index("stride") + 1]) if "stride" in words else 1
            padding = "same" if "same" in words and stride == 1 else rows // 2 if "same" in words else 0
            modules.append(nn.Conv2d(c, int(words[0]), (rows, columns), stride=stride, padding=padding))
            c = int(words[0])
        elif kind == "pool":
            modules.append(nn.MaxPool2d(int(words[0])))
        elif kind == "globalpool":
            modules += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        elif kind == "batchnorm":
            modules.append(nn.BatchNorm2d(c))
        elif kind == "dense":
            if not any(isinstance(module, (nn.Flatten, nn.Linear)) for module in modules):
                modules.append(nn.Flatten())
            with torch.inference_mode():
                n = nn.Sequential(*modules).eval()(torch.zeros(1, channels, height, width)).shape[1]
            modules.append(nn.Linear(n, int(words[0])))
        if words and words[-1] in ACTIVATIONS:
            modules.append(ACTIVATIONS[words[-1]]())
    return nn.Sequential(*modules)


def rate(step, images, rounds=5):
    step()
    rates = []
    for _ in range(rounds):
        start = time.perf_counter()
        step()
        rates.append(images / (time.perf_counter() - start))
    return statistics.median(rates)


net = build()
if mode == "train":
    net = net.to(memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(net.parameters())
    x = torch.randn(batch, channels, height, width).to(memory_format=torch.channels_last)
    y = torch.randint(0, 10, (batch,))

    def steps():
        for _ in range(10):
            optimiser.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimiser.step()

    print(f"pytorch_train {rate(steps, 10 * batch):.0f} images/s")
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
