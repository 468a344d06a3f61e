"""README's code runs, its figures have their command, and its links lead somewhere."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text()


def test_python_blocks_run(tmp_path, monkeypatch, capsys):
    """In order, in one namespace; a print with a comment prints what the comment says."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 4
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    printed = capsys.readouterr().out
    promised = re.findall(r"^ *print\(.*\) +# (.+)$", "\n".join(blocks), re.MULTILINE)
    assert len(promised) >= 4
    for comment in promised:
        if not comment.startswith("which"):
            assert comment.split(":")[0] in printed


@pytest.mark.parametrize("document", ["README.md", "schemas/README.md", "benchmarks/README.md"])
def test_links_lead_somewhere(document):
    path = REPOSITORY / document
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target


def test_there_is_one_command_for_the_main_job_and_one_for_the_tests():
    commands = re.findall(r"^ +(python3 -m venv .*)$", README, re.MULTILINE)
    assert len(commands) == 2
    assert commands[0].endswith(".venv/bin/lakestore demo")
    assert commands[1].endswith(".venv/bin/pytest")


def test_every_command_of_the_command_line_is_mentioned():
    changelog = (REPOSITORY / "CHANGELOG.md").read_text()
    from typer.main import get_command

    from lakestore.cli import app

    for name in get_command(app.app).commands:  # type: ignore[attr-defined]
        assert f"`{name}`" in changelog
