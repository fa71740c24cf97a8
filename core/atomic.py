"""Files that are either whole or not there, whatever kills the process that writes them."""

from __future__ import annotations

import os
import pathlib


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
  """Writes a file that is either whole or not there, also when the process is killed meanwhile."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'.{path.name}.{os.getpid()}')
  temporary.write_bytes(content.encode() if isinstance(content, str) else content)
  temporary.replace(path)
