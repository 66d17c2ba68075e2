"""Recomputes the metrics of a predictions file with scikit-learn and prints them as one JSON line.

Usage: check_metrics.py predictions.parquet
"""
import json
import sys

import numpy as np
import pyarrow.parquet as pq
from sklearn.metrics import accuracy_score, log_loss, precision_recall_fscore_support

table = pq.read_table(sys.argv[1])
classes = json.loads(table.schema.metadata[b"episteme.classes"])
true, predicted = table["label"].to_pylist(), table["predicted"].to_pylist()
probabilities = np.array(table["probabilities"].to_pylist(), dtype=np.float64)
precision, recall, f1, support = precision_recall_fscore_support(true, predicted, labels=classes, zero_division=0)
code = {name: index for index, name in enumerate(classes)}
picked = probabilities[np.arange(len(true)), [code[label] for label in true]]

result = {
    "accuracy": accuracy_score(true, predicted),
    "macro_f1": float(np.mean(f1)),
    "weighted_f1": float(np.average(f1, weights=support)),
    "macro_precision": float(np.mean(precision)),
    "macro_recall": float(np.mean(recall)),
    "log_loss": float(-np.mean(np.log(np.clip(picked, 1e-15, 1.0)))),
    "sums_to_one": float(np.abs(probabilities.sum(axis=1) - 1).max()),
    "confidence_is_maximum": bool(np.allclose(probabilities.max(axis=1), np.array(table["confidence"].to_pylist()))),
    "predicted_is_argmax": [classes[index] for index in probabilities.argmax(axis=1)] == predicted,
}
for name, *values in zip(classes, precision, recall, f1):
    for metric, value in zip(("precision", "recall", "f1"), values):
        result[f"{name}.{metric}"] = float(value)
print(json.dumps(result))
