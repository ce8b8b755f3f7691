"""The entry point."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from hydratune import command, signals
from hydratune.assemble import config_directory, from_environment, in_sweep, run_from_hydra
from hydratune.guard import refuse_foreign_hydra
from hydratune.overrides import flags_first, safe_name
from hydratune.secrets import HidingStream, hidden, hide_in_file

OmegaConf.register_new_resolver("safe_name", safe_name, replace=True)
OmegaConf.register_new_resolver("oc.env", from_environment, replace=True)
ARGUMENTS = tuple(sys.argv[1:])  # as typed, before resume= is taken apart
TRACEBACK = command.wants_traceback(ARGUMENTS)


def _hidden_in_logs() -> None:
    """What libraries log goes to a file of the run."""

    def hide(record: logging.LogRecord) -> bool:
        record.msg, record.args = hidden(record.getMessage()), ()
        if record.exc_info:
            record.exc_text, record.exc_info = hidden(logging.Formatter().formatException(record.exc_info)), None
        return True

    for handler in logging.getLogger().handlers:
        handler.addFilter(hide)


@hydra.main(version_base="1.3", config_path=str(config_directory()), config_name="config")
def _run(config: DictConfig) -> float:
    # A job of a sweep that fails is named and left behind; the others go on, and Hydra raises what it met at the end.
    signals.listen()
    _hidden_in_logs()
    home = os.path.relpath(HydraConfig.get().runtime.output_dir)
    hide_in_file(Path(home, str(HydraConfig.get().output_subdir), "hydra.yaml"))  # it holds the directory, resolved
    with command.readable_errors(ARGUMENTS, TRACEBACK, leave=not in_sweep(), run=home):
        return run_from_hydra(config, ARGUMENTS, command.trusted(ARGUMENTS))


def main() -> None:
    ended: list[bool] = []
    atexit.register(lambda: command.leave() if ended else None)
    os.environ[command.FULL] = "1"  # Hydra's own shortening of errors gives way to ours
    threading.excepthook = command.thread_failed
    sys.stdout, sys.stderr = HidingStream(sys.stdout), HidingStream(sys.stderr)
    with command.readable_errors(ARGUMENTS, TRACEBACK, quiet=command.rank() > 0):
        sys.argv[1:] = flags_first(command.prepare(ARGUMENTS))
        refuse_foreign_hydra(sys.argv[1:], any(a.startswith("resume=") for a in ARGUMENTS))
        try:
            _run()
        except Exception:  # jobs that failed do not keep the others' table from being shown
            command.conclude_sweeps(failed=True)
            raise
        command.conclude_sweeps()
    ended.append(True)
