"""Check and plot the mathematics of the objective: `headstart study STUDY`. Outside the pipeline of `dvc repro`."""

import argparse
import logging
import sys

from headstart.core.errors import UserError

EARLY_STOPPING = """Compare gradient descent stopped after t steps with the penalty λ‖W‖², on the cached features.

reads:   data/prepared (labels of train and validation), data/features
writes:  reports/study/early_stopping.svg, .csv and .json

The softmax head is trained by full-batch gradient descent from zero, without a penalty, at the largest step τ that is
guaranteed to lower the loss. For log-spaced t, the λ path's point nearest to its weights is compared with the theory,
λ = 1/(2τt). docs/mathematics.md explains it.
"""
GRADIENTS = """Check gradients by finite differences over all step sizes, and show the effect of an ill-scaled input.

reads:   nothing (scikit-learn's digits)
writes:  reports/study/gradients.svg and .json
"""


def main() -> None:
    """Run one study as a program: exit code 1 with one message on stderr where the user can mend it."""
    parser = argparse.ArgumentParser(prog="headstart study", description=__doc__)
    studies = parser.add_subparsers(dest="study", required=True, metavar="STUDY")
    for name, text in (("early-stopping", EARLY_STOPPING), ("gradients", GRADIENTS)):
        studies.add_parser(
            name,
            help=text.partition("\n")[0],
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    studies.choices["early-stopping"].add_argument(
        "--steps", type=_count, default=10_000, help="gradient descent's steps, at least 10; default: %(default)s"
    )
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("headstart").setLevel(logging.INFO)
    try:
        if args.study == "early-stopping":
            from headstart.theory import early_stopping  # noqa: PLC0415  (--help needs none of the libraries)

            early_stopping.run(args.steps)
        else:
            from headstart.theory import gradients  # noqa: PLC0415

            gradients.run()
    except UserError as error:
        sys.exit(f"error: {error}")


def _count(text: str) -> int:
    count = int(text)
    if count < 10:
        raise argparse.ArgumentTypeError(f"{count} is below 10")
    return count


if __name__ == "__main__":
    main()
