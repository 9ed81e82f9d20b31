"""What to install for the commands that need more than the package's base."""

import json
from importlib.metadata import distribution


def requirement(extra: str) -> str:
    """Give the requirement that adds an extra: of the very file or folder that this package was installed from.

    Source: `direct_url.json <https://packaging.python.org/en/latest/specifications/direct-url/>`_, which installers
    leave where the package came from no index.
    """
    origin = distribution("headstart").read_text("direct_url.json")
    return f"headstart[{extra}]" + (f" @ {json.loads(origin)['url']}" if origin else "")
