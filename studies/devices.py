"""What a result was computed on."""

import re
from pathlib import Path


def processor() -> str:
    """Model of this machine's CPU: results differ in their last bits between kinds of CPU."""
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return found.group(1) if found else "unknown"
