"""Push the exported model to a repository of the Hugging Face hub, from where timm loads it by its name.

reads:   the bundle (export/), and the token of `hf auth login` or HF_TOKEN
writes:  one commit of the files that the bundle's manifest lists; the repository is made where it is missing
"""

import argparse
import sys
from pathlib import Path

from headstart.core.errors import UserError


def main() -> None:
    """Push and say how to load it back: exit code 1 with one message on stderr where the user can mend it."""
    parser = argparse.ArgumentParser(
        prog="headstart push", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path, help="the folder that `dvc repro export` wrote: export/")
    parser.add_argument("repository", help="owner/name, or name for one of your own")
    parser.add_argument("--private", action="store_true", help="make a repository that only its owner sees")
    parser.add_argument("--revision", metavar="BRANCH", help="the branch, made where it is missing (default: main)")
    arguments = parser.parse_args()
    try:
        _push(arguments.bundle, arguments.repository, private=arguments.private, revision=arguments.revision)
    except UserError as error:
        sys.exit(f"error: {error}")


def _push(folder: Path, repository: str, *, private: bool, revision: str | None) -> None:
    from headstart.export.push import push_bundle, stated_license  # noqa: PLC0415  (--help needs no more than Python)

    pushed = push_bundle(folder, repository, private=private, revision=revision)
    if stated_license(folder) is None:
        print(
            "warning: the model card states no licence: set export.license, export anew and push again",
            file=sys.stderr,
        )
    print(f"{pushed.commit}\nload it:      timm.create_model({pushed.name!r}, pretrained=True)")
    print(f"fine-tune it: backbone.name: {pushed.name}")


if __name__ == "__main__":
    main()
