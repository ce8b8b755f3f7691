"""What somebody else's file may try: each payload leaves a canary if it is ever executed.

Among them what was published of others: _target_ of builtins.exec and of the like (CVE-2025-23304, NeMo), Hydra's own
functions as targets (CVE-2026-22584, Uni2TS), calls behind _args_ and _partial_ (GHSA-37p2-j732-x8pj), a pickle in
torch's old archive format, which weights_only once let through (CVE-2025-32434).
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import pickle
import stat
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from hydratune.cli.api import load
from hydratune.cli.arguments import prepare as prepare_arguments
from hydratune.cli.hydra_guard import refuse_foreign_hydra
from hydratune.config import instantiate
from hydratune.config.hydra_versions import NEWER
from hydratune.config.overrides import flags_first
from hydratune.data.archive import unpacked
from hydratune.models.load_weights import read_tensors
from hydratune.record import checkpoint
from tests.conftest import make_job


@dataclass(frozen=True)
class Payload:
    kind: str
    name: str
    attack: Callable[[Path], str]  # in an empty folder; the sentence that refused it


def refused(call: Callable[[], object], *others: str) -> str:
    """Its sentence. Whatever is no refusal is the payload's success. others: packages whose errors are one as well."""
    try:
        call()
    except Exception as error:
        assert type(error).__module__.startswith(others) or type(error) is ValueError, repr(error)
        return (str(error).splitlines() or [""])[0]
    raise AssertionError("was accepted")


def filled(node: Any, home: Path) -> Any:
    return json.loads(json.dumps(node).replace("HOME", str(home)))


# ---- _target_


def target(name: str, /, **arguments: Any) -> Payload:
    def attack(home: Path) -> str:
        node = filled({"_target_": name, **arguments}, home)
        first = refused(lambda: instantiate.check(node, "model", ()) or instantiate.build(node, "model", ()))
        refused(lambda: instantiate.build(node, "model", ()))
        return first

    return Payload("_target_", name, attack)


def nested(name: str, node: Any) -> Payload:
    def attack(home: Path) -> str:
        whole = filled(node, home)
        first = refused(lambda: instantiate.check(whole, "optimizer", ()))
        refused(lambda: instantiate.build(whole, "optimizer", ()))
        return first

    return Payload("nested", name, attack)


def typed(name: str, *overrides: str, sweep: bool = False) -> Payload:
    def attack(home: Path) -> str:
        lines = [o.replace("HOME", str(home)) for o in overrides]
        return refused(lambda: make_job(lines, home, sweep=sweep), "hydra", "omegaconf")

    return Payload("override", name, attack)


