"""Print the leaderboard of the last `dvc repro`, and where its reports and the exported model lie.

reads:  reports/evaluate.json
"""

import sys

from headstart.ground.artifacts import EXPORT, REPORTS, read_json
from headstart.ground.errors import UserError


def main() -> None:
    """Print what a user looks at first."""
    from headstart.libraries.metrics import leaderboard  # noqa: PLC0415  (brings torch, which an early error needs not)

    try:
        report = read_json(REPORTS / "evaluate.json")
    except UserError as error:
        sys.exit(f"error: {error}")
    print(leaderboard(report))  # noqa: T201  (what the command is for)
    print(f"\nreports: {REPORTS}/*.json, tables in {REPORTS}/*/   model: {EXPORT}/ (README.md there says how to load it)")  # noqa: T201


if __name__ == "__main__":
    main()
