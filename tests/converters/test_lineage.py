"""Where a bundle comes from."""

import subprocess

from edgeops_converters.lineage import git_revision, tool_versions


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_the_revision_is_that_of_the_users_repository_and_says_when_it_is_dirty(tmp_path):
    (tmp_path / "model.py").write_text("a = 1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "model.py")
    git(tmp_path, "commit", "-qm", "first")
    clean = git_revision(tmp_path)
    assert len(clean) == 40
    (tmp_path / "model.py").write_text("a = 2\n")
    assert git_revision(tmp_path) == f"{clean}-dirty"


def test_outside_of_a_repository_there_is_no_revision(tmp_path):
    assert git_revision(tmp_path) is None


def test_only_installed_tools_are_listed():
    assert set(tool_versions(("numpy", "no-such-package"))) == {"numpy"}
