"""The entry point."""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from hydratune import command
from hydratune.assemble import config_directory, run_from_hydra


@hydra.main(version_base="1.3", config_path=str(config_directory()), config_name="config")
def _run(config: DictConfig) -> float:
    return run_from_hydra(config, command.trusted(sys.argv[1:]))


def main() -> None:
    sys.argv[1:] = command.prepare(sys.argv[1:])
    with command.readable_errors(sys.argv[1:]):
        _run()
