"""Unusual folder names that the platform supports."""

from __future__ import annotations

WORKS = " !\"#$%&'()*+,-.:;<=>@_`{}~" + "éß日🙂\u00a0"
