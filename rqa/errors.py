"""The one exception for what a user can mend."""


class InputError(ValueError):
    """Something that the user gave cannot be used: a file, a flag, an index, a launch.

    The message says what was found, what was expected and what to change. The recipes print it and exit with status 2.
    """
