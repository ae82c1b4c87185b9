"""The two ways a registration ends without a result, each with a message a user can act on."""


class InputError(ValueError):
    """Bad input or usage: one line that says what is wrong and what to do. Exit code 2."""


class StartError(InputError):
    """The rigid start failed, or cannot be trusted. Exit code 2."""
