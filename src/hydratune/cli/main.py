"""The entry point."""

from __future__ import annotations

import atexit
import json
import logging
import os
import sys
import threading
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from hydratune.cli import failures, resolvers
from hydratune.cli.arguments import FULL, prepare, rank, wants_traceback
from hydratune.cli.hydra_guard import refuse_foreign_hydra
from hydratune.cli.stored import stage_of
from hydratune.config.compose import config_directory, in_sweep, make_job
from hydratune.config.groups import USING
from hydratune.config.hydra_versions import main_options
from hydratune.config.job import Job
from hydratune.config.overrides import flags_first
from hydratune.config.trust import trusted
from hydratune.config.validate import validate
from hydratune.core.secrets import HidingStream, hidden, hide_in_file
from hydratune.distributed import signals

resolvers.register()
ARGUMENTS = tuple(sys.argv[1:])  # as typed, before resume= is taken apart
TRACEBACK = wants_traceback(ARGUMENTS)
SOME_UNREADABLE = 3  # the exit status where some inputs could not be read, and the rest is predicted


def _hidden_in_logs() -> None:
    """What libraries log goes to a file of the run."""

    def hide(record: logging.LogRecord) -> bool:
        record.msg, record.args = hidden(record.getMessage()), ()
        if record.exc_info:
            record.exc_text, record.exc_info = hidden(logging.Formatter().formatException(record.exc_info)), None
        return True

    for handler in logging.getLogger().handlers:
        handler.addFilter(hide)


@hydra.main(config_path=str(config_directory()), config_name="config", **main_options())
def _run(config: DictConfig) -> float:
    # A job of a sweep that fails is named and left behind; the others go on, and Hydra raises what it met at the end.
    signals.listen()
    _hidden_in_logs()
    home = os.path.relpath(HydraConfig.get().runtime.output_dir)
    hide_in_file(Path(home, str(HydraConfig.get().output_subdir), "hydra.yaml"))  # it holds the directory, resolved
    with failures.readable_errors(ARGUMENTS, TRACEBACK, leave=not in_sweep(), run=home):
        return run_from_hydra(config)


def run_from_hydra(config: DictConfig) -> float:
    """One job of Hydra's; returns the validation metric, which sweepers maximise."""
    settings = HydraConfig.get()
    directory = Path(settings.runtime.output_dir)
    chosen, typed = settings.runtime.choices, settings.overrides.task
    job = make_job(config, chosen, typed, directory, ARGUMENTS, trusted(ARGUMENTS), in_sweep())
    validate(job)
    # torch is loaded only now: what the configuration got wrong has been said.
    if job.config.stage in USING:
        from hydratune.experiment.use import use

        result = use(job)
        if getattr(result, "unreadable", 0):
            sys.exit(SOME_UNREADABLE)
        return result.metric
    from hydratune.distributed.process_group import from_first, launched, process_group
    from hydratune.experiment.selfplay import run_job

    if not launched():
        return run_job(job).metric
    with process_group():  # one configuration, the first process's: its directory's name is a time
        return run_job(Job.from_json(json.loads(from_first(json.dumps(job.as_json(), default=str))))).metric


def main() -> None:
    ended: list[bool] = []
    atexit.register(lambda: failures.leave() if ended else None)
    os.environ[FULL] = "1"  # Hydra's own shortening of errors gives way to ours
    threading.excepthook = failures.thread_failed
    sys.stdout, sys.stderr = HidingStream(sys.stdout), HidingStream(sys.stderr)
    with failures.readable_errors(ARGUMENTS, TRACEBACK, quiet=rank() > 0):
        sys.argv[1:] = flags_first(prepare(ARGUMENTS))
        stored = stage_of(ARGUMENTS) in USING or any(a.startswith("resume=") for a in ARGUMENTS)
        refuse_foreign_hydra(sys.argv[1:], stored)
        try:
            _run()
        except Exception:  # jobs that failed do not keep the others' table from being shown
            failures.conclude_sweeps(failed=True)
            raise
        failures.conclude_sweeps()
    ended.append(True)
