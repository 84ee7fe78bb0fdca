"""Random nn.Sequential models against PyTorch itself: run by hand where torch is installed, `python tests/torch_by_hand.py`.

Each model is read live, and again from the ONNX file that PyTorch exports where its exporter is installed.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))


def models(rng: np.random.Generator) -> tuple[Any, tuple[int, ...]]:
    from torch import nn

    activation = [nn.ReLU, nn.Tanh, nn.Sigmoid][int(rng.integers(3))]
    if rng.random() < 0.4:
        ends = [
            nn.Sequential(nn.Linear(6, 3), nn.Softmax(dim=1)),
            nn.Linear(6, 4),
            nn.Sequential(nn.Linear(6, 1), nn.Sigmoid()),
        ]
        layers = [nn.Linear(5, 6, bias=bool(rng.random() < 0.5)), nn.BatchNorm1d(6), activation(), nn.Dropout(0.3)]
        return nn.Sequential(*layers, ends[int(rng.integers(3))]), (5,)
    padding: Any = [0, 1, "same", (1, 0)][int(rng.integers(4))]
    stride = 1 if padding == "same" else 2
    first = nn.Conv2d(2, 3, (3, 2), stride=stride, padding=padding)
    pool = [nn.MaxPool2d(2), nn.AvgPool2d((2, 1), stride=1), nn.AdaptiveAvgPool2d(1)][int(rng.integers(3))]
    order = [activation(), pool] if not isinstance(pool, nn.MaxPool2d) else [pool, activation()]
    return nn.Sequential(first, nn.BatchNorm2d(3, affine=False), *order, nn.Flatten(), nn.LazyLinear(3)), (2, 9, 8)


def main() -> None:
    import torch

    from qrobust import formats
    from qrobust.formats.torch import from_torch
    from qrobust.network import FloatArithmetic, logits

    worst = exported = 0.0
    count = 0
    for seed in range(100):
        torch.manual_seed(seed)
        model, shape = models(np.random.default_rng(seed))
        model(torch.randn(2, *shape))  # gives lazy layers their sizes, and running statistics
        for _ in range(3):
            model(torch.randn(50, *shape) * 2 + 1)
        model = model.double().eval()
        network = from_torch(model, input_shape=shape if len(shape) == 3 else ())
        x = torch.randn(30, *shape, dtype=torch.float64)
        expected = model(x).detach().numpy()
        flat = x.numpy().reshape(30, -1)
        end = str(list(model.modules())[-1])
        found = network.confidences(flat) if "Softmax" in end or "Sigmoid" in end else logits(network, flat, FloatArithmetic())
        worst = max(worst, float(np.abs(found - expected).max()))
        buffer = io.BytesIO()
        try:
            torch.onnx.export(model.float(), (x[:1].float(),), buffer, dynamo=False)
        except Exception as error:
            print(f"no export: {str(error)[:80]}") if not seed else None
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "m.onnx"
            path.write_bytes(buffer.getvalue())
            again = formats.load(path)
        assert again.layers[0].geometry == network.layers[0].geometry
        exported = max(exported, float(np.abs(again.confidences(flat) - network.confidences(flat)).max()))
        count += 1
    print(f"live: greatest difference {worst:.3g}; {count} exported files: {exported:.3g}")


if __name__ == "__main__":
    main()
