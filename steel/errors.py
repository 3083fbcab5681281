"""The one exception for what a user can mend, and the check that raises it most."""


class InputError(ValueError):
    """Something given to `steel` is wrong; the text is the one sentence that the command line shows.

    The sentence says what was expected, where, what came, and what to do. Everything else that is raised is a bug of
    ours and keeps its traceback.
    """


def require_at_least(minimum: int, **numbers: int | None) -> None:
    """Refuses numbers that are too small.

    Args:
        minimum: The smallest number that is allowed.
        numbers: What to check, by the option's name; None is let through.

    Raises:
        InputError: One is smaller.
    """
    for name, number in numbers.items():
        if number is not None and number < minimum:
            raise InputError(f"{name} is {minimum} or more, but {number} came")
