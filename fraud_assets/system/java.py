"""Java, and folders of jars that Maven resolves for a POM of this package, once per user and version of the POM."""

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
"""JVM options of a small server that is up in 2 s. Without `TieredStopAtLevel` it starts slower and then is faster."""

_JAVA = 17
_RESOLVE_SECONDS = 600


def java_program(product: str) -> str:
    """The Java program, of JAVA_HOME, else of PATH, that `product` needs.

    Raises:
        JarsError: there is none, or it is too old.
    """
    home = os.environ.get("JAVA_HOME", "")
    java = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    remedy = f"Install Java {_JAVA} or newer, or point JAVA_HOME to it."
    if java is None or not Path(java).exists():
        raise JarsError(f"{product} needs Java, and {java or 'java'} is not there. {remedy}")
    told = subprocess.run([java, "-version"], capture_output=True, text=True, check=False, timeout=30)
    version = re.search(r'version "(\d+)', told.stderr + told.stdout)
    if version is None or int(version[1]) < _JAVA:
        raise JarsError(f"{product} needs Java {_JAVA}, and {java} is {version[1] if version else 'none'}. {remedy}")
    return java


def resolve_jars(package: str, pom: str, product: str) -> Path:
    """Folder of the jars of `pom` (`<name>.pom.xml`) in `package`; `product` names them for people.

    Raises:
        JarsError: Maven is not there or cannot resolve them.
        DiskError: the user's cache cannot be written.
    """
    jars = _place(package, pom)
    if jars.exists():
        return jars
    maven = shutil.which("mvn")
    if maven is None:
        raise JarsError(f"{product}'s jars are resolved by Maven, and mvn is not on the PATH. Install Maven.")
    cache = jars.parent
    try:
        cache.mkdir(parents=True, exist_ok=True)
        # A second process waits, and finds them.
        with FileLock(cache / f"{pom.removesuffix('.pom.xml')}.lock"):
            if not jars.exists():
                _resolve(maven, _text(package, pom), jars, product)
    except OSError as error:
        raise DiskError(f"{cache} cannot be written: {error.strerror}. Point XDG_CACHE_HOME elsewhere.") from error
    return jars


def jars_are_resolved(package: str, pom: str) -> bool:
    """Whether the jars of `pom` are there, so that nobody has to wait for Maven."""
    return _place(package, pom).exists()


def _place(package: str, pom: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fraud_assets"
    return cache / f"{pom.removesuffix('.pom.xml')}-{hashlib.sha256(_text(package, pom)).hexdigest()[:12]}"


def _text(package: str, pom: str) -> bytes:
    return resources.files(package).joinpath(pom).read_bytes()


def summarize_output(output: bytes) -> str:
    """What a Java program's output says of its failure, in one line, for an error."""
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    failures = [line for line in lines if re.search(r"ERROR|Exception|Error:", line)]
    return " | ".join((failures or lines)[-3:])[-600:] or "nothing"


def _resolve(maven: str, pom: bytes, jars: Path, product: str) -> None:
    """Has Maven copy the jars beside their place, then puts them there in one step."""
    with tempfile.TemporaryDirectory(dir=jars.parent) as work:
        (Path(work) / "pom.xml").write_bytes(pom)
        goal = [maven, "-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=jars", "-DincludeScope=runtime"]
        try:
            told = subprocess.run(
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
                f"Maven did not resolve {product}'s jars in {_RESOLVE_SECONDS} s. Check its access to a repository."
            ) from None
        if told.returncode:
            first = next((line for line in told.stdout.splitlines() if "ERROR" in line), "no reason given")
            raise JarsError(f"Maven could not resolve {product}'s jars: {first[:300]}")
        (Path(work) / "jars").rename(jars)
