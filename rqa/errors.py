"""InputError: invalid user input."""


class InputError(ValueError):
    """A file, a flag, an index or a launch is invalid.

    Messages name the subject, the expected and the actual value, and the fix. Recipes print them and exit with 2.
    """
