"""The documentation matches settings, commands, make targets and files, and builds as a site without a warning.

If it is run as a module, this file writes the generated parts of `docs/settings.md` and `docs/cli.md`.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import dagster as dg
import pytest
import yaml

from fraud_assets.cli import COMMANDS, cli
from fraud_assets.core.quarantine_reasons import LABEL_PREFIX, REASONS
from fraud_assets.core.schema import fraud_labels
from fraud_assets.definitions import defs
from fraud_assets.engines.local.landing import land_topics
from fraud_assets.ingest.service.metrics import LandingMetrics
from fraud_assets.kafka.broker import Broker
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import CONTRACT_FIELDS, LABEL_FIELDS, Settings, environment_name
from fraud_assets.stages.features import process_landed
from fraud_assets_tests.support.documentation import PAGES, blocks, code, console_commands
from fraud_assets_tests.support.starting import ROOT, Send

SETTINGS, COMMAND_LINE, OPERATE = (ROOT / "docs" / name for name in ("settings.md", "cli.md", "operate.md"))
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)

PACKAGES = "|".join(path.parent.name for path in (ROOT / "fraud_assets").glob("*/__init__.py"))
REGENERATE = "python -m fraud_assets_tests.integration.test_docs"
MARKS = {name: (f"<!-- {name}: {REGENERATE} -->\n", f"<!-- /{name} -->") for name in ("settings", "reasons")}


def settings_table() -> str:
    """Returns the settings table: one row per setting, in the order of `Settings`."""
    rows = ["| variable | default | meaning |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        default = format_default(field.get_default(call_default_factory=True))
        meaning = (field.description or "").replace("|", "\\|")
        rows.append(f"| `{environment_name(name)}` | {default} | {meaning} |")
    return "\n".join(rows) + "\n"


def format_default(default: Any) -> str:
    """Formats a default as it is written in the environment."""
    if isinstance(default, float):
        default = f"{default:g}"
    text = "" if default in ({}, ()) else str(default)
    return f"`{text}`" if text else "empty"


def command_pages() -> str:
    """Returns the page of the command line: the help text of each command."""
    lines = [
        "# Command line",
        "",
        f"Every command has `--help`. `{REGENERATE}` writes this page.",
        "",
        "To complete commands with the Tab key, add one line to the file that your shell reads at its start:",
        "",
        "| shell | file | line |",
        "| --- | --- | --- |",
        '| bash | `~/.bashrc` | `eval "$(_FRAUD_ASSETS_COMPLETE=bash_source fraud-assets)"` |',
        '| zsh | `~/.zshrc` | `eval "$(_FRAUD_ASSETS_COMPLETE=zsh_source fraud-assets)"` |',
        "",
    ]
    program = click.Context(
        cli, info_name="fraud-assets", help_option_names=["-h", "--help"], terminal_width=100, max_content_width=100
    )
    for name in COMMANDS:
        command = cli.get_command(program, name)
        assert command is not None
        context = command.make_context(name, [], parent=program, resilient_parsing=True)
        lines += [f"## {name}", "", "```text", format_help(context), "```", ""]
        for part, child in sorted(getattr(command, "commands", {}).items()):
            usage = format_help(child.make_context(part, [], parent=context, resilient_parsing=True))
            lines += [f"### {name} {part}", "", "```text", usage, "```", ""]
    return "\n".join(lines)


def format_help(context: click.Context) -> str:
    """Returns the help text of a command, without trailing spaces."""
    return "\n".join(line.rstrip() for line in context.get_help().splitlines())


def split_page(text: str, name: str) -> tuple[str, str, str]:
    """Returns the text before, in and after a generated table."""
    begin, end = MARKS[name]
    before, found, rest = text.partition(begin)
    table, closing, after = rest.partition(end)
    assert "" not in (found, closing), f"the page needs the line {begin!r} and, below it, {end!r}"
    return before, table, after


def reasons_table() -> str:
    """Returns the table of the reasons of quarantine; those of labels have the same meaning."""
    own = {reason: text for reason, text in REASONS.items() if not reason.startswith(LABEL_PREFIX)}
    rows = [f"| `{reason}` | {text} |" for reason, text in own.items()]
    return "\n".join(["| reason | meaning |", "| --- | --- |", *rows]) + "\n"


def fraud_assets_calls(text: str) -> list[list[str]]:
    """Returns the words after each `fraud-assets` in the code of a page."""
    calls = re.findall(r"^(?:\$ |.*[;&] ?|.*\$\()?fraud-assets ([^\n#|;&)]+)", code(text), re.MULTILINE)
    return [call.split() for call in calls]


def test_the_settings_table_matches_the_settings() -> None:
    table = split_page(SETTINGS.read_text(encoding="utf-8"), "settings")[1]
    assert table == settings_table(), f"docs/settings.md and the settings differ; write the table again: {REGENERATE}"


def test_the_table_of_reasons_matches_the_reasons() -> None:
    table = split_page(OPERATE.read_text(encoding="utf-8"), "reasons")[1]
    assert table == reasons_table(), f"docs/operate.md and the reasons differ; write the table again: {REGENERATE}"


def test_the_documented_metrics_are_served() -> None:
    page = OPERATE.read_text(encoding="utf-8")
    served = {family.name for family in LandingMetrics().registry.collect()}
    rows = re.findall(r"^\| (`fraud_.*?) \| ", page.partition("## Metrics")[2], re.MULTILINE)
    documented = {name.removesuffix("_total") for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert documented == served
    (rules,) = blocks(page, "yaml")
    expressions = [rule["expr"] for rule in yaml.safe_load(rules)["groups"][0]["rules"]]
    used = {
        name.removesuffix("_total") for text in expressions for name in re.findall(r"\bfraud_(?!landing\b)\w+", text)
    }
    assert used <= served


def test_the_page_of_the_command_line_matches_the_commands() -> None:
    page = COMMAND_LINE.read_text(encoding="utf-8")
    assert page == command_pages(), f"docs/cli.md and the commands differ; write the page again: {REGENERATE}"


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    build = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert build.returncode == 0, build.stdout + build.stderr
    assert (tmp_path / "site" / "index.html").exists()


def test_every_setting_has_a_description() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_the_documentation_mentions_every_command() -> None:
    mentioned = {call[0] for call in fraud_assets_calls(TEXT)}
    assert set(COMMANDS) - mentioned == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_exist(page: Path) -> None:
    for call in fraud_assets_calls(page.read_text(encoding="utf-8")):
        if call[0] == "…" or call[0].startswith("-"):
            continue
        assert call[0] in COMMANDS, f"{page.name} names `fraud-assets {call[0]}`"
        command = cli.get_command(click.Context(cli), call[0])
        assert command is not None
        if isinstance(command, click.Group) and len(call) > 1:
            assert call[1] in command.commands, f"{page.name} names `fraud-assets {' '.join(call[:2])}`"
            command = command.commands[call[1]]
        options = {name for parameter in command.params for name in parameter.opts}
        used = {word.partition("=")[0] for word in call if word.startswith("--")}
        assert used <= options | {"--help"}, f"{page.name} gives `fraud-assets {call[0]}` an unknown option"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    used = set(re.findall(r"^(?:\$ )?make ([a-z]+)", code(page.read_text(encoding="utf-8")), re.MULTILINE))
    assert used <= targets


def test_the_documentation_mentions_every_make_target() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    used = set(re.findall(r"\bmake ([a-z-]+)", code(TEXT)))
    assert targets - used == {"help"}


def test_selected_assets_exist() -> None:
    known = {key.to_user_string() for key in defs.resolve_asset_graph().get_all_asset_keys()}
    for selection in re.findall(r"--select ([\w,]+)", code(TEXT)):
        assert set(selection.split(",")) <= known


def test_run_config_is_valid_for_its_assets() -> None:
    job = defs.resolve_implicit_global_asset_job_def()
    seen = set()
    for command in console_commands(TEXT):
        if "--config-json" not in command:
            continue
        selection, config = re.findall(r"--select (\S+) --config-json +'(.*)'$", command)[0]
        dates = re.sub(r"'\$(START|END)'", "2026-01-01", config)
        chosen = job.get_subset(asset_selection={dg.AssetKey(name) for name in selection.split(",")})
        assert dg.validate_run_config(chosen, json.loads(dates))
        seen |= set(json.loads(dates)["ops"])
    assert seen == {"model", "features", "fraud_predictions"}


def test_no_command_contains_a_fixed_date() -> None:
    dated = [line for line in console_commands(TEXT) if re.search(r"\b20\d\d-\d", line)]
    assert dated == [], "compute the date, as with `date -u -d yesterday +%F`"


def test_example_messages_and_producer_work(
    settings: Settings, lake: Lake, broker: Broker, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs" / "ingest.md").read_text(encoding="utf-8")
    (examples,) = blocks(text, "json")
    transaction, label = map(json.loads, examples.splitlines())
    assert (tuple(transaction), tuple(label)) == (CONTRACT_FIELDS, LABEL_FIELDS)
    send(settings.transactions_topic, [transaction])
    send(settings.labels_topic, [label])
    (producer,) = blocks(text, "python")
    monkeypatch.setenv("FRAUD_HOME", str(settings.home_path))
    exec(producer, {})
    land_topics(lake, settings)
    report = process_landed(lake, settings)
    assert (report.features, report.quarantined) == (2, 0)
    assert lake.open(fraud_labels).count() == 2


def test_the_described_errors_exist() -> None:
    """Each message in `docs/errors.md` is part of a text in the code; `…` stands for a value."""
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    messages = [row for row in re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE) if not row.isdigit()]
    assert len(messages) > 20
    texts = [text for path in (ROOT / "fraud_assets").rglob("*.py") for text in read_texts(path)]
    for message in messages:
        parts = [re.escape(part.strip()) for part in message.split("…") if part.strip()]
        pattern = re.compile(".*?".join(parts), re.DOTALL)
        assert any(pattern.search(text) for text in texts), f"docs/errors.md describes {message!r}"


def read_texts(path: Path) -> Iterator[str]:
    """Returns the string literals of a module, with `…` for each value of an f-string."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_linked_and_named_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
    named = re.findall(r"`((?:fraud_assets|fraud_assets_tests|docs|benchmarks)/[\w./]*)`", text)
    named += [f"fraud_assets/{name}" for name in re.findall(rf"`((?:{PACKAGES})/[\w/]+\.py)`", text)]
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_tests_exist(page: Path) -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parents[1].rglob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", page.read_text(encoding="utf-8"))
    assert [name for name in named if f"def {name}(" not in tests] == []


def main() -> None:
    for page, name, table in ((SETTINGS, "settings", settings_table()), (OPERATE, "reasons", reasons_table())):
        before, _, after = split_page(page.read_text(encoding="utf-8"), name)
        begin, end = MARKS[name]
        page.write_text(f"{before}{begin}{table}{end}{after}", encoding="utf-8")
    COMMAND_LINE.write_text(command_pages(), encoding="utf-8")


if __name__ == "__main__":
    main()
