"""The one exception that a user is meant to read."""

import json
from importlib.metadata import distribution


class UserError(Exception):
    """Something that the user can mend; its message names the file or the key and says what to do."""


def requirement(extra: str) -> str:
    """Return the requirement that adds an extra: of the very file or folder that this package was installed from.

    Source: `direct_url.json <https://packaging.python.org/en/latest/specifications/direct-url/>`_, which installers
    leave where the package came from no index.
    """
    origin = distribution("headstart").read_text("direct_url.json")
    return f"headstart[{extra}]" + (f" @ {json.loads(origin)['url']}" if origin else "")
