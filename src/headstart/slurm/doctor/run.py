"""What `headstart doctor` looks at: a batch script, params.yaml, this machine, an allocation's nodes."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from headstart.config.loader import load_params
from headstart.config.schema import Params
from headstart.core.errors import UserError
from headstart.core.paths import LAUNCH_SCRIPT
from headstart.core.storage import storage_message
from headstart.slurm.doctor import batch_checks
from headstart.slurm.doctor.batch_checks import BatchScript, Finding


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
    """Check a batch script where there is one, ``params.yaml``, and the machine that this process runs on."""
    in_job, script, cluster = "SLURM_JOB_ID" in os.environ, BatchScript(), batch_checks.cluster_settings()
    for each in filter(None, (LAUNCH_SCRIPT, path)):
        yield from batch_checks.check_line_ends(each)
    if path is not None:
        try:
            script = batch_checks.read_batch_script(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            yield Finding("error", "script-unreadable", f"{path} can't be read as a batch script: {error}")
            return
        if cluster and not in_job:
            yield from batch_checks.check_by_sbatch(path)
    if in_job:  # sbatch accepted every option
        script.options = batch_checks.allocated_options(script.options)
        script.findings = [finding for finding in script.findings if not finding.name.startswith("option")]
    if path is not None:
        yield from batch_checks.check_script(script, cluster)
    try:
        params = load_params(Path("params.yaml"))
    except UserError as error:
        lines = str(error).splitlines()
        yield from (Finding("error", "params-invalid", line.strip()) for line in lines[1:] or lines)
        return
    if path is not None:
        yield from batch_checks.check_params(script, params)
    yield from batch_checks.check_tracking(params)
    yield from _examine_machine(script, params, in_job=in_job, by_hand=path is None)


def _examine_machine(script: BatchScript, params: Params, *, in_job: bool, by_hand: bool) -> Iterator[Finding]:
    """Run the checks that need torch; the device of a login node, where scripts are checked, does not matter."""
    from headstart.models.backbone_check import check_backbone  # noqa: PLC0415
    from headstart.models.stem import expected_channels  # noqa: PLC0415
    from headstart.slurm.doctor import machine_checks  # noqa: PLC0415  (--help and a broken params.yaml do not need torch)

    try:
        if remark := check_backbone(params.backbone, expected_channels(params)):
            yield Finding("warning", "weights-not-here", remark)
        sizes = machine_checks.sizes_of(params)
    except UserError as error:
        yield Finding("error", "backbone-unavailable", str(error))
        return
    image_seconds, resources = None, batch_checks.resources_of(script.options)
    try:
        yield from machine_checks.check_disk(params, script.options, sizes)
        if in_job:
            from headstart.slurm.doctor.allocation_checks import check_allocation  # noqa: PLC0415

            findings, image_seconds = check_allocation(params, resources, sizes.weights)
            yield from findings
    except (OSError, NotImplementedError) as error:
        reason = (isinstance(error, OSError) and storage_message(error)) or f"{error}: repair that"
        yield Finding("error", "folder-not-writable", f"{reason}, or set run.cache to another folder")
    if not in_job:  # whoever submits a job is told before, and its time is not spent on this
        from headstart.slurm.doctor.export_check import check_formats  # noqa: PLC0415

        yield from check_formats(params)
    if by_hand and not in_job:
        device_findings = list(machine_checks.check_device(params))
        yield from device_findings
        image_seconds = None if device_findings else machine_checks.seconds_per_image(params)
    if image_seconds is not None:
        yield from machine_checks.check_time(params, script.options, resources, image_seconds)
