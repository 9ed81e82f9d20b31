"""`headstart` in this process: for what is not about a process, since each one imports torch again."""

from click.testing import CliRunner, Result

from headstart.cli import cli


def headstart(*arguments: str, stdin: bytes | str = "") -> Result:
    """Run a command in the working directory; return its exit code, stdout and stderr."""
    return CliRunner().invoke(cli, arguments, input=stdin, catch_exceptions=False)
