"""The rules, by what breaking them leads to. Importing this registers all of them.

``RCL0``: the files themselves; ``RCL1``: somebody gets what is not his; ``RCL2``: an error, or
nobody gets anything; ``RCL3``: it is slow.
"""

from __future__ import annotations

from rowcast.policy.lint.findings import RULES

from . import costs, fails, forms, opens, refuses

__all__ = ["RULES", "costs", "fails", "forms", "opens", "refuses"]
