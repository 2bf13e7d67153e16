"""Sets up the state folder, for `fraud-assets setup` and `make setup`.

Creates the folders under `FRAUD_HOME`, writes a `dagster.yaml` there unless one exists, and sets `DAGSTER_HOME` in the
`.env` of the current folder, which plain `dagster` commands read. If the home was moved or copied, the paths in the
model registry are changed to the current home. Running it again changes nothing.
"""

from __future__ import annotations

import re
from pathlib import Path

from fraud_assets.errors import SettingError
from fraud_assets.registry.home import relocate_registry
from fraud_assets.settings import Settings
from fraud_assets.system.env_file import quote_value

FOLDERS = ("incoming", "processed", "failed", "dagster", "mlflow")

DAGSTER_YAML = """\
# Written once by `fraud-assets setup`. Edit it freely: it is not overwritten.

# Runs log their progress to the console; Dagster's own step events (DEBUG) are in the event log.
python_logs:
  python_log_level: INFO

telemetry:
  enabled: false
nux:
  enabled: false

# A small queue that starts a run within a second: the pipeline needs low latency, not many runs at once.
run_coordinator:
  module: dagster.core.run_coordinator
  class: QueuedRunCoordinator
  config:
    max_concurrent_runs: 2
    dequeue_interval_seconds: 1
    dequeue_use_threads: true
    dequeue_num_workers: 2

# A run that never starts, never ends or cannot be cancelled is failed instead of blocking the queue.
# The default launcher cannot distinguish a killed run from a slow one, so max_runtime_seconds ends both.
run_monitoring:
  enabled: true
  start_timeout_seconds: 180
  cancel_timeout_seconds: 60
  max_runtime_seconds: 14400
  poll_interval_seconds: 10
  free_slots_after_run_end_seconds: 60

sensors:
  use_threads: true
  num_workers: 4
schedules:
  use_threads: true
  num_workers: 2

# Ticks of sensors and schedules. A sensor that runs every 5 seconds skips 17,000 times a day.
retention:
  sensor:
    purge_after_days:
      skipped: 1
      started: 2
      success: 30
      failure: 90
  schedule:
    purge_after_days:
      skipped: 7
      started: 30
      success: 90
      failure: 90
"""

POSTGRES_YAML = """\

# Runs, events and schedules are in PostgreSQL, so that several machines share them. Needs the extra `postgres`.
storage:
  postgres:
    postgres_url:
      env: DAGSTER_POSTGRES_URL
"""

_DAGSTER_HOME_LINE = re.compile(r"\s*(export\s+)?DAGSTER_HOME\s*=")


def set_up_home(settings: Settings, env_file: Path) -> list[str]:
    """Creates the missing parts of the state folder and sets `DAGSTER_HOME` in `env_file`.

    Args:
        settings: define the state folder.
        env_file: the `.env` to change; its other lines stay.

    Returns:
        One sentence for each change; empty if nothing was missing.

    Raises:
        SettingError: a folder or file cannot be created.
        ModelRegistryError: the model registry cannot be read or written.
    """
    done = prepare_home(settings)
    try:
        changed = _set_dagster_home(env_file, settings.home_path / "dagster")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(
            f"Cannot set DAGSTER_HOME in {env_file}: {error}. Correct the file or its permissions."
        ) from error
    return [*done, f"Set DAGSTER_HOME in {env_file}."] if changed else done


def prepare_home(settings: Settings) -> list[str]:
    """Creates only the missing parts of the state folder. See `set_up_home` for the result and the errors."""
    home = settings.home_path
    done = []
    try:
        missing = [name for name in FOLDERS if not (home / name).is_dir()]
        for name in missing:
            (home / name).mkdir(parents=True)
        if missing:
            done.append(f"Created {', '.join(missing)} in {home}.")
        dagster_yaml = home / "dagster" / "dagster.yaml"
        if not dagster_yaml.exists():
            storage = POSTGRES_YAML if settings.dagster_postgres_url.get_secret_value() else ""
            dagster_yaml.write_text(DAGSTER_YAML + storage, encoding="utf-8")
            done.append(f"Wrote {dagster_yaml}.")
        if old := relocate_registry(settings):
            done.append(f"The model registry now points to the files in {home} instead of {', '.join(old)}.")
    except OSError as error:
        raise SettingError(
            f"Setting FRAUD_HOME is {home}: cannot write {error.filename or home} ({error.strerror}). "
            "Set FRAUD_HOME to a writable folder."
        ) from error
    return done


def _set_dagster_home(env_file: Path, dagster_home: Path) -> bool:
    """Sets `DAGSTER_HOME` in `env_file` exactly once; returns whether the file changed."""
    wanted = f"DAGSTER_HOME={quote_value(str(dagster_home))}"
    text = env_file.read_text(encoding="utf-8") if env_file.exists() else ""
    # `splitlines` would also split at characters that may be part of a value.
    lines = text.removesuffix("\n").split("\n") if text else []
    found = [index for index, line in enumerate(lines) if _DAGSTER_HOME_LINE.match(line)]
    if not found:
        lines.append(wanted)
    else:
        lines[found[0]] = wanted
        for index in reversed(found[1:]):
            del lines[index]
    changed = "\n".join(lines) + "\n"
    if changed == text or (found and changed == text + "\n"):
        return False
    env_file.write_text(changed, encoding="utf-8")
    return True
