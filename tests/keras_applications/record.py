"""Writes applications.json.gz: what Keras calls each tensor of its applications, and what they answer.

    pip install tensorflow-cpu && python tests/keras_applications/record.py

Each application is built with random weights, filled by values.py, saved in both of Keras' formats and asked for two
images, in float64. Of the files the paths are kept (of .h5: where they are not the usual ones), of the answers
seven numbers for each image.
"""

from __future__ import annotations

import gzip
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import h5py  # noqa: E402
import keras  # noqa: E402
import numpy as np  # noqa: E402
from values import pixels, usual, value  # noqa: E402

keras.config.set_floatx("float64")
CLASSES = 7
A = keras.applications
# name here -> (constructor, its module, size of the images, arguments)
MADE: dict[str, tuple[Any, Any, int, dict[str, Any]]] = {
    **{f"DenseNet{n}": (getattr(A, f"DenseNet{n}"), A.densenet, 96, {}) for n in (121, 169, 201)},
    **{f"EfficientNetB{n}": (getattr(A, f"EfficientNetB{n}"), A.efficientnet, 96 - n, {}) for n in range(8)},
    "EfficientNetB0-published": (A.EfficientNetB0, A.efficientnet, 224, {"weights": "imagenet", "classes": 1000}),
    "EfficientNetB0-notop": (A.EfficientNetB0, A.efficientnet, 64, {"include_top": False}),
    **{
        f"EfficientNetV2{n}": (getattr(A, f"EfficientNetV2{n}"), A.efficientnet_v2, size, {})
        for n, size in (("B0", 96), ("B1", 97), ("B2", 98), ("B3", 75), ("S", 96), ("M", 71), ("L", 64))
    },
    **{f"ConvNeXt{n}": (getattr(A, f"ConvNeXt{n}"), A.convnext, 64, {})
       for n in ("Tiny", "Small", "Base", "Large")},
    "ConvNeXtTiny-notop": (A.ConvNeXtTiny, A.convnext, 64, {"include_top": False}),
    "MobileNet": (A.MobileNet, A.mobilenet, 96, {}),
    **{f"MobileNetV2-{a}": (A.MobileNetV2, A.mobilenet_v2, 96 + i, {"alpha": a})
       for i, a in enumerate((0.35, 0.5, 0.75, 1.0, 1.4))},
    **{
        f"MobileNetV3{n}-{a}{'-minimal' * m}": (
            getattr(A, f"MobileNetV3{n}"), A.mobilenet_v3, 96 + m, {"alpha": a, "minimalistic": bool(m)})
        for n in ("Small", "Large") for a, m in ((1.0, 0), (1.0, 1), (0.75, 0))
    },
    "MobileNetV3Small-1.0-notop": (A.MobileNetV3Small, A.mobilenet_v3, 64, {"include_top": False}),
    # networks that torch's libraries do not have: their names alone
    **{
        f"refused-{n}": (getattr(A, n), None, size, {})
        for n, size in (("ResNet50", 64), ("ResNet50V2", 64), ("InceptionV3", 96), ("Xception", 96),
                        ("NASNetMobile", 64))
    },
    "refused-MobileNet-0.5": (A.MobileNet, None, 64, {"alpha": 0.5}),
    "refused-MobileNetV2-1.3": (A.MobileNetV2, None, 64, {"alpha": 1.3}),
}  # fmt: skip


def made(name: str) -> tuple[Any, Any, int]:
    constructor, module, size, arguments = MADE[name]
    asked = {"weights": None, "input_shape": (size, size, 3), "classes": CLASSES, **arguments}
    asked |= {"pooling": "avg"} if not asked.get("include_top", True) else {"classifier_activation": None}
    functional = "keras.src.models.functional.Functional.load_weights"
    if asked["weights"] is None:
        return constructor(**asked), module, size
    # With published weights the network has a further layer, which divides by the roots of ImageNet's deviations
    with mock.patch("keras.src.utils.file_utils.get_file", lambda *a, **k: ""), mock.patch(functional):
        return constructor(**asked), module, size


def layers_of(model: Any) -> Iterator[Any]:
    for layer in model.layers:
        yield from layers_of(layer) if hasattr(layer, "layers") else [layer]


def variables_of(model: Any) -> list[tuple[Any, Any]]:
    """(layer, variable) of all numbers, not of what draws them."""
    return [(layer, v) for layer in layers_of(model) for v in layer.variables if v.name != "seed_generator_state"]


def called(variable: Any) -> str:
    """LayerScale's gamma has no name of its own."""
    return "gamma" if variable.name.startswith("variable") else str(variable.name)


def recorded(name: str) -> dict[str, Any]:
    model, module, size = made(name)
    variables = variables_of(model)
    for number, (_, variable) in enumerate(variables):  # by which the files tell where each of them lies
        variable.assign(np.full(variable.shape, number + 1).astype(variable.dtype))
    columns = [[[layer.name, called(v), list(v.shape)] for layer, v in variables]]
    for suffix in (".h5", ".weights.h5"):
        with tempfile.TemporaryDirectory() as home:
            path = Path(home) / f"m{suffix}"
            (model.save if suffix == ".h5" else model.save_weights)(path)
            columns.append(places_in(path, len(variables)))
    rows = zip(*columns, strict=True)
    tensors = [[*tensor, None if at == usual(*tensor[:2]) else at, counted] for tensor, at, counted in rows]
    found = {"size": size, "tensors": tensors}
    if module is None:
        return {**found, "layers": [layer.name for layer in layers_of(model)]}
    for layer, variable in variables:
        variable.assign(value(layer.name, called(variable), variable.shape, "published" in name))
    exact(model)
    images = module.preprocess_input(pixels(size))
    answers = np.array(model(images, training=False)).reshape(2, -1)[:, :CLASSES]
    return {**found, "answers": answers.tolist()}


def exact(model: Any) -> None:
    """Take up what was assigned, as loading does, and in float64 what TensorFlow casts by way of float32."""
    for layer in layers_of(model):
        if isinstance(layer, keras.layers.Rescaling):
            layer.scale, layer.offset = np.array(layer.scale, "f8"), np.array(layer.offset, "f8")
        if isinstance(layer, keras.layers.Activation) and layer.activation is keras.activations.gelu:
            layer.activation = lambda x: x * (1 + keras.ops.erf(x / np.sqrt(np.float64(2)))) / 2
        if isinstance(layer, keras.layers.Normalization):
            if layer.input_mean is None:
                layer.finalize_state()
            else:
                shape = layer.mean.shape
                layer.mean, layer.variance = (
                    np.array(v, "f8").reshape(shape) for v in (layer.input_mean, layer.input_variance)
                )


def places_in(path: Path, count: int) -> list[str]:
    found: dict[int, str] = {}

    def look(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and node.size and node.dtype.kind in "fi":
            found.setdefault(int(node[()].ravel()[0]) - 1, name)

    with h5py.File(path) as file:
        file.visititems(look)
    return [found[number] for number in range(count)]


if __name__ == "__main__":
    path = HERE / "applications.json.gz"
    known = json.loads(gzip.decompress(path.read_bytes())) if path.is_file() else {}
    for name in sys.argv[1:] or MADE:
        known[name] = recorded(name)
        print(name, len(known[name]["tensors"]), known[name].get("answers"), flush=True)
        keras.backend.clear_session()
        path.write_bytes(gzip.compress(json.dumps(known, sort_keys=True).encode(), mtime=0))