TOUCH = "touch HOME/canary"
TARGETS = [
    target("os.system", command=TOUCH),
    target("posix.system", command=TOUCH),
    target("os.mkdir", path="HOME/canary"),
    target("os.popen", cmd=TOUCH),
    target("subprocess.call", args=["touch", "HOME/canary"]),
    target("subprocess.Popen", args=["touch", "HOME/canary"]),
    target("builtins.exec", source="open('HOME/canary', 'w')"),
    target("builtins.eval", source="open('HOME/canary', 'w')"),
    target("builtins.open", file="HOME/canary", mode="w"),
    target("builtins.__import__", name="canary_module"),
    target("importlib.import_module", name="canary_module"),
    target("canary_module.anything"),
    target("runpy.run_path", path_name="HOME/canary_module.py"),
    target("pathlib.Path", a="HOME"),
    target("shutil.copy", src="HOME/canary_module.py", dst="HOME/canary"),
    target("functools.partial", func="os.system"),
    target("logging.os.system", command=TOUCH),
    target("logging.config.fileConfig", fname="HOME/x"),
    target("pickle.loads", data="x"),
    target("pickle.load", file="HOME/bomb.pt"),
    target("torch.load", f="HOME/bomb.pt", weights_only=False),
    target("torch.hub.load", repo_or_dir="HOME", model="x", source="local"),
    target("torch.serialization.load", f="HOME/bomb.pt"),
    target("torch.nn.modules.module.torch.load", f="HOME/bomb.pt"),
    target("torch.jit.load", f="HOME/bomb.pt"),
    target("torch.package.PackageImporter", file_or_buffer="HOME/bomb.pt"),
    target("torch.utils.cpp_extension.load", name="x", sources=["HOME/x.cpp"]),
    target("torch.nn.factory_kwargs", kwargs={}),
    target("torch.nn.Parameter.__reduce_ex__", protocol=2),
    target("torch.nn.functional.torch.load", f="HOME/bomb.pt"),
    target("torchvision.models.get_model", name="resnet18"),
    target("torchvision.datasets.folder.os.system", command=TOUCH),
    target("torchvision.models.inception.os.system", command=TOUCH),
    target("timm.create_model", model_name="resnet18", checkpoint_path="HOME/bomb.pt"),
    target("timm.create_model", model_name="resnet18", pretrained_cfg={"file": "HOME/bomb.pt"}),
    target("timm.models.load_checkpoint", model=None, checkpoint_path="HOME/bomb.pt"),
    target("transformers.AutoModel.from_pretrained", pretrained_model_name_or_path="HOME", trust_remote_code=True),
    target("transformers.pipeline", model="HOME", trust_remote_code=True),
    target("transformers.AutoConfig", x=1),
    target("numpy.load", file="HOME/x.npy", allow_pickle=True),
    target("joblib.load", filename="HOME/bomb.pt"),
    target("ctypes.CDLL", name="HOME/x.so"),
    target("yaml.unsafe_load", stream="!!python/object/apply:os.system ['touch HOME/canary']"),
    target("hydra.utils.instantiate", config={"_target_": "os.system", "command": TOUCH}),
    target("hydra.utils.get_method", path="os.system"),
    target("hydra._internal.instantiate._instantiate2.instantiate", config={}),
    target("hydratune.config.instantiate.importlib.import_module", name="canary_module"),
    target("hydratune.models.network.copy.deepcopy", x=1),
    target("hydratune.data.images.folder.os.system", command=TOUCH),
    target("hydratune.data.images.folder.Path", a="HOME"),
    target("hydratune.optim.optimizers.inspect", a=1),
    target("hydratune.models.vision.simple_cnn.torch.load", f="HOME/bomb.pt"),
    target("hydratune.models.network._once", named=[]),
    target("hydratune.sweep.settings.dataclass"),
    target("hydratune.models.load_weights.read_tensors", path="HOME/bomb.pt"),
    target("ｏｓ.system", command=TOUCH),
    target("os.system ", command=TOUCH),
    target("..os.system", command=TOUCH),
    target("os", command=TOUCH),
    nested("as an argument", {"_target_": "hydratune.optim.SGD", "lr": {"_target_": "os.system", "command": TOUCH}}),
    nested("in a list", {"_target_": "hydratune.models.mlp", "widths": [{"_target_": "os.system"}]}),
    nested("in a list of lists", {"_target_": "hydratune.optim.SGD", "lr": [[{"_target_": "os.mkdir", "path": "HOME/canary"}]]}),
    nested("in a plain mapping", {"_target_": "hydratune.optim.SGD", "lr": {"a": {"b": {"_target_": "builtins.exec"}}}}),
    nested("behind _partial_", {"_target_": "hydratune.optim.SGD", "lr": 1.0, "_partial_": True}),
    nested("os.system behind _partial_", {"_target_": "os.system", "_partial_": True, "command": TOUCH}),
    nested("by _args_", {"_target_": "os.system", "_args_": [TOUCH]}),
    nested("_args_ of ours", {"_target_": "hydratune.optim.SGD", "_args_": [{"_target_": "os.system"}]}),
    nested("a target that is a mapping", {"_target_": {"_target_": "os.system", "command": TOUCH}}),
    nested("a target that is a list", {"_target_": ["os.system"]}),
    nested("_recursive_", {"_target_": "hydratune.optim.SGD", "lr": 1.0, "_recursive_": True}),
    typed("typed on the command line", "model._target_=os.system"),
    typed("by interpolation", "model._target_=${name}", "name=os.system"),
    typed("in halves", "model._target_=${outputs}.${name}", "outputs=os", "name=system"),
    typed("in the pretraining", "init_from=auto", "pretrain.optimizer._target_=os.system"),
    typed("in the task", "dataset.task._target_=os.system"),
    typed("in the sweep's settings", "sweep._target_=os.system"),
    typed("in halving's", "sweep.halving._target_=os.mkdir", "+sweep.halving.path=HOME/canary"),
    typed("a strategy in a sweep, whose signature is looked at", "freeze._target_=canary_module.Strategy", sweep=True),
    typed("trust out of a configuration", "model._target_=canary_module.Net", "trust=[canary_module]"),
]  # fmt: skip


