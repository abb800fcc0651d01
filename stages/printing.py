"""How commands print: values as they are, a line each, or JSON for programs."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]

output = Console(markup=False, emoji=False)
"""Standard output. Paths and metadata may hold brackets and colons, which are no markup."""


def tell(name: str, value: object) -> None:
    """A line that is never broken: the name, and the value."""
    output.print(Text(f"{name}:", "bold"), value, soft_wrap=True)


def print_json(value: object) -> None:
    """The value as JSON, for other programs to read."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
