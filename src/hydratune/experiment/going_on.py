"""What a run that goes on may not change, and to how many steps it may go on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydratune.config.fingerprint import differences
from hydratune.core.types import Phase
from hydratune.experiment.prepare import PreparedJob, planned_phases
from hydratune.freeze.patience import as_they_came

LENGTH = ("epochs", "steps", "generations")


def refuse_changes(prepared: PreparedJob, provenance: Mapping[str, Any]) -> None:
    """Raises ValueError where the checkpoint was made by another configuration; another length may do."""
    changed = differences(prepared.known.provenance or {}, json.loads(json.dumps(provenance)))
    if prepared.snapshot is None or not changed:
        return
    if all(line.partition(":")[0] in LENGTH for line in changed):
        _refuse_other_length(prepared, changed)
        return
    raise another_configuration(prepared.job.directory, changed)


def another_configuration(directory: Path, changed: Sequence[str]) -> ValueError:
    """For a run that cannot be gone on with. changed: as `differences` has it."""
    return ValueError(
        f"resume: this configuration does not give the weights that {directory} holds. Changed: "
        f"{'; '.join(changed[:4])}{' ...' if len(changed) > 4 else ''}. init_from={directory} trains on from it"
    )


def _refuse_other_length(prepared: PreparedJob, changed: Sequence[str]) -> None:
    """Raises ValueError where what is done already would not have been done alike in a run of this length."""
    done, directory, config = prepared.first_step, prepared.job.directory, prepared.job.config
    last, before = prepared.phases[-1].last_step, prepared.known.num_steps
    message = f"resume: {'; '.join(changed)}"
    if last < done:
        raise ValueError(f"{message}: {directory} has made {done} steps already, and {last} are asked for")
    if before is None or before == last:
        return
    if config.selfplay and any(line.startswith("steps:") for line in changed):
        raise ValueError(f"{message}: of each generation; generations= may be more than they were")
    schedule = prepared.training.schedule
    rates = all(schedule.factor(step, before) == schedule.factor(step, last) for step in range(done))
    phases = planned_phases(prepared.training.freeze, prepared.network.groups, before, config.norm)
    history = prepared.snapshot.state["history"] if prepared.snapshot is not None else []
    then, now = (_until(as_they_came(plan, history), done) for plan in (phases, prepared.phases))
    if rates and then == now:
        return
    group = "freeze" if rates else "schedule"
    more = f"epochs={config.epochs}" if config.steps is None else f"steps={config.steps}"
    raise ValueError(
        f"{message}: {group}={prepared.job.choices.get(group)} depends on how many steps there are, so that the first "
        f"{done} would have been others. init_from={directory} with {more} trains on from its weights, in another run"
    )


def _until(phases: Sequence[Phase], step: int) -> list[Phase]:
    """What phases say of the steps before this one."""
    return [replace(p, last_step=min(p.last_step, step), name="") for p in phases if p.first_step < step]
