"""The entry point."""

from __future__ import annotations

import os
import sys

import hydra
from omegaconf import DictConfig, OmegaConf

from hydratune import command
from hydratune.assemble import config_directory, run_from_hydra
from hydratune.overrides import safe_name

OmegaConf.register_new_resolver("safe_name", safe_name, replace=True)
TRACEBACK = command.wants_traceback(sys.argv[1:])


@hydra.main(version_base="1.3", config_path=str(config_directory()), config_name="config")
def _run(config: DictConfig) -> float:
    with command.readable_errors(sys.argv[1:], TRACEBACK):
        return run_from_hydra(config, command.trusted(sys.argv[1:]))


def main() -> None:
    os.environ[command.FULL] = "1"  # Hydra's own shortening of errors gives way to ours
    with command.readable_errors(sys.argv[1:], TRACEBACK):
        sys.argv[1:] = command.prepare(sys.argv[1:])
        _run()
