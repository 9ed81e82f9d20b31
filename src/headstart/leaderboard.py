"""Print the leaderboard of the last `dvc repro`, and where its report and the exported model lie.

reads:  reports/evaluate.json
"""

import argparse
import sys

from headstart.ground.artifacts import EXPORT, REPORTS, read_json
from headstart.ground.errors import UserError


def main() -> None:
    """Print what a user looks at first."""
    argparse.ArgumentParser(
        prog="headstart leaderboard", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    try:
        report = read_json(REPORTS / "evaluate.json")
    except UserError as error:
        sys.exit(f"error: {error}")
    from headstart.libraries.metrics import leaderboard  # noqa: PLC0415  (brings torch, which an error needs not)

    print(leaderboard(report))
    print(f"\nmodel:  {EXPORT}/ (README.md there says how to load it)")
    print(f"report: {REPORTS}/index.html (opens in any browser)")


if __name__ == "__main__":
    main()