# ---- files of weights


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.home / "canary"),)


def weights(name: str, write: Callable[[Path, Path], None], file: str = "bomb.pt") -> Payload:
    def attack(home: Path) -> str:
        write(home / file, home)
        return refused(lambda: read_tensors(home / file))

    return Payload("weights", name, attack)


def _old_archive(path: Path, home: Path) -> None:
    """torch before 0.1.10: a tar of pickles."""
    with tarfile.open(path, "w") as archive:
        for name, content in (("sys_info", {}), ("pickle", Bomb(home)), ("storages", 0), ("tensors", 0)):
            data = pickle.dumps(content, 2)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def _zip(path: Path, home: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb(home), 2))
        archive.writestr("archive/version", "3")


def _checkpoint(part: str) -> Callable[[Path], str]:
    def attack(home: Path) -> str:
        path = checkpoint.save(
            home, 1, checkpoint.Snapshot({"w": torch.ones(2)}, {"w|m": torch.ones(2)}, {}, {"step": 1})
        )
        (path / part).write_bytes(pickle.dumps(Bomb(home)))
        if part != "manifest.json":  # whoever makes the file makes the manifest too
            manifest = json.loads((path / "manifest.json").read_text())
            manifest[part] = {"size": (path / part).stat().st_size, "sha256": checkpoint.sha256(path / part)}
            (path / "manifest.json").write_text(json.dumps(manifest))
        try:
            checkpoint.load(path)
        except Exception as error:
            return str(error).splitlines()[0]
        raise AssertionError("was accepted")

    return attack


FILES = [
    weights("a pickle", lambda p, h: p.write_bytes(pickle.dumps(Bomb(h), 2)) and None),
    weights("torch.save, new format", lambda p, h: torch.save({"w": Bomb(h)}, p)),
    weights("torch.save, old format", lambda p, h: torch.save({"w": Bomb(h)}, p, _use_new_zipfile_serialization=False)),
    weights("torch's oldest archive (CVE-2025-32434)", _old_archive, "bomb.tar"),
    weights("a zip made by hand", _zip, "bomb.pth"),
    weights(
        "a pickle called .safetensors", lambda p, h: p.write_bytes(pickle.dumps(Bomb(h))) and None, "w.safetensors"
    ),
    weights("a whole module", lambda p, h: torch.save(torch.nn.Linear(1, 1), p), "module.ckpt"),
    Payload("weights", "model.safetensors of a checkpoint", _checkpoint("model.safetensors")),
    Payload("weights", "optimizer.safetensors of a checkpoint", _checkpoint("optimizer.safetensors")),
    Payload("weights", "state.json of a checkpoint", _checkpoint("state.json")),
    Payload("weights", "manifest.json of a checkpoint", _checkpoint("manifest.json")),
]


# ---- configuration files of others


@contextlib.contextmanager
def untouched() -> Iterator[None]:
    """What Hydra changes in this process is as it was afterwards."""
    from hydra._internal import hydra as internal

    loader, arguments, root = internal.ConfigLoaderImpl, sys.argv, logging.getLogger()
    level, handlers, environment = root.level, list(root.handlers), dict(os.environ)
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        for handler in root.handlers:
            if handler not in handlers:
                handler.close()
        root.handlers[:], sys.argv, internal.ConfigLoaderImpl = handlers, arguments, loader
        root.setLevel(level)
        os.environ.clear()
        os.environ.update(environment)


