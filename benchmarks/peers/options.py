"""Command-line options that several benchmarks of the generator share."""

import argparse


def prompt_counts(parser: argparse.ArgumentParser, text: str) -> tuple[int, ...]:
    """Returns the distinct numbers of prompts that `--prompts` asks for.

    Ends the program through `parser` if they are not numbers from 1 to 64.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and 1 <= int(part) <= 64 for part in parts):
        parser.error(f"--prompts is {text}; write numbers from 1 to 64, such as 1,4,16")
    return tuple(dict.fromkeys(int(part) for part in parts))
