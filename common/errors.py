"""What the user can mend, apart from faults of the program."""


class InputError(ValueError):
    """A wrong flag, file or folder; the message is one line that names it.

    Commands end with that line and exit status 2 (`common.command`). Any other `ValueError` is a fault of the
    program and keeps its traceback.
    """
