"""What is trusted: packages whose classes may be built, by typing them."""

from __future__ import annotations

import re
from collections.abc import Sequence


def trusted(arguments: Sequence[str]) -> list[str]:
    """Packages typed as trust=[a,b] or trust=a. A configuration file cannot say this: it could be anybody's."""
    typed = [a.partition("=")[2] for a in arguments if re.match(r"\+{0,2}trust=", a)]
    return [name for name in re.split(r"[\[\],'\"\s]+", typed[-1]) if name] if typed else []