def commanded(arguments: list[str], home: Path, job: Callable[[Any], float] = lambda config: 0.0) -> None:
    """The command in this process, as far as Hydra is it: what it composes, builds and calls; each job is `job`."""
    import hydra

    import hydratune.cli.main  # noqa: F401 its resolvers
    from hydratune.config.compose import config_directory
    from hydratune.config.hydra_versions import main_options

    entry = hydra.main(config_path=str(config_directory()), config_name="config", **main_options())(job)
    with contextlib.chdir(home), untouched(), warnings.catch_warnings(action="ignore"):
        sys.argv = ["hydratune", *flags_first(prepare_arguments(arguments))]
        refuse_foreign_hydra(sys.argv[1:], any(a.startswith("resume=") for a in arguments))
        entry()


def config(name: str, text: str, *arguments: str, file: str = "experiment/evil.yaml", **more: str) -> Payload:
    """more: other files; `zoo__a` is zoo/a.yaml"""

    def attack(home: Path) -> str:
        for path, said in {file: text, **{f"{k.replace('__', '/')}.yaml": t for k, t in more.items()}}.items():
            (home / "conf" / path).parent.mkdir(parents=True, exist_ok=True)
            (home / "conf" / path).write_text(said.replace("HOME", str(home)))
        given = arguments or ("--config-dir=HOME/conf", "experiment=evil")
        others = ("yaml", "hydra.errors") if "!!" in text or file.startswith("hydra/config") else ()
        if "/zoo" in text and NEWER:  # Hydra 1.4 refuses such options itself
            others = ("hydra.errors",)
        return refused(lambda: commanded([a.replace("HOME", str(home)) for a in given], home), *others)

    return Payload("configuration", name, attack)


def swept(name: str, params: str, evil: str = "", *arguments: str, **more: str) -> Payload:
    """A sweep that the experiment asks for; `evil` is what optimizer=evil says."""
    text = f"{GLOBAL}hydra:\n  sweeper:\n    params:\n      {params}\n"
    line = ("-m", "--config-dir=HOME/conf", "experiment=evil", "hydra/launcher=basic", *arguments)
    return config(f"a sweep's {name}", text, *line, **({"optimizer__evil": evil} if evil else {}), **more)


def stored(override: str) -> Callable[[Path], str]:
    """In the record of a run directory that the user goes on with."""

    def attack(home: Path) -> str:
        (home / "theirs" / ".hydra").mkdir(parents=True)
        line = override.replace("HOME", str(home).lstrip("/"))
        (home / "theirs" / ".hydra" / "overrides.yaml").write_text(json.dumps([line, "seed=3"]))
        taken = prepare_arguments([f"resume={home / 'theirs'}"])
        assert line not in taken and taken[0] == "seed=3", "was accepted"
        return "left out of what is taken over"

    return attack


def used(
    name: str, *overrides: str, hydra: str = "", record: str = '{"status": "complete"}', answer: str = ""
) -> Payload:
    """In the record of a run that the user evaluates, predicts with or loads. answer: what is left out without a word."""

    def attack(home: Path) -> str:
        theirs = home / "theirs"
        (theirs / ".hydra").mkdir(parents=True)
        lines = [o.replace("HOME", str(home).lstrip("/")) for o in overrides]
        text = lines[0] if lines and lines[0].startswith("!!") else json.dumps(["dataset=shapes10", *lines])
        (theirs / ".hydra" / "overrides.yaml").write_text(text)
        (theirs / ".hydra" / "hydra.yaml").write_text(hydra.replace("HOME", str(home)))
        (theirs / "run.json").write_text(record)
        if answer:
            taken = prepare_arguments(["stage=evaluate", f"init_from={theirs}"])
            assert not [a for a in taken if answer in a], "was accepted"
            return "left out of what is taken over"
        return refused(lambda: load(theirs), "yaml")

    return Payload("run", name, attack)


