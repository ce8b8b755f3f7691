"""stage=export: the network as a file for other programs, checked against the network itself."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hydratune.config.job import Job
from hydratune.core.spec_json import spec_as_json
from hydratune.experiment import report
from hydratune.experiment.finish import Result
from hydratune.experiment.module import Exported, Whole
from hydratune.experiment.trained import Trained, trained
from hydratune.experiment.usage import opened, show_used
from hydratune.record.run import write_json
from hydratune.record.screen import Screen

TOLERANCE = 1e-4  # largest difference of an output
SAMPLES = 3  # of the check
OPSET = 18


def export_job(job: Job, screen: Screen) -> Result:
    """Raises ValueError for a package that is missing, and where the file gives other outputs than the network."""
    form = str(job.config.format)
    write, suffix = FORMATS[form]
    _need(form)
    with trained(job) as used, opened(job, used) as run:
        show_used(screen, run, used)
        used.network.to(torch.device("cpu"), torch.contiguous_format)  # other programs bring their own
        whole = Exported(Whole(used.network, used.maker), used.task).eval()
        inputs = used.maker.example_inputs(SAMPLES)
        with torch.no_grad():
            names = list(used.task.exported(whole.whole(*inputs.values())))
        described = description(used, list(inputs), names)
        path = job.directory / f"model{suffix}"
        difference = write(whole, inputs, path, described, used)
        if not difference <= TOLERANCE:
            raise ValueError(f"format={form}: the file's outputs differ from the network's by {difference:.2g}")
        write_json(job.directory / "model.json", described)
        used.maker.keep(job.directory, export=True)  # what it is of no use without
        run.update(status="complete", ended=report.now(), seconds=run.seconds)
        size = path.stat().st_size / 1e6
        same = "to the bit" if difference == 0 else f"to {difference:.1g}"
        screen.line(f"checked: its outputs are the network's {same}, on {SAMPLES} samples")
        screen.line(
            f"model:          {report.shown_path(path)} ({size:,.1f} MB); model.json says what it takes and answers"
        )
        return Result(job.directory, float("nan"), run.record)


def description(used: Trained, inputs: list[str], outputs: list[str]) -> dict[str, Any]:
    """What whoever runs the file must know: what it is given, how that is made, what it answers."""
    spec = spec_as_json(used.spec) or {}
    return {
        "task": used.task.kind,
        "answers": list(used.task.answers(used.spec)),
        "inputs": inputs,
        "outputs": outputs,
        "preprocess": {**used.maker.made_how(), **{k: v for k, v in spec.items() if k != "class_names"}},
        "metrics": dict(used.record.metrics or {}),
        "init_from": used.job.config.init_from,
    }


Tensors = Mapping[str, Tensor]
Described = dict[str, Any]
Writer = Callable[[Exported, Tensors, Path, Described, Trained], float]


def _onnx(whole: Exported, inputs: Tensors, path: Path, described: Described, used: Trained) -> float:
    """Opset 18, any number of samples; checked by onnxruntime."""
    import onnx
    import onnxruntime

    with warnings.catch_warnings():  # of names for dimensions that several tensors share
        warnings.filterwarnings("ignore", message=".*axis name.*")
        program = torch.onnx.export(
            whole, tuple(inputs.values()), input_names=list(inputs), output_names=described["outputs"],
            dynamic_shapes=(_dynamic(inputs, used),), opset_version=OPSET, dynamo=True, verbose=False,
        )  # fmt: skip
    assert program is not None
    program.save(str(path), external_data=False)
    model = onnx.load(str(path))
    for key, value in described.items():
        model.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    onnx.save(model, str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return _difference(
        whole,
        inputs,
        lambda given: [
            torch.from_numpy(array) for array in session.run(None, {name: t.numpy() for name, t in given.items()})
        ],
    )


def _torch_export(whole: Exported, inputs: Tensors, path: Path, described: Described, used: Trained) -> float:
    """A program of torch.export, with its description in it."""
    program = torch.export.export(whole, tuple(inputs.values()), dynamic_shapes=(_dynamic(inputs, used),))
    program.example_inputs = None  # which would be pickled
    torch.export.save(program, path, extra_files={"model.json": json.dumps(described)})
    read = torch.export.load(path).module()
    return _difference(whole, inputs, lambda given: read(*given.values()))


def _safetensors(whole: Exported, inputs: Tensors, path: Path, described: Described, used: Trained) -> float:
    """The tensors by the names of the model that they are of, low-rank updates merged in."""
    from safetensors.torch import load_file, save_file

    from hydratune.freeze.lora import merged

    tensors = {n: t.detach().contiguous().clone() for n, t in merged(used.network.state_dict()).items()}
    metadata = {k: v if isinstance(v, str) else json.dumps(v) for k, v in described.items()}
    save_file(tensors, path, metadata)
    read = load_file(path)
    return max(float((read[n].double() - t.double()).abs().max()) if t.numel() else 0.0 for n, t in tensors.items())


FORMATS: dict[str, tuple[Writer, str]] = {
    "onnx": (_onnx, ".onnx"),
    "torch_export": (_torch_export, ".pt2"),
    "safetensors": (_safetensors, ".safetensors"),
}


def _dynamic(inputs: Tensors, used: Trained) -> tuple[dict[int, Any], ...]:
    """Any number of samples, and sequences of any length that it was trained for; pictures keep their size."""
    batch = torch.export.Dim("batch")
    length = torch.export.Dim("length", max=getattr(used.spec, "max_length", 2))
    return tuple({0: batch, 1: length} if t.ndim == 2 else {0: batch} for t in inputs.values())


def _difference(whole: Exported, inputs: Tensors, run: Callable[[Tensors], Sequence[Tensor]]) -> float:
    """The largest of an output, over the samples together and one of them alone; relative, where it is above 1."""
    largest = 0.0
    for count in (SAMPLES, 1):
        given = {name: tensor[:count].contiguous() for name, tensor in inputs.items()}
        with torch.no_grad():
            for own, wanted in zip(_several(run(given)), _several(whole(*given.values())), strict=True):
                largest = max(largest, float(((own - wanted).abs() / wanted.abs().clamp_min(1)).max()))
    return largest


def _several(outputs: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else outputs


def _need(form: str) -> None:
    """Raises ValueError with the command that installs what is missing."""
    if form != "onnx":
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"format=onnx: {error.name} is not installed; the export extra has it: pip install 'hydratune[export]'"
        ) from None
