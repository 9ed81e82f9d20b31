"""The ``headstart`` command: one lazy table of subcommands, so that ``headstart --help`` answers at once.

``headstart STAGE`` is ``python -m headstart.stages.STAGE``.
"""

import runpy
import shlex
import sys

COMMANDS = {
    "prepare": ("headstart.stages.prepare", "decode every image once, draw the splits, pack the pixels"),
    "features": ("headstart.stages.features", "cache the frozen backbone's features"),
    "probe": ("headstart.stages.probe", "find the linear head on the features, along a path of λ"),
    "finetune": ("headstart.stages.finetune", "fine-tune backbone and head with an L2 per group and early stopping"),
    "evaluate": ("headstart.stages.evaluate", "compare the models on the test split"),
    "export": ("headstart.stages.export", "write the model as timm and ONNX Runtime load it, parity proven first"),
    "predict": ("headstart.predict", "say what is on images, by an exported model; no torch needed"),
    "serve": ("headstart.serve", "answer by HTTP what is on images"),
    "push": ("headstart.push", "push the exported model to the Hugging Face hub, as timm loads it by its name"),
    "init": ("headstart.init_project", "lay out a project of your own, ready for git and DVC"),
    "repro": ("headstart.slurm.repro", "run `dvc repro` to its end: signals, requeues and one start at a time"),
    "doctor": ("headstart.slurm.doctor.run", "say what would cost a cluster's hours before any is spent"),
    "leaderboard": ("headstart.leaderboard", "print the figures of the last run and where its results lie"),
    "report": ("headstart.report", "make reports/index.html anew from the last run's figures and tables"),
    "dashboard": ("headstart.dashboard", "make the workspace in wandb that shows all tracked runs side by side"),
    "study": (
        "headstart.theory.study",
        "draw what the mathematics says: early stopping as an L2, gradients by differences",
    ),
}
CHECKPOINT = "headstart.export.checkpoint"
"""What `headstart export CHECKPOINT` runs, instead of the stage."""
USAGE = "\n".join(
    [
        "usage: headstart COMMAND [--help]",
        "",
        "The first six are the stages of `dvc repro`, in its order.",
        "",
        *(f"  {name:<13}{does}" for name, (_, does) in COMMANDS.items()),
    ]
)


def main() -> None:
    """Run a command's module as a program."""
    arguments = sys.argv[1:]
    if arguments and arguments[0] in COMMANDS:
        module, _ = COMMANDS[arguments[0]]
        if arguments[0] == "export" and ("--out" in arguments or (arguments[1:] and not arguments[1].startswith("-"))):
            module = CHECKPOINT
        sys.argv[1:] = arguments[1:]
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] == "headstart":
                raise
            sys.exit(f"error: {_without_extra(arguments[0], error.name)}")
    elif arguments in (["--help"], ["-h"]):
        print(USAGE)
    else:
        sys.exit(f"{USAGE}\n\nerror: {f'no command {arguments[0]!r}' if arguments else 'no command given'}")


def _without_extra(command: str, module: str) -> str:
    from headstart.core.errors import requirement  # noqa: PLC0415  (--help needs none of it)

    needed = requirement("serve" if command == "serve" else "train")
    return f"headstart {command} needs {module}, which is not installed: pip install {shlex.quote(needed)}"
