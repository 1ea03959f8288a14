"""How programs and tools read their command lines.

What a person mistypes becomes one line on stderr and exit status 2, in all of them alike.
"""

import contextlib
import difflib
import gc
import inspect
import io
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from medvlsm_jax.config import base_config, flattened
from medvlsm_jax.errors import UserError

CONFIG = "config"  # the flag that sets, or names a file of, a run's fields
HELP = {"--help", "-help", "-h", "--helpshort", "-helpshort"}
PATIENCE = 30.0  # seconds
EXIT_CTRL_C = 130
EXIT_BROKEN_PIPE = 141  # of a program whose output nobody reads any more, as a shell counts it: 128 + SIGPIPE


def run_program(
    main: Callable[[list[str]], None],
    *,
    arguments: str = "",
    config: Callable[[], ml_collections.ConfigDict] | None = None,
) -> None:
    """Runs an absl `main`; a UserError, of reading the flags too, becomes one line on stderr and exit status 2.

    Args:
        main: takes the name of the program and its arguments, flags left out.
        arguments: what those are called; empty where there may be none.
        config: the fields of `--config`, where they have no file of their own.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # letters that a terminal has not are no reason to end
            stream.reconfigure(errors="backslashreplace")
    # Tracing a network makes millions of objects that stay; to look through all of them at every 700 new ones, which is
    # Python's default, took a tenth of a program's start.
    gc.set_threshold(max(10_000, gc.get_threshold()[0]), 10, 10)

    def quiet(argv: list[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # absl's INFO is the libraries' talk; --verbosity=0 brings it back
        main(argv)
        sys.stdout.flush()

    try:
        if HELP & set(sys.argv[1:]):
            print(help_text(arguments, config))
            return
        if config is not None:
            with config_errors():
                config_flags.DEFINE_config_dict(CONFIG, config())
        app.run(quiet, flags_parser=lambda argv: parse_flags(argv, arguments))
    except KeyboardInterrupt:  # of a program that does not listen to signals itself
        sys.exit(EXIT_CTRL_C)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at exit
        sys.exit(EXIT_BROKEN_PIPE)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        # At exit jax waits for the other processes of a run, for minutes if they wait for this one.
        timer = threading.Timer(PATIENCE, os._exit, [2])
        timer.daemon = True
        timer.start()
        sys.exit(2)


# --- Reading ----------------------------------------------------------------------------------------------------------


def parse_flags(argv: list[str], arguments: str, known: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Reads a command line, the program's name first.

    Args:
        argv: what was typed.
        arguments: what is allowed besides flags; see `run_program`.
        known: the flags.

    Returns:
        The name and what is no flag.

    Raises:
        UserError: a flag is unknown, missing, given twice or of another type; a config has no such field or cannot be
            read; or something is left over.
    """
    with config_errors():
        try:
            left = known(argv)
        except flags.UnrecognizedFlagError as error:
            raise UserError(unknown_flag(error.flagname, known)) from error
        except flags.Error as error:
            raise UserError(flag_error(error, known)) from error
        for name in known:
            # Of a config file that could not be read, ml_collections says so when it is used.
            getattr(known[name].value, "is_locked", None)
    twice = [name for name in known if known[name].present > 1 and not isinstance(known[name], flags.MultiFlag)]
    if twice:
        raise UserError(f"--{twice[0]} is given {known[twice[0]].present} times: give it once")
    if len(left) > 1 and not arguments:
        raise UserError(left_over(left[1], argv))
    return left


def unknown_flag(name: str, known: flags.FlagValues) -> str:
    """What is said of a flag that a program has not: the one it has under a name like it, or which has it in a config.

    `--data_dir` is a flag of tools, and a field of the config in programs.
    """
    names = set(known)
    if CONFIG in names:
        fields = known[CONFIG].value
        fields = fields if isinstance(fields, ml_collections.ConfigDict) else base_config()
        names |= {f"{CONFIG}.{field}" for field in flattened(fields)}
    alike = f"{CONFIG}.{name}" if f"{CONFIG}.{name}" in names else name.removeprefix(f"{CONFIG}.")
    if alike not in names:
        alike = next(iter(difflib.get_close_matches(name, names, 1, 0.7)), "")
    return f"there is no flag --{name}: " + (f"did you mean --{alike}?" if alike else "--help lists the flags")


