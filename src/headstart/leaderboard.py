"""Print the leaderboard of the last `dvc repro`, and where its report and the exported model lie.

reads:  reports/evaluate.json
"""

import argparse
import sys

from headstart.core.errors import UserError
from headstart.core.io import read_json
from headstart.core.paths import EXPORT, HTML_REPORT, report_of


def main() -> None:
    """Print what a user looks at first."""
    argparse.ArgumentParser(
        prog="headstart leaderboard", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    try:
        report = read_json(report_of("evaluate"))
    except UserError as error:
        sys.exit(f"error: {error}")
    from headstart.evaluation.leaderboard import format_leaderboard  # noqa: PLC0415  (brings scikit-learn: slow)

    print(format_leaderboard(report))
    print(f"\nmodel:  {EXPORT}/ (README.md there says how to load it)")
    print(f"report: {HTML_REPORT} (opens in any browser)")


if __name__ == "__main__":
    main()
