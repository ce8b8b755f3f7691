"""Every YAML composes and builds; what is wrong is refused in a line or two."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import transformers
from omegaconf import OmegaConf

from hydratune.config import instantiate
from hydratune.config.compose import config_directory
from hydratune.config.validate import strategy_node, validate
from hydratune.core.types import TextSpec
from tests.conftest import compose_config, hydratune, make_job
from tests.faults.harness import allowed

CONF = config_directory()
GROUPS = ("model", "optimizer", "schedule", "dataset", "freeze", "engine", "runtime")


def options(group: str) -> list[str]:
    return sorted(p.stem for p in (CONF / group).glob("*.yaml") if not p.stem.startswith("_"))


NEEDED = {
    "model=torchvision": ["model.name=mobilenet_v3_small"],
    "model=timm": ["model.name=test_resnet"],
    "model=hf": ["model.name=here"],
    "dataset=text_hub": ["dataset.name=here"],
    "freeze=pattern": ["freeze.train=[head]"],
    **{f"dataset={d}": ["dataset.path=here"] for d in ("text_csv", "text_columns", "text_files", "causal_files")},
    "dataset=image_csv": ["dataset.path=here"],
    "dataset=solved": ["dataset.path=here"],
}
SUPPLIED = {"input_shape": (3, 32, 32), "text_spec": TextSpec(100, 16, {"pad": 0, "mask": 1}), "inherited": None}


@pytest.mark.parametrize(
    ("typed", "key", "value"),
    [
        (["init_map={linear: fc}"], "init_map", {"linear": "fc"}),
        (["init_map.linear=fc"], "init_map", {"linear": "fc"}),
        (["sweep.cluster={timeout_min: 5}"], "sweep.cluster", {"timeout_min": 5}),
        (["optimizer=torch", "optimizer.options={lr_decay: 0.1}"], "optimizer.options", {"lr_decay": 0.1}),
    ],
)
def test_mappings_take_keys_of_the_user_s_own(typed: list[str], key: str, value: dict[str, object]) -> None:
    from omegaconf import OmegaConf

    from hydratune.cli.arguments import prepare
    from tests.conftest import compose_config

    assert OmegaConf.to_container(OmegaConf.select(compose_config(prepare(typed)), key)) == value


@pytest.mark.parametrize("choice", [f"{g}={o}" for g in GROUPS for o in options(g)])
def test_every_option_composes_and_builds(choice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    group, option = choice.split("=")
    job = make_job(["stage=pretrain", choice, *NEEDED.get(choice, [])], tmp_path)
    if option in ("vgg16", "resnet50", "vit_b_16", "convnext_tiny", "vgg11"):
        return  # built in test_models, where their outputs are looked at too
    if choice == "optimizer=muon":
        pytest.importorskip("timm")
    node = job.config.component(group)
    node = strategy_node(node, sweep=False) if group == "freeze" else node
    if choice == "model=hf":
        transformers.BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2).save_pretrained("here")
    question = "causal" if option.startswith("gpt") else "masked"
    assert instantiate.build(node, group, (), **SUPPLIED, question=question) is not None


@pytest.mark.parametrize("stage", options("stage"))
def test_stages_compose_with_every_experiment_and_debug(stage: str) -> None:
    """The command line beats an experiment's own stage, and debug beats both in what it is there for."""
    for experiment in options("experiment"):
        more = ["init_from=null"] if experiment == "flowers5" else []
        config = compose_config([f"experiment={experiment}", f"stage={stage}", "debug=default", *more])
        assert config.stage == stage and config.hydra.runtime.choices.stage == stage, experiment
        assert (config.steps, config.engine.log_every, config.outputs) == (5, 1, "outputs/debug"), experiment


@pytest.mark.parametrize("group", [g for g in GROUPS if g != "freeze"])
def test_a_stage_yields_to_the_command_line(group: str) -> None:
    for option in options(group):
        config = compose_config(["stage=finetune", f"{group}={option}"])
        assert config.hydra.runtime.choices[group] == option