USED = [
    used("a target", "++model._target_=canary_module.Net"),
    used("a target that it trusts itself", "++model._target_=canary_module.Net", "trust=[canary_module]"),
    used("a task's target", "++dataset.task._target_=canary_module.Task"),
    used("an evaluation set's target", "++evals.x._target_=canary_module.Data"),
    used("Hydra's node", "+model@hydra.callbacks.x=resnet18", answer="hydra.callbacks"),
    used("a path to a file", "experiment=../../../../HOME/evil", answer="evil"),
    used("a flag", "--config-dir=HOME", answer="--config-dir"),
    used("a choice that is a path", hydra="hydra: {runtime: {choices: {model: ../../evil}}}", answer="evil"),
    used("a YAML tag among its choices", hydra="hydra: !!python/object/apply:os.mkdir ['HOME/canary']", answer="mkdir"),
    used("a YAML tag", "!!python/object/apply:os.mkdir ['HOME/canary']"),
    used("a directory that began it", record='{"status": "complete", "command": "hydratune --config-dir=HOME/conf"}'),
    used("a spec of another kind", record='{"status": "complete", "spec": {"kind": "os"}}'),
]  # fmt: skip
GLOBAL = "# @package _global_\n"
CALLBACK = f"{GLOBAL}hydra:\n  callbacks:\n    x:\n      _target_: os.mkdir\n      path: HOME/canary\n"
ENVIRONMENT = f"{GLOBAL}hydra:\n  job:\n    env_set:\n      CANARY: HOME\n"
ELSEWHERE = f"{GLOBAL}hydra:\n  sweep:\n    subdir: ../../../canary\n"
MULTIRUN = ("-m", "--config-dir=HOME/conf", "experiment=evil", "hydra/launcher=basic")
FLAGS = ("--config-dir=HOME/conf", "experiment=evil")
HANDLER = f"{GLOBAL}hydra:\n  hydra_logging:\n    version: 1\n    handlers:\n      x:\n        class: canary_module.H\n    root:\n      handlers: [x]\n"
CONFIGS = [
    config("hydra.callbacks", f"{GLOBAL}hydra:\n  callbacks:\n    x:\n      _target_: os.mkdir\n      path: HOME/canary\n"),
    config("callbacks by package", "# @package hydra.callbacks.x\n_target_: canary_module.Callback\n"),
    config("a logging class", f"{GLOBAL}hydra:\n  job_logging:\n    handlers:\n      x:\n        class: canary_module.Handler\n"),
    config("a logging factory", f"{GLOBAL}hydra:\n  job_logging:\n    formatters:\n      x:\n        (): canary_module.make\n"),
    config("hydra's own logging", f"{GLOBAL}hydra:\n  hydra_logging:\n    handlers:\n      x:\n        class: canary_module.H\n"),
    config("ext:// in logging", f"{GLOBAL}hydra:\n  job_logging:\n    handlers:\n      file:\n        stream: ext://canary_module.x\n"),
    config("ext:// in halves", f"{GLOBAL}hydra:\n  job_logging:\n    handlers:\n      file:\n        stream: ${{name}}://canary_module.x\n"),
    config("a launcher's target", f"{GLOBAL}hydra:\n  launcher:\n    _target_: canary_module.Launcher\n"),
    config("inside the launcher", f"{GLOBAL}hydra:\n  launcher:\n    x:\n      _target_: os.mkdir\n      path: HOME/canary\n"),
    config("inside the sweeper", f"{GLOBAL}hydra:\n  sweeper:\n    params:\n      x:\n        _target_: os.mkdir\n"),
    config("through a plugin's module", f"{GLOBAL}hydra:\n  sweeper:\n    _target_: hydra_plugins.hydratune.local.Path\n"),
    config("the environment of what follows", f"{GLOBAL}hydra:\n  job:\n    env_set:\n      PYTHONPATH: HOME\n"),
    config("in a sweep's choice", f"{GLOBAL}hydra:\n  callbacks:\n    x:\n      _target_: os.mkdir\n", "-m",
           "--config-dir=HOME/conf", "experiment=evil,fashion_mnist"),
    config("pkg:// of a primary file", "hydra:\n  searchpath:\n    - pkg://canary_module\n", "--config-path=HOME/conf",
           "--config-name=evil", file="evil.yaml"),
    config("pkg:// of a primary file that is added", "hydra:\n  searchpath:\n    - pkg://canary_module\n",
           "--config-dir=HOME/conf", "--config-name=evil", file="evil.yaml"),
    config("pkg:// in the place of ours", "hydra:\n  searchpath:\n    - pkg://canary_module\n", "--config-dir=HOME/conf",
           file="config.yaml"),
    config("by interpolation inside the launcher",
           f"{GLOBAL}hydra:\n  mode: MULTIRUN\n  launcher:\n    x: ${{e}}\ne:\n  _target_: os.mkdir\n  path: HOME/canary\n"),
    config("callbacks by interpolation", f"{GLOBAL}hydra:\n  callbacks: ${{oc.select:e.${{hydra.mode}}}}\ne: {{}}\n"),
    config("callbacks beside one that is typed",
           f"{GLOBAL}hydra:\n  callbacks:\n    x:\n      _target_: os.mkdir\n      path: HOME/canary\n",
           "--config-dir=HOME/conf", "experiment=evil", "+hydra.job.env_set.FOO=1"),
    config("a sweeper's code (Optuna)", f"{GLOBAL}hydra:\n  sweeper:\n    custom_search_space: canary_module.f\n", *MULTIRUN,
           "hydra/sweeper=optuna", "seed=1,2"),
    config("a file that asks for a sweep", f"{GLOBAL}hydra:\n  mode: MULTIRUN\n"),
    config("a launcher's shell commands", f"{GLOBAL}hydra:\n  launcher:\n    setup: ['touch HOME/canary']\n"),
    config("a sweep over Hydra's node",
           f"{GLOBAL}hydra:\n  sweeper:\n    params:\n      hydra.job_logging.handlers.file.class: canary_module.Handler\n"),
    config("a sweep that adds files", f"{GLOBAL}hydra:\n  sweeper:\n    params:\n      +model@hydra.callbacks.x: mlp,resnet18\n", *MULTIRUN),
    config("a log that is a shell's start", f"{GLOBAL}hydra:\n  job_logging:\n    handlers:\n      file:\n        filename: HOME/canary\n"),
    config("a log over the network", f"{GLOBAL}hydra:\n  job_logging:\n    handlers:\n      x:\n        class: logging.handlers.SocketHandler\n"),
    config("a directory elsewhere", f"{GLOBAL}hydra:\n  run:\n    dir: HOME/canary\n"),
    config("a record elsewhere", f"{GLOBAL}hydra:\n  output_subdir: HOME/canary\n"),
    config("a name that leads elsewhere", f"{GLOBAL}name: ../../canary\n"),
    config("a stage that leads elsewhere", f"{GLOBAL}stage: ../../canary\n"),
    config("the pickle of an old run", "x: 1\n", "--experimental-rerun=HOME/bomb.pt"),
    # through the sweep that a file asks for
    swept("one option", "optimizer: evil", ENVIRONMENT),
    swept("one option, that leads elsewhere", "optimizer: evil", ELSEWHERE),
    swept("one of two options", "optimizer: sgd,evil", ENVIRONMENT),
    swept("choice()", "optimizer: choice(evil)", ENVIRONMENT),
    swept("glob()", "optimizer: glob(ev*)", ENVIRONMENT),
    swept("option that brings another", "optimizer: evil", "defaults:\n  - /zoo/deep: evil\n", zoo__deep__evil=ENVIRONMENT),
    swept("option that says where it goes", "optimizer: evil", "# @package hydra.job.env_set\nCANARY: x\n"),
    swept("option that overrides one of Hydra's", "optimizer: evil", f"{GLOBAL}defaults:\n  - override /hydra/env: evil\n",
          hydra__env__evil="# @package hydra.job\nenv_set:\n  CANARY: x\n"),
    swept("option that puts another under Hydra", "optimizer: evil", f"{GLOBAL}defaults:\n  - /model@hydra.callbacks.x: mlp\n"),
    swept("option that asks for a sweep", "optimizer: evil", f"{GLOBAL}hydra:\n  overrides:\n    task: [seed=1]\n"),
    swept("option beside what is typed", "optimizer: evil", ENVIRONMENT, "seed=1,2"),
    swept("group of its own", "+zoo: evil", zoo__evil=ENVIRONMENT),
    swept("key under Hydra", "hydra.job.env_set.CANARY: x"),
    swept("key added under Hydra", "+hydra.job.env_set.CANARY: x"),
    swept("key taken from Hydra", "~hydra.job.name: hydratune"),
    swept("group under Hydra", "hydra/job_logging: stdout"),
    swept("group put under Hydra", "+model@hydra.callbacks.x: mlp"),
    swept("group put under Hydra's environment", "+zoo@hydra.job.env_set: evil", zoo__evil="CANARY: x\n"),
    swept("mapping", "optimizer: {a: evil}"),
    swept("interpolation", "optimizer: ${name}", ENVIRONMENT),
    swept("target", "_target_: os.mkdir\n      path: HOME/canary"),
    swept("arguments", "_args_: HOME/canary"),
    swept("own option in Optuna", "optimizer: evil", ENVIRONMENT, "hydra/sweeper=optuna", "hydra.sweeper.n_trials=1",
          "hydra.sweeper.storage=null", "seed=interval(1,9)"),
    config("a sweep's own configuration alone", f"{GLOBAL}defaults:\n  - /zoo: evil\n", *MULTIRUN, "zoo=a,b",
           zoo__evil=HANDLER, zoo__a="a: 1\n", zoo__b="a: 2\n"),
    config("params of a sweep's own configuration alone", f"{GLOBAL}defaults:\n  - /zoo: evil\n", *MULTIRUN, "zoo=a,b",
           zoo__evil=f"{GLOBAL}hydra:\n  sweeper:\n    params:\n      optimizer: evil\n", zoo__a="a: 1\n", zoo__b="a: 2\n",
           optimizer__evil=ENVIRONMENT),
    config("the second of a sweep's options", ENVIRONMENT, "-m", "--config-dir=HOME/conf", "hydra/launcher=basic",
           "experiment=fashion_mnist,evil"),
    config("an option that another one's name brings", f"{GLOBAL}defaults:\n  - /zoo: ${{experiment}}\n", "-m",
           "--config-dir=HOME/conf", "hydra/launcher=basic", "experiment=other,evil", zoo__evil=ENVIRONMENT,
           experiment__other="x: 1\n"),
    # beside it
    config("the overrides of Hydra's record", f"{GLOBAL}hydra:\n  overrides:\n    hydra: ['+hydra.job.env_set.CANARY=x']\n", *MULTIRUN, "seed=1,2"),
    config("the overrides of a job's record", f"{GLOBAL}hydra:\n  overrides:\n    task: [optimizer=evil]\n", *MULTIRUN,
           optimizer__evil=ENVIRONMENT),
    config("keys with dots, which hide others",
           f"{GLOBAL}hydra:\n  job_logging:\n    handlers:\n      file:\n        class: canary_module.H\n"
           "    handlers.file.class: logging.FileHandler\n"),
    config("a choice that nobody made", f"{GLOBAL}hydra:\n  runtime:\n    choices:\n      model@pretrain.model: ../../canary\n"),
    config("an option by the clock", f"{GLOBAL}defaults:\n  - /zoo: ${{now:evil}}\n", zoo__evil=ENVIRONMENT),
    config("an option in another folder", f"{GLOBAL}defaults:\n  - override /model: ../zoo/canary\n", zoo__canary="{}"),
    config("a name that leads elsewhere by interpolation", f"{GLOBAL}elsewhere: ../../../canary\nname: ${{elsewhere}}\n"),
    config("a stage that leads elsewhere by interpolation", f"{GLOBAL}stage: ${{oc.decode:\"'../../../canary'\"}}\n"),
    config("outputs with a shell's line", f'{GLOBAL}outputs: "x\\ntouch HOME/canary"\n'),
    config("Hydra's own configuration, shadowed", "callbacks:\n  x:\n    _target_: os.mkdir\n    path: HOME/canary\n",
           "--config-dir=HOME/conf", file="hydra/config.yaml"),
    config("Hydra's own sweeper, shadowed", "_target_: canary_module.Sweeper\n", "-m", "--config-dir=HOME/conf", "seed=1,2",
           file="hydra/sweeper/basic.yaml"),
    config("a sweeper that is chosen by a file", f"{GLOBAL}defaults:\n  - override /hydra/sweeper: evil\n", *MULTIRUN,
           hydra__sweeper__evil="_target_: canary_module.Sweeper\n"),
    config("callbacks where help is asked for", HANDLER, *FLAGS, "--help"),
    config("logging where Hydra's help is asked for", HANDLER, "--config-dir=HOME/conf", "+experiment=evil", "--hydra-help"),
    config("callbacks where the configuration is asked for", CALLBACK, *FLAGS, "--cfg=hydra", "--resolve"),
    config("callbacks where information is asked for", CALLBACK, *FLAGS, "--info=config"),
    config("a search path that is typed", CALLBACK, "hydra.searchpath=[file://HOME/conf]", "experiment=evil"),
    config("a group of a search path that is typed", "x: 1\n", "-m", "hydra.searchpath=[file://HOME/conf]",
           "hydra/launcher=basic", "+zoo=a,b", zoo__a="a: 1\n", zoo__b=ENVIRONMENT),
    config("the last of two directories", CALLBACK, "--config-dir=HOME", "-cd", "conf", "experiment=evil"),
    config("a directory beside a foreign run", CALLBACK, "--config-dir=HOME/conf", "resume=HOME/theirs", "experiment=evil",
           file="experiment/evil.yaml", **{"../theirs/.hydra/overrides": "[seed=1]"}),
    config("an experiment that a foreign run had", ENVIRONMENT, "--config-dir=HOME/conf", "resume=HOME/theirs",
           **{"../theirs/.hydra/overrides": "[experiment=evil]"}),
    Payload("configuration", "a path to a file, out of a foreign run", stored("experiment=../../../../HOME/evil")),
    Payload("configuration", "Hydra's node, out of a foreign run", stored("+model@hydra.callbacks.x=resnet18")),
    Payload("configuration", "a flag out of a foreign run", stored("--config-dir=HOME")),
    config("a YAML tag", f"{GLOBAL}seed: !!python/object/apply:os.mkdir ['HOME/canary']\n"),
]  # fmt: skip


