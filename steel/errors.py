"""The exception for invalid user input, and the range checks that raise it most often."""


class InputError(ValueError):
    """Invalid input: an option, a file or a dataset that the user can fix.

    The message is the sentence that the command line prints: where the problem is, what was expected, what was found
    and what to do. Every other exception is a bug in `steel` and keeps its traceback.
    """


def require_at_least(minimum: int, **numbers: int | None) -> None:
    """Check that numbers are not too small.

    Args:
        minimum: Smallest value allowed.
        numbers: Values to check, by option name; None is not checked.

    Raises:
        InputError: A number is smaller than `minimum`.
    """
    for name, number in numbers.items():
        if number is not None and number < minimum:
            raise InputError(f"{name} must be at least {minimum}, got {number}")


def require_positive(**numbers: float | None) -> None:
    """Check that numbers are above 0 and at most 1e9: far beyond any length, size or time, and safe to multiply.

    Args:
        numbers: Values to check, by option name; None is not checked.

    Raises:
        InputError: A number is not in this range, or NaN.
    """
    for name, number in numbers.items():
        if number is not None and not 0 < number <= 1e9:
            raise InputError(f"{name} must be a number above 0 and at most 1e9, got {number}")
