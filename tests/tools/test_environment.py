"""tools/environment.sh: what a start finds, makes anew, or leaves alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools/environment.sh"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project directory, with a space in its name, whose .venv was prepared for `run`."""
    project = tmp_path / "a project"
    (project / "tools").mkdir(parents=True)
    (project / ".venv/bin").mkdir(parents=True)
    shutil.copy(SCRIPT, project / "tools")
    (project / "pyproject.toml").write_text('[project]\nname = "x"\n')
    (project / ".venv/bin/python").symlink_to(Path(sys.executable).resolve())
    stamp(project, "run")
    return project


def stamp(project: Path, level: str, python: str = "") -> None:
    text = (project / "pyproject.toml").read_text()
    header = f"{level}\n{project}\n{python or Path(sys.executable).resolve()}\n"
    (project / ".venv/refledger-stamp").write_text(header + text)


def bash(project: Path, script: str, *, path: str = "/usr/bin:/bin") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/bash", "-c", f'source "{project}/tools/environment.sh"\n{script}'],
        check=False, capture_output=True, text=True, cwd="/", env={"PATH": path},
    )  # fmt: skip


def current(project: Path, level: str = "run") -> bool:
    return bash(project, f"_venv_is_current {level}").returncode == 0


def test_a_prepared_environment_is_used_without_a_process(project: Path) -> None:
    # reason for the empty PATH: any command it started would be missing
    done = bash(project, "use_venv run && echo $VENV", path="/nowhere")
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(done.stdout.strip()).samefile(project / ".venv")


def test_an_edited_pyproject_is_noticed(project: Path) -> None:
    assert current(project)
    with (project / "pyproject.toml").open("a") as file:
        file.write("\n")
    assert not current(project)


def test_test_tools_are_noticed_missing_and_serve_a_run_too(project: Path) -> None:
    assert not current(project, "dev")
    stamp(project, "dev")
    assert current(project, "dev")
    assert current(project, "run")


def test_another_interpreter_is_noticed(project: Path) -> None:
    stamp(project, "run", "/bin/true")
    assert not current(project)


def test_a_moved_project_is_noticed(project: Path) -> None:
    moved = project.rename(project.parent / "elsewhere")
    assert not current(moved)


def test_the_project_is_found_from_a_relative_path(project: Path) -> None:
    script = 'source ../tools/environment.sh; [[ $PROJECT -ef .. ]] && _venv_is_current run'
    done = subprocess.run(["/bin/bash", "-c", script], check=False, cwd=project / "tools")
    assert done.returncode == 0


def test_missing_packages_without_apt_are_named_in_one_line(project: Path) -> None:
    done = bash(project, "PATH=/nowhere; install_missing no-such-command=some-package bash=bash-package")
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "some-package" in done.stderr


def test_what_is_there_is_not_installed(project: Path) -> None:
    done = bash(project, "apt-get() { echo called; }; install_missing bash=bash ls=coreutils")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.root
def test_a_failing_install_shows_why_and_fails(project: Path) -> None:
    done = bash(project, "apt-get() { echo no mirror; return 100; }; install_missing no-such-command=some-package")
    assert done.returncode == 3
    assert "no mirror" in done.stderr


def test_starts_at_once_wait_for_each_other(project: Path) -> None:
    script = 'step() { echo in; sleep 0.2; echo out; }; locked step & locked step & wait'
    assert bash(project, script).stdout.split() == ["in", "out", "in", "out"]