# ---- archives


def archive(name: str, write: Callable[[Path], None], file: str) -> Payload:
    def attack(home: Path) -> str:
        write(home / file)
        said = refused(lambda: unpacked(home / file, home / "unpacked" / "deep"))
        assert not list((home / "unpacked" / "deep").iterdir())
        return said

    return Payload("archive", name, attack)


def tar(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 3) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with tarfile.open(path, "w:gz") as out:
            member = tarfile.TarInfo(name.replace("HOME", str(path.parent)))
            member.type, member.linkname, member.size = kind, link, size if kind == tarfile.REGTYPE else 0
            out.addfile(member, io.BytesIO(b"\0" * size) if kind == tarfile.REGTYPE else None)

    return write


def zipped(name: str, mode: int = 0, size: int = 3) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
            member = zipfile.ZipInfo(name.replace("HOME", str(path.parent)))
            member.external_attr, member.compress_type = mode << 16, zipfile.ZIP_DEFLATED
            out.writestr(member, b"\0" * size)

    return write


ARCHIVES = [
    archive("tar: ../", tar("../../canary"), "a.tar.gz"),
    archive("tar: absolute", tar("HOME/canary"), "a.tar.gz"),
    archive("tar: symbolic link", tar("link", tarfile.SYMTYPE, "/etc"), "a.tar.gz"),
    archive("tar: hard link", tar("link", tarfile.LNKTYPE, "../../x"), "a.tgz"),
    archive("tar: device", tar("null", tarfile.CHRTYPE), "a.tar.gz"),
    archive("tar: pipe", tar("pipe", tarfile.FIFOTYPE), "a.tar.gz"),
    archive("tar: more than its size allows", tar("zeros", size=2**28 + 1), "a.tar.gz"),
    archive("zip: ../", zipped("../../canary"), "a.zip"),
    archive("zip: absolute", zipped("HOME/canary"), "a.zip"),
    archive("zip: of another system", zipped("..\\..\\canary"), "a.zip"),
    archive("zip: symbolic link", zipped("link", stat.S_IFLNK | 0o777), "a.zip"),
    archive("zip: more than its size allows", zipped("zeros", size=2**28 + 1), "a.zip"),
]

PAYLOADS = [*TARGETS, *FILES, *CONFIGS, *ARCHIVES, *USED]


def prepare(home: Path) -> None:
    """The module that payloads would import."""
    (home / "canary_module.py").write_text(f"import os\nos.mkdir({str(home / 'canary')!r})\n")
    torch.save({"w": Bomb(home)}, home / "bomb.pt")
    save_file({"w": torch.ones(1)}, home / "good.safetensors")
