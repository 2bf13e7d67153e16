"""Finds Java and resolves the jars of a POM with Maven, once per user and version of the POM."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from importlib import resources
from pathlib import Path

from filelock import FileLock

from fraud_assets.errors import DiskError, JarsError

QUICK_START = ("-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData")
"""JVM options of a small server, which starts in 2 s. Without `TieredStopAtLevel` it starts slower and runs faster."""

_MIN_JAVA_VERSION = 17
_RESOLVE_SECONDS = 600


def find_java(product: str) -> str:
    """Returns the path of the Java program: from JAVA_HOME if it is set, else from PATH.

    Args:
        product: The product that needs Java, for the error message.

    Raises:
        JarsError: Java is missing or too old.
    """
    home = os.environ.get("JAVA_HOME", "")
    java = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    remedy = f"Install Java {_MIN_JAVA_VERSION} or newer, or point JAVA_HOME to it."
    if java is None or not Path(java).exists():
        raise JarsError(f"{product} needs Java, but {java or 'java'} does not exist. {remedy}")
    result = subprocess.run([java, "-version"], capture_output=True, text=True, check=False, timeout=30)
    version = re.search(r'version "(\d+)', result.stderr + result.stdout)
    if version is None or int(version[1]) < _MIN_JAVA_VERSION:
        found = f"has version {version[1]}" if version else "reports no version"
        raise JarsError(f"{product} needs Java {_MIN_JAVA_VERSION}, but {java} {found}. {remedy}")
    return java


def resolve_jars(package: str, pom: str, product: str) -> Path:
    """Returns the folder with the jars of a POM; Maven resolves them the first time.

    Args:
        package: The Python package that contains the POM.
        pom: The file name of the POM, `<name>.pom.xml`.
        product: The name of the jars in error messages.

    Raises:
        JarsError: Maven is missing or cannot resolve the jars.
        DiskError: The user's cache folder cannot be written.
    """
    jars = _jars_folder(package, pom)
    if jars.exists():
        return jars
    maven = shutil.which("mvn")
    if maven is None:
        raise JarsError(f"The jars of {product} need Maven, but mvn is not on the PATH. Install Maven.")
    cache = jars.parent
    try:
        cache.mkdir(parents=True, exist_ok=True)
        # A second process waits for the lock and then finds the jars.
        with FileLock(cache / f"{pom.removesuffix('.pom.xml')}.lock"):
            if not jars.exists():
                _resolve(maven, _read_pom(package, pom), jars, product)
    except OSError as error:
        raise DiskError(
            f"The cache folder {cache} cannot be written: {error.strerror}. Point XDG_CACHE_HOME to another folder."
        ) from error
    return jars


def are_jars_resolved(package: str, pom: str) -> bool:
    """Returns whether the jars of a POM are already resolved, so that `resolve_jars` does not run Maven."""
    return _jars_folder(package, pom).exists()


def _jars_folder(package: str, pom: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fraud_assets"
    return cache / f"{pom.removesuffix('.pom.xml')}-{hashlib.sha256(_read_pom(package, pom)).hexdigest()[:12]}"


def _read_pom(package: str, pom: str) -> bytes:
    return resources.files(package).joinpath(pom).read_bytes()


def summarize_output(output: bytes) -> str:
    """Returns the last error lines of a Java program's output on one line, for an error message."""
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    failures = [line for line in lines if re.search(r"ERROR|Exception|Error:", line)]
    return " | ".join((failures or lines)[-3:])[-600:] or "nothing"


def _resolve(maven: str, pom: bytes, jars: Path, product: str) -> None:
    """Runs Maven in a temporary folder and then renames the folder of jars, so that no partial folder is visible."""
    with tempfile.TemporaryDirectory(dir=jars.parent) as work:
        (Path(work) / "pom.xml").write_bytes(pom)
        goal = [maven, "-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=jars", "-DincludeScope=runtime"]
        try:
            result = subprocess.run(
                goal,
                cwd=work,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_RESOLVE_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise JarsError(
                f"Maven did not resolve the jars of {product} within {_RESOLVE_SECONDS} s. Check its access to a "
                "repository."
            ) from None
        if result.returncode:
            first = next((line for line in result.stdout.splitlines() if "ERROR" in line), "no reason given")
            raise JarsError(f"Maven could not resolve the jars of {product}: {first[:300]}")
        (Path(work) / "jars").rename(jars)
