"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Something that the user can mend; its message names the file or the key and says what to do."""
