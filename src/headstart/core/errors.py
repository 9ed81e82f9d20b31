"""UserError, the one exception that a user is meant to read, and helpers for its message."""

import json


class UserError(Exception):
    """Something that the user can mend; its message names the file or the key and says what to do."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, cut to 300 characters; the error's type where it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def requirement(extra: str) -> str:
    """Return the requirement that adds an extra: of the very file or folder that this package was installed from.

    Source: `direct_url.json <https://packaging.python.org/en/latest/specifications/direct-url/>`_, which installers
    leave where the package came from no index.
    """
    from importlib.metadata import distribution  # noqa: PLC0415  (slow, and only messages need it)

    origin = distribution("headstart").read_text("direct_url.json")
    return f"headstart[{extra}]" + (f" @ {json.loads(origin)['url']}" if origin else "")
