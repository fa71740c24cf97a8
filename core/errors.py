"""Errors that a user can act on."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
  """Something outside the program is wrong (a path, a file, a key, a flag) and the user can mend it.

  The message names the thing, says what was found and what was expected, and shows the way out. Launchers print it
  without a traceback and exit with `EXIT_CODE`; library callers catch it like any other exception.
  """

  EXIT_CODE = 2


def nearest(name: str, known: Iterable[str]) -> str:
  """Returns ' Did you mean X?' for the known name closest to `name`, or '' when none is close."""
  close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.6)
  return f" Did you mean '{close[0]}'?" if close else ''