def test_freeze_options_share_their_keys() -> None:
    keys = {o: set(compose_config([f"freeze={o}"]).freeze) - {"_target_"} for o in options("freeze")}
    assert len(set(map(frozenset, keys.values()))) == 1, keys


def test_stage_values_yield_to_overrides() -> None:
    config = compose_config(["stage=finetune", "freeze=none", "schedule=linear", "epochs=3"])
    assert config.hydra.runtime.choices.freeze == "none" and config.epochs == 3
    assert compose_config(["stage=finetune"]).hydra.runtime.choices.freeze == "head_only"


@pytest.mark.scenario(39)
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["optimizer.lrr=3"], "optimizer.lrr=3: no such key; nearest: optimizer.lr"),
        (["optimizer.lr=fast"], "optimizer.lr=fast: must be a number"),
        (["optimizer.lr=true"], "optimizer.lr=True: must be a number"),
        (["modle=resnet18"], "modle=resnet18: no such key; nearest: model"),
        (["model=resnt18"], "model=resnt18: no such option; nearest: resnet18"),
        (["stage=fintune"], "stage=fintune: no such option; nearest: finetune"),
        (["epochs=0"], "epochs=0: must be a whole number, at least 1"),
        (["batch_size=1.5"], "batch_size=1.5: must be a whole number, at least 1"),
        (["+dataset.augment.flop=true"], "dataset.augment.flop=True: no such key; nearest: flip"),
        (["init_form=auto"], "init_form=auto: no such key; nearest: init_from"),
        (["model=torchvision"], "model.name is not given"),
        (["freeze=head_only", "freeze.groups=2"], "freeze.groups=2: no such key"),
        (["model._target_=os.system"], "hydratune runs no code of os unless you trust it"),
        (["model._target_=my_package.MyNet"], "type trust=[my_package] on the command line"),
        (["resume=nowhere"], "resume=nowhere: no run directory"),
        (["init_from=3"], "init_from=3: must be null, auto or a path"),
        (["init_share=abc"], "init_share=abc: must be a share between 0 and 1"),
        (["test=maybe"], "test=maybe: must be auto, true or false"),
        (["pretrain.epochs=null"], "pretrain.epochs or pretrain.steps must be given"),
        (["batch_size=null"], "batch_size=None: must be a whole number"),
        (["pretrain.engine.clipp=1"], "pretrain.engine.clipp=1: no such key; nearest: pretrain.engine.clip"),
        (["pretrain.optimizer.lr=x"], "pretrain.optimizer.lr=x: must be a number"),
    ],
)
def test_errors_name_key_value_and_nearest(arguments: list[str], expected: str, tmp_path: Path) -> None:
    started = time.perf_counter()
    done = hydratune(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr and "+" + arguments[0].lstrip("+") not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2
    assert time.perf_counter() - started < allowed(5)


def test_debug_gives_the_traceback(tmp_path: Path) -> None:
    assert "Traceback" in hydratune("debug=default", "optimizer.lr=x", cwd=tmp_path).stderr
    assert "Traceback" in hydratune("optimizer.lr=x", cwd=tmp_path, HYDRA_FULL_ERROR="1").stderr


def test_help_and_info(tmp_path: Path) -> None:
    shown = hydratune("--help", cwd=tmp_path).stdout
    assert "freeze: " in shown and "resume=" in shown
    assert "stage: finetune" in hydratune("--info", "defaults-tree", cwd=tmp_path).stdout
    assert "lr: 0.01" in hydratune("--cfg", "job", "--resolve", cwd=tmp_path).stdout


def test_a_sweep_ignores_keys_of_other_strategies(tmp_path: Path) -> None:
    make_job(["freeze=head_only", "freeze.groups=2"], tmp_path, sweep=True)
    with pytest.raises(ValueError, match="no such key"):
        make_job(["freeze=head_only", "freeze.groups=2"], tmp_path)


def test_nested_targets_in_lists_are_refused_before_import(tmp_path: Path) -> None:
    for node in (
        {"_target_": "hydratune.optim.SGD", "lr": {"_target_": "builtins.eval", "x": 1}},
        {"_target_": "hydratune.models.mlp", "widths": [{"_target_": "os.system"}]},
        {"_target_": "logging.os.system"},
        {"_target_": "hydratune.config.instantiate.importlib.import_module"},
    ):
        with pytest.raises(ValueError, match=r"unless you trust it|not a component"):
            instantiate.check(node, "optimizer", ())


def test_trust_is_read_from_the_command_line_only(tmp_path: Path) -> None:
    from hydratune.cli.arguments import prepare
    from hydratune.config.trust import trusted

    assert trusted(["trust=[a,b]", "seed=1"]) == ["a", "b"]
    assert trusted(["seed=1"]) == []
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text("- trust=[evil]\n- seed=3\n")
    prepared = prepare([f"resume={tmp_path}", "test=false"])
    assert prepared[:2] == ["seed=3", "test=false"] and trusted(prepared) == []
    assert prepared[-2:] == ["resume=auto", "hydra.output_subdir=null"]
    assert prepared[-3].startswith("hydra.run.dir=")


def test_a_foreign_run_directory_brings_no_code_along(tmp_path: Path) -> None:
    """Whoever resumes somebody's directory types what is trusted; flags and Hydra's callbacks are not read from it."""
    from hydratune.cli.arguments import prepare

    (tmp_path / ".hydra").mkdir()
    forged = ["++trust=[os]", "~trust", "++hydra.callbacks.x={_target_:os.mkdir,path:canary}", "hydra/launcher=evil",
              "--config-dir=/evil", "-m", "++resume=x", "seed=1", "+dataset.extra=1"]  # fmt: skip
    (tmp_path / ".hydra" / "overrides.yaml").write_text("".join(f"- '{line}'\n" for line in forged))
    prepared = prepare([f"resume={tmp_path}"])
    assert prepared[:2] == ["seed=1", "+dataset.extra=1"] and len(prepared) == 5
    assert hydratune(f"resume={tmp_path}", cwd=tmp_path).returncode == 2
    assert not list(tmp_path.rglob("canary"))


def test_pretraining_stage_and_pretrain_node_agree(tmp_path: Path) -> None:
    """`hydratune stage=pretrain` leaves what `init_from=auto` looks for."""
    from hydratune.config.fingerprint import content, fingerprint
    from hydratune.experiment.components import strategy_of

    stage = make_job(["stage=pretrain"], tmp_path)
    node = make_job(["stage=finetune"], tmp_path).config.pretraining()
    strategy = strategy_of(stage)
    assert fingerprint(content(stage.config, strategy, None, "", "auto")) == fingerprint(
        content(node, node.freeze, None, "", "auto")
    )


def test_fingerprint_ignores_places_and_sees_weights(tmp_path: Path) -> None:
    from hydratune.config.fingerprint import content, differences, fingerprint

    base = make_job(["stage=pretrain", "dataset=cifar10"], tmp_path).config
    same = make_job(
        ["stage=pretrain", "dataset=cifar10", "dataset.root=/elsewhere", "runtime.threads=1"], tmp_path
    ).config
    other = make_job(["stage=pretrain", "dataset=cifar10", "optimizer.lr=0.02"], tmp_path).config
    made = [content(c, c.freeze, None, "", "auto") for c in (base, same, other)]
    assert fingerprint(made[0]) == fingerprint(made[1]) != fingerprint(made[2])
    assert differences(made[0], made[2]) == ["optimizer.lr: 0.01 -> 0.02"]


def test_every_experiment_validates(tmp_path: Path) -> None:
    assert options("experiment")
    for experiment in options("experiment"):
        validate(make_job([f"experiment={experiment}"], tmp_path))


@pytest.mark.parametrize("experiment", options("experiment"))
@pytest.mark.parametrize("other", ["optimizer=adamw", "model=resnet20", "dataset=cifar10", "schedule=linear"])
def test_experiments_yield_to_other_groups(experiment: str, other: str, tmp_path: Path) -> None:
    """What is typed is in force, and the values are its own where the experiment does not set them."""
    group, option = other.split("=")
    if experiment == "connect4_selfplay" and group == "dataset":
        with pytest.raises(ValueError, match="dataset=cifar10: stage=selfplay makes its data"):
            make_job([f"experiment={experiment}", other, "init_from=null"], tmp_path)
        return
    job = make_job([f"experiment={experiment}", other, "init_from=null"], tmp_path)
    plain = make_job([other, "init_from=null"], tmp_path)
    assert job.choices[group] == option
    assert job.config.component(group)["_target_"] == plain.config.component(group)["_target_"]
    typed = set(job.config.component(group)) - {"lr", "betas", "task", "augment", "momentum"}
    assert {k: job.config.component(group)[k] for k in typed} == {k: plain.config.component(group)[k] for k in typed}


def test_fine_tunings_own_engine_settings_do_not_pretrain_again(tmp_path: Path) -> None:
    plain, clipped = (make_job(["stage=finetune", *o], tmp_path).config for o in ([], ["engine.clip=1.0"]))
    assert plain.pretrain == clipped.pretrain and clipped.engine["clip"] == 1.0


def test_a_users_own_root_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    from hydratune.config.fingerprint import content

    job = make_job(["stage=pretrain"], tmp_path)
    mine = [job.with_config(dataset={"_target_": "mine.Data", "root": root}).config for root in "ab"]
    made = [content(config, config.freeze, None, "", "auto") for config in mine]
    assert made[0] != made[1]


def test_the_primary_configuration_is_found() -> None:
    assert (CONF / "config.yaml").is_file()
    assert "pretrain" in OmegaConf.load(CONF / "config.yaml")


def test_job_names_are_safe_on_every_file_system() -> None:
    from hydratune.config.overrides import safe_name

    assert safe_name("freeze=lp_ft,optimizer.lr=0.001") == "freeze=lp_ft,optimizer.lr=0.001"
    strange = [safe_name(n) for n in ("init_from=a/b", "init_from=a-b", "init_from=../../b", "x=" + "y" * 500)]
    assert len(set(strange)) == 4 and all("/" not in n and len(n) < 140 for n in strange)


def test_typed_values_read_back_as_themselves(tmp_path: Path) -> None:
    from hydratune.config.overrides import literal

    for value in (
        None,
        True,
        "true",
        "null",
        "10",
        "1e-3",
        0.1,
        1e-8,
        "a b'c",
        "runs/x-1",
        [1, [0.5, None]],
        {"betas": [0.9, 0.99]},
    ):
        assert compose_config([f"+x={literal(value)}"]).x == value


def test_a_key_of_another_strategy_names_its_owner(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"freeze\.rank=8: no such key of this strategy; it belongs to freeze=lora"):
        make_job(["stage=finetune", "freeze=head_only", "freeze.rank=8"], tmp_path)
    with pytest.raises(ValueError, match="it belongs to freeze=first_groups or freeze=last_groups"):
        make_job(["stage=finetune", "freeze=surgical", "freeze.groups=2"], tmp_path)
    make_job(["stage=finetune", "freeze=head_only", "freeze.rank=8"], tmp_path, sweep=True)  # meant for another there


def test_every_strategy_composes_in_one_sweep_line(tmp_path: Path) -> None:
    for option in options("freeze"):
        line = ["stage=finetune", f"freeze={option}", "freeze.rank=2", "freeze.norm=affine"]
        job = make_job(line, tmp_path, sweep=True)
        assert job.config.norm == "affine"
        assert ("rank" in strategy_node(job.config.freeze, sweep=True)) == (option == "lora")
