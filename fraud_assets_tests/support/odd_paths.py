"""Unusual folder names that work."""

from __future__ import annotations

WORKS = " !\"#$%&'()*+,-.:;<=>@_`{}~" + "éß日🙂\u00a0"
