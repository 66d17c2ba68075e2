"""Recomputes a predictions file from the exported weights with numpy, and with PyTorch where it is installed.

Usage: check_weights.py MODEL DATASET PREDICTIONS   (three artifact folders; the layers are those of the small pipeline)
Prints the largest difference of a probability as one JSON line.
"""
import json
import sys

import numpy as np
import pyarrow.parquet as pq

model, dataset, predictions = sys.argv[1:]


def tensors(path):
    """safetensors by its specification: a length, a JSON header, the numbers."""
    with open(path, "rb") as file:
        content = file.read()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    return {
        name: np.frombuffer(content[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]], "<f4").reshape(entry["shape"])
        for name, entry in header.items()
    }


def convolve(images, weight, bias):
    windows = np.lib.stride_tricks.sliding_window_view(images, weight.shape[:2], axis=(1, 2))  # [n, y, x, channel, row, column]
    return np.einsum("nyxcij,ijcf->nyxf", windows, weight, optimize=True) + bias


def pool(images):
    n, height, width, channels = images.shape
    images = images[:, : height // 2 * 2, : width // 2 * 2]
    return images.reshape(n, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))


def with_numpy(images, layers):
    for place, layer in enumerate(layers):
        weight, bias = w.get(f"layers.{place}.weight"), w.get(f"layers.{place}.bias")
        if layer.startswith("conv"):
            images = convolve(images, weight.astype(np.float64), bias)
        elif layer == "pool 2":
            images = pool(images)
        else:
            images = images.reshape(len(images), -1) @ weight.astype(np.float64) + bias
        if layer.endswith("relu"):
            images = np.maximum(images, 0)
    return images


def with_pytorch(images, layers):
    import torch
    from torch.nn import functional as F

    x = torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2)
    for place, layer in enumerate(layers):
        weight, bias = (torch.tensor(w[f"layers.{place}.{name}"]) if f"layers.{place}.{name}" in w else None for name in ("weight", "bias"))
        if layer.startswith("conv"):
            x = F.conv2d(x, weight.permute(3, 2, 0, 1), bias)
        elif layer == "pool 2":
            x = F.max_pool2d(x, 2)
        else:
            # The first dense layer takes the image as [height, width, channels].
            x = F.linear(x.permute(0, 2, 3, 1).flatten(1) if x.dim() == 4 else x, weight.T, bias)
        if layer.endswith("relu"):
            x = F.relu(x)
    return x.numpy().astype(np.float64)


def softmax(logits):
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


w = tensors(f"{model}/weights.safetensors")
architecture = json.load(open(f"{model}/model.json"))["architecture"]
f = json.load(open(f"{model}/f.json"))
shape = [architecture["input"]["image"][axis] for axis in ("height", "width", "channels")]

rows = pq.read_table(f"{dataset}/data.parquet")
pixels = dict(zip(rows["id"].to_pylist(), rows["image"].to_pylist()))
predicted = pq.read_table(f"{predictions}/predictions.parquet")
images = np.stack([np.frombuffer(pixels[id], np.uint8).reshape(shape) for id in predicted["id"].to_pylist()]).astype(np.float64)
images = (images - np.array(f["mean"])) / np.array(f["std"])
expected = np.array(predicted["probabilities"].to_pylist())

result = {"rows": len(images), "numpy": float(np.abs(softmax(with_numpy(images, architecture["layers"])) - expected).max())}
try:
    result["pytorch"] = float(np.abs(softmax(with_pytorch(images, architecture["layers"])) - expected).max())
except ImportError:
    result["pytorch"] = None
print(json.dumps(result))