def flag_error(error: flags.Error, known: flags.FlagValues) -> str:
    """What absl says of a flag, in one line and without repeating itself."""
    message = " ".join(str(error).split())
    if "Error whilst parsing config file" in message:  # and a traceback
        return f"--{CONFIG} cannot be used: {str(error).strip().splitlines()[-1]}"
    if missing := re.search(r"Flag --(\S+) must have a value other than None", message):
        return f"--{missing[1]} is missing: {known[missing[1]].help}"
    if illegal := re.match(r"flag --(\S+?)=(.*?): (.*)", message):
        return f"--{illegal[1]}={illegal[2]}: {illegal[3]}"
    return message[:1].lower() + message[1:]


def left_over(argument: str, argv: list[str]) -> str:
    """What is said of an argument that belongs to no flag."""
    before = argv[max(1, argv.index(argument) - 1)] if argument in argv else ""
    hint = "give every value as --FLAG=VALUE"
    if before.startswith("-") and "=" not in before:
        hint = f"write {before}={argument}, for a flag that is true or false takes no value after a blank"
    elif len(argv) > 2 and not argument.startswith("-"):
        hint = "a flag takes one value, and one of several words needs quotation marks"
    return f"{argument!r} belongs to no flag: {hint}"


@contextlib.contextmanager
def config_errors() -> Iterator[None]:
    """Makes a UserError of what ml_collections says of a config file that is missing, or a field that is."""
    try:
        yield
    except (AttributeError, KeyError) as error:
        field, similar = (re.search(pattern, str(error)) for pattern in (r"\w+", r'Did you mean "(\w+)'))
        hint = f"did you mean {similar[1]}?" if similar else "--help lists them"
        raise UserError(f"--{CONFIG} has no field {field[0] if field else error!s}: {hint}") from error
    except OSError as error:
        reason = str(error)[max(0, str(error).rfind("[Errno")) :]  # ml_collections lists the places where it looked
        raise UserError(f"--{CONFIG} cannot be read: {' '.join(reason.split())}") from error


# --- Help -------------------------------------------------------------------------------------------------------------


def help_text(arguments: str, config: Callable[[], ml_collections.ConfigDict] | None) -> str:
    """What a program does, its flags, and the fields of its config with what they mean."""
    main = sys.modules["__main__"]
    parts = [(main.__doc__ or "").strip()]
    if arguments:
        parts.append(f"Besides flags: {arguments}.")
    parts.append("Flags:\n" + "\n".join(flag_line(flag) for flag in flags.FLAGS.get_key_flags_for_module(main)))
    if config is not None or CONFIG in flags.FLAGS:
        fields = flattened(base_config() if config is None else config())
        parts.append(
            f"Fields of the config, as --{CONFIG}.NAME=VALUE, with their defaults; a config file may have others:\n"
            + "\n".join(field_lines(fields))
        )
    return "\n\n".join(parts)


def flag_line(flag: flags.Flag) -> str:
    """`--name: what it is for (default)`."""
    default = "" if flag.default in (None, "") else f" ({flag.default_as_str})"
    return f"  --{flag.name}: {flag.help}{default}"


def field_lines(fields: Mapping[str, Any]) -> list[str]:
    """`  name = default  # what it means`, in the order and with the comments of `base_config`; others come last."""
    lines, left = [], dict(fields)
    for group, (before, beside) in field_comments().items():
        names = [name for name in left if name.partition(".")[0] == group]
        lines += [line and f"  # {line}" for line in before if names]
        lines += [f"  {name} = {left.pop(name)!r}" + (f"  # {beside}" if beside else "") for name in names]
    return lines + [f"  {name} = {value!r}" for name, value in left.items()]


def field_comments() -> dict[str, tuple[list[str], str]]:
    """Field, or group of fields -> the lines before it, empty ones too, and the comment beside it."""
    comments, before = {}, []
    for line in inspect.getsource(base_config).splitlines()[3:]:
        if field := re.match(r"\s+config\.(\w+) = .*?(?:  # (.*))?$", line):
            comments[field[1]] = (before, field[2] or "")
            before = []
        elif not line or line.strip().startswith("#"):
            before = [*before, line.strip(" #")]
    return comments
