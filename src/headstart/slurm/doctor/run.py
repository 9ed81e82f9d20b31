"""What `headstart doctor` looks at: a batch script, params.yaml, this machine, an allocation's nodes."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from headstart.config.loader import load_params
from headstart.config.schema import Params
from headstart.core.errors import UserError
from headstart.slurm.doctor.batch_checks import check_params, check_script, check_tracking, resources_of
from headstart.slurm.doctor.batch_script import BatchScript, read_batch_script
from headstart.slurm.doctor.finding import Finding
from headstart.slurm.doctor.slurm_commands import allocated, check_by_sbatch, settings


def print_findings(script: Path | None, *, as_json: bool) -> int:
    """Print what ``examine`` finds, a line each or as JSON; return the exit code, 1 where there is an error."""
    findings = list(examine(script))
    if as_json:
        print(json.dumps([finding._asdict() for finding in findings], indent=2, ensure_ascii=False))
    else:
        for severity, name, message in findings:
            print(f"{severity}: {message} [{name}]")
        if all(finding.severity == "info" for finding in findings):
            print("doctor: nothing wrong was found")
    return int(any(finding.severity == "error" for finding in findings))


def examine(path: Path | None) -> Iterator[Finding]:
    """Check a batch script, ``params.yaml``, and what this process runs on.

    Args:
        path: of the script; None for none.
    """
    in_job, script, cluster = "SLURM_JOB_ID" in os.environ, BatchScript(), settings()
    if path is not None:
        try:
            script = read_batch_script(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            yield Finding("error", "script-unreadable", f"{path} can't be read as a batch script: {error}")
            return
        if cluster and not in_job:
            yield from check_by_sbatch(path)
    if in_job:  # sbatch knew every option
        troubles = [trouble for trouble in script.troubles if not trouble.name.startswith("option")]
        script = replace(script, options=allocated(script.options), troubles=troubles)
    if path is not None:
        yield from check_script(script, cluster)
    try:
        params = load_params(Path("params.yaml"))
    except UserError as error:
        lines = str(error).splitlines()
        yield from (Finding("error", "params-invalid", line.strip()) for line in lines[1:] or lines)
        return
    if path is not None:
        yield from check_params(script, params)
    yield from check_tracking(params)
    yield from _examine_machine(script, params, in_job=in_job, by_hand=path is None)


def _examine_machine(script: BatchScript, params: Params, *, in_job: bool, by_hand: bool) -> Iterator[Finding]:
    """Check what needs torch; a login node's own device says nothing of the job's."""
    from headstart.slurm.doctor import machine_checks  # noqa: PLC0415  (--help and a broken params.yaml do not need torch)

    try:
        sizes = machine_checks.sizes_of(params)
    except UserError as error:
        yield Finding("error", "backbone-unavailable", str(error))
        return
    image, resources = None, resources_of(script.options)
    try:
        yield from machine_checks.check_disk(params, script.options, sizes)
        if in_job:
            from headstart.slurm.doctor.allocation_checks import check_tasks  # noqa: PLC0415

            findings, image = check_tasks(params, resources, sizes.weights)
            yield from findings
    except (OSError, NotImplementedError) as error:
        yield Finding("error", "folder-not-writable", f"{error}: mend that, or set run.cache to another folder")
    if by_hand and not in_job:
        troubles = list(machine_checks.check_device(params))
        yield from troubles
        image = None if troubles else machine_checks.seconds_an_image(params)
    if image is not None:
        yield from machine_checks.check_time(params, script.options, resources, image)
