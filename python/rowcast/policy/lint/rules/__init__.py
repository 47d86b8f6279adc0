"""The lint rules, grouped by what happens when they are broken. Importing this registers them.

``RCL0``: mistakes in the file itself. ``RCL1``: callers get what they should not get. ``RCL2``: an
error, or callers get nothing. ``RCL3``: slow policies.
"""

from __future__ import annotations

from rowcast.policy.lint.findings import RULES

from . import costs, fails, forms, opens, refuses

__all__ = ["RULES", "costs", "fails", "forms", "opens", "refuses"]
