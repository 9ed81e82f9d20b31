"""Make the report anew, from the figures and tables of the last `dvc repro`; no model is needed.

reads:   data/prepared (images), reports
writes:  reports/index.html
"""

import argparse
import sys

from headstart.core.errors import UserError
from headstart.data.dataset import PreparedDataset
from headstart.report.page import write_html_report


def main() -> None:
    """Write the page and say where it is: exit code 1 with one message on stderr where the user can mend it."""
    argparse.ArgumentParser(
        prog="headstart report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    try:
        print(write_html_report(PreparedDataset.open()))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
