"""Make the project's workspace in wandb: curves, ledger, leaderboard and mistakes of all runs, side by side.

writes:  the workspace, with the key of `wandb login`; without one reports/dashboard.json, what would have been sent
"""

import argparse
import sys
from pathlib import Path

from headstart.core.errors import UserError
from headstart.tracking.wandb_workspace import save_workspace


def main() -> None:
    """Save it and say where it is: exit code 1 with one message on stderr where the user can mend it."""
    argparse.ArgumentParser(
        prog="headstart dashboard", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    try:
        saved = save_workspace()
    except UserError as error:
        sys.exit(f"error: {error}")
    if isinstance(saved, Path):
        print(f"{saved}: not sent, since wandb has no key here: `wandb login`, then `headstart dashboard` again")
    else:
        print(saved)


if __name__ == "__main__":
    main()
