"""The installed command, and `python -m fastvggt_jax`."""

import signal

# While Python reads what the command is made of, Ctrl-C ends it without a traceback.
_before = signal.getsignal(signal.SIGINT)
if _before is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from fastvggt_jax.cli import app  # noqa: E402
from fastvggt_jax.cli.errors import INTERRUPTED  # noqa: E402


def main() -> None:
    try:
        signal.signal(signal.SIGINT, _before)
        app.main()
    except KeyboardInterrupt:  # before there is a command, which says so itself
        raise SystemExit(INTERRUPTED) from None
    finally:
        # All is done: JAX's own clean-up is not to be interrupted either.
        if _before is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    main()
