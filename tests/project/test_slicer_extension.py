"""The repository of the Slicer extension: its content, the rules of Slicer's Extensions Index, and its publication."""

from collections.abc import Callable
import json
from pathlib import Path
import re
import shutil
import subprocess
from typing import Any

from helpers import extensions_index as index
from helpers.extensions_index import RULES, Files
import pytest
import yaml

from tools import slicer_extension
from tools.docs_hooks import REPOSITORY, ROOT

WORKFLOWS = ROOT / ".github" / "workflows"


@pytest.fixture(scope="module")
def files() -> Files:
    return slicer_extension.extension_files()


def read(folder: Path) -> Files:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ---- what is written --------------------------------------------------------------------------------------


def tree(folder: Path) -> dict[Path, tuple[int, int]]:
    """Path, size and time of change of all files of a folder, without those that Python writes."""
    found = (p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


@pytest.mark.parametrize("name", ["new", "a/new/one", "empty", "with spaces and ü"])
def test_it_writes_into_a_new_or_an_empty_folder(
    files: Files, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    before = tree(slicer_extension.MODULE)
    slicer_extension.main([str(tmp_path / name)])
    assert read(tmp_path / name) == files
    assert tree(slicer_extension.MODULE) == before
    assert f"Wrote {len(files)} files of the Slicer extension to {tmp_path / name}." in capsys.readouterr().out


def with_a_file(folder: Path) -> Path:
    folder.mkdir()
    (folder / "notes.txt").touch()
    return folder


def with_a_hidden_folder(folder: Path) -> Path:
    (folder / ".git").mkdir(parents=True)
    return folder


def a_file(folder: Path) -> Path:
    folder.touch()
    return folder


def in_a_file(folder: Path) -> Path:
    folder.touch()
    return folder / "extension"


def a_link_to_nothing(folder: Path) -> Path:
    folder.symlink_to("nowhere/at/all")
    return folder / "extension"


def in_the_module(folder: Path) -> Path:
    return slicer_extension.MODULE / "Screenshots" / folder.name


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (with_a_file, "is not empty"),
        (with_a_hidden_folder, "is not empty"),
        (a_file, "cannot be written"),
        (in_a_file, "cannot be written"),
        (a_link_to_nothing, "cannot be written"),
        (in_the_module, "is in slicer_module"),
    ],
)
def test_it_refuses_any_other_folder(
    make: Callable[[Path], Path], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(tmp_path / "extension")
    before = tree(tmp_path), tree(slicer_extension.MODULE)
    with pytest.raises(SystemExit) as exit:
        slicer_extension.main([str(folder)])
    assert exit.value.code == 2
    (*_, message) = capsys.readouterr().err.splitlines()
    assert f"error: {folder} {reason}" in message
    assert re.search(r"\. Choose a .*folder.*\.$", message)
    assert (tree(tmp_path), tree(slicer_extension.MODULE)) == before
    assert not in_the_module(folder).exists()


def test_files_of_python_and_of_desktops_are_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "slicer_module"
    shutil.copytree(slicer_extension.MODULE, copy, ignore=shutil.ignore_patterns("tests", "qt_host", "__pycache__"))
    shutil.copy(ROOT / "LICENSE", tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    monkeypatch.setattr(slicer_extension, "ROOT", tmp_path)
    monkeypatch.setattr(slicer_extension, "MODULE", copy)
    expected = slicer_extension.extension_files()
    for name in ("Screenshots/.DS_Store", "NNInteractiveWS/__pycache__/a.pyc", "NNInteractiveWS/.idea/x.xml"):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).touch()
    assert slicer_extension.extension_files() == expected
    (copy / "Screenshots" / "new.png").touch()
    assert slicer_extension.extension_files().keys() - expected.keys() == {"Screenshots/new.png"}


def test_it_has_no_tests_and_no_tools(files: Files) -> None:
    tops = {path.partition("/")[0] for path in files}
    expected = {"CMakeLists.txt", "LICENSE.txt", "README.md", "NNInteractiveWS.json", "NNInteractiveWS", "Screenshots"}
    assert tops == expected


def test_the_readme_is_that_of_the_module_with_its_own_sections(files: Files) -> None:
    module, extension = (slicer_extension.MODULE / "README.md").read_text(), index.readme(files)

    def titles(text: str) -> list[str]:
        return re.findall(r"^## (.+)$", text, re.MULTILINE)

    assert titles(extension) == titles(module)
    changed = {
        title for title in titles(module) if index.section({"README.md": module.encode()}, title) not in extension
    }
    with_links = {title for title in titles(module) if "](../" in index.section({"README.md": module.encode()}, title)}
    assert changed == {*slicer_extension.SECTIONS, *with_links}
    assert "Extensions Manager" in index.section(files, "Install it")
    assert "slicer_module" not in extension.replace(f"{REPOSITORY}/tree/main/slicer_module", "").replace(
        "[slicer_module]", ""
    )


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("Screenshots/panel.png", "Screenshots/panel.png"),
        ("NNInteractiveWS/CMakeLists.txt", "NNInteractiveWS/CMakeLists.txt"),
        ("../LICENSE", "LICENSE.txt"),
        ("../docs/guides/security.md", f"{REPOSITORY}/blob/main/docs/guides/security.md"),
        ("tests/widget", f"{REPOSITORY}/tree/main/slicer_module/tests/widget"),
        ("../protocol.md", f"{REPOSITORY}/blob/main/protocol.md"),
    ],
)
def test_a_link_leads_into_the_extension_or_to_the_main_repository(link: str, expected: str) -> None:
    assert slicer_extension._link(link) == expected


def test_a_broken_link_is_reported() -> None:
    with pytest.raises(ValueError, match=r"links to \.\./nothing\.md, which does not exist"):
        slicer_extension._link("../nothing.md")


# ---- the rules of the Extensions Index --------------------------------------------------------------------

ENTRY, CMAKE, README, MODULE_LIST = (
    "NNInteractiveWS.json",
    "CMakeLists.txt",
    "README.md",
    "NNInteractiveWS/CMakeLists.txt",
)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_of_the_index_holds(name: str, files: Files) -> None:
    RULES[name](files)


def replaced(path: str, old: str, new: str) -> Callable[[Files], None]:
    def change(files: Files) -> None:
        text = files[path].decode()
        assert old in text, old
        files[path] = text.replace(old, new).encode()

    return change


def in_entry(**values: Any) -> Callable[[Files], None]:
    def change(files: Files) -> None:
        content = index.entry(files)
        for key, value in values.items():
            content[key] = value
        files[ENTRY] = (json.dumps({k: v for k, v in content.items() if v is not None}, indent=2) + "\n").encode()

    return change


def added(path: str, content: bytes) -> Callable[[Files], None]:
    return lambda files: files.update({path: content})


def removed(path: str) -> Callable[[Files], None]:
    def change(files: Files) -> None:
        del files[path]

    return change


def renamed(old: str, new: str) -> Callable[[Files], None]:
    return lambda files: files.update({new: files.pop(old)})


#: Changes that violate a rule.
VIOLATIONS: list[tuple[str, Callable[[Files], None]]] = [
    ("the_entry_is_valid_json", replaced(ENTRY, '"tier": 3', '"tier": 3,')),
    ("the_entry_is_valid_json", added(ENTRY, b"[]\n")),
    ("the_lines_of_the_entry_end_with_lf", replaced(ENTRY, "\n", "\r\n")),
    ("the_entry_is_formatted", replaced(ENTRY, "  ", "\t")),
    ("the_entry_is_formatted", replaced(ENTRY, "}\n", "}")),
    ("the_entry_is_formatted", replaced(ENTRY, ",\n", ", \n")),
    ("the_entry_is_small", added(ENTRY, b" " * (2**20 + 1))),
    ("the_entry_names_its_schema", replaced(ENTRY, "v1.0.1", "v9.0.1")),
    ("the_entry_names_its_schema", replaced(ENTRY, "https://raw", "raw")),
    ("the_entry_has_the_required_keys", in_entry(category=None)),
    ("the_entry_has_the_required_keys", in_entry(scm_url=None)),
    ("the_entry_has_no_other_keys", in_entry(homepage="https://github.com")),
    ("the_values_of_the_entry_have_their_types", in_entry(tier="3")),
    ("the_values_of_the_entry_have_their_types", in_entry(tier=True)),
    ("the_values_of_the_entry_have_their_types", in_entry(build_dependencies=[1])),
    ("the_tier_is_from_1_to_5", in_entry(tier=6)),
    ("the_tier_is_from_1_to_5", in_entry(tier=0)),
    ("the_repository_is_of_git", in_entry(scm_type="svn")),
    ("the_category_is_known", in_entry(category="segmentation")),
    ("the_dependencies_are_in_the_index", in_entry(build_dependencies=["NoSuchExtension"])),
    ("the_name_does_not_begin_with_slicer", renamed(ENTRY, "SlicerNNInteractiveWS.json")),
    ("the_name_does_not_begin_with_slicer", renamed(ENTRY, "slicernnInteractive.json")),
    ("the_address_of_the_repository_is_of_git_or_https", in_entry(scm_url="git@github.com:a/SlicerB.git")),
    ("the_address_of_the_repository_is_of_git_or_https", in_entry(scm_url="http://github.com/a/SlicerB.git")),
    ("the_name_of_the_repository_begins_with_slicer", in_entry(scm_url="https://github.com/a/nninteractive-ws.git")),
    ("the_name_of_the_repository_begins_with_slicer", in_entry(scm_url="https://github.com/Slicer/NNInteractiveWS")),
    ("the_name_of_the_repository_ends_with_that_of_the_extension", in_entry(scm_url="https://github.com/a/SlicerB")),
    ("the_revision_is_a_branch", in_entry(scm_revision="0fe070ddff")),
    ("the_repository_is_small", added("Screenshots/film.mp4", bytes(11 * 2**20))),
    ("a_license_is_at_the_root", removed("LICENSE.txt")),
    ("a_license_is_at_the_root", renamed("LICENSE.txt", "NNInteractiveWS/LICENSE.txt")),
    ("the_license_has_the_name_of_the_checklist", renamed("LICENSE.txt", "COPYING")),
    ("the_license_is_permissive", added("LICENSE.txt", b"GNU GENERAL PUBLIC LICENSE\n")),
    ("no_text_has_a_placeholder", in_entry(scm_url="https://example.org/SlicerNNInteractiveWS.git")),
    ("no_text_has_a_placeholder", replaced(CMAKE, "https://github.com", "https://www.example.com")),
    ("no_text_has_a_placeholder", replaced(README, "# nnInteractive WS", "# TemplateKey")),
    ("the_project_has_the_name_of_the_entry", replaced(CMAKE, "project(NNInteractiveWS)", "project(NNInteractive)")),
    ("the_icon_is_a_square_picture", replaced(CMAKE, "Icons/NNInteractiveWS.png", "Icons/NNInteractive.png")),
    ("the_icon_is_a_square_picture", replaced(CMAKE, "Icons/NNInteractiveWS.png", "Icons/TorsoPhantom.png")),
    ("the_icon_is_a_square_picture", replaced(CMAKE, 'ICONURL "', 'ICONURL\n  "')),
    ("the_icon_is_a_square_picture", replaced(CMAKE, "SlicerNNInteractiveWS/main/N", "SlicerNNInteractiveWS/master/N")),
    ("the_screenshots_are_pictures", replaced(CMAKE, "Screenshots/panel.png", "Screenshots/none.png")),
    ("the_screenshots_are_pictures", added("Screenshots/panel.png", b"<html>not found</html>" * 9)),
    ("the_screenshots_are_pictures", replaced(CMAKE, "set(EXTENSION_SCREENSHOTURLS", "set(EXTENSION_SCREENSHOTS")),
    ("the_homepage_is_that_of_the_repository", replaced(CMAKE, "/SlicerNNInteractiveWS\")", "/nninteractive-ws\")")),
    ("the_description_is_one_or_two_sentences", replaced(CMAKE, "computation.", "computation. It is new.")),
    ("the_description_is_one_or_two_sentences", replaced(CMAKE, "DESCRIPTION \"S", "DESCRIPTIONS \"S")),
    ("the_contributors_are_named", replaced(CMAKE, "nninteractive-ws contributors", " ")),
    ("the_category_is_that_of_the_entry", replaced(CMAKE, '"Segmentation"', '"Filtering"')),
    ("the_dependencies_are_those_of_the_entry", replaced(CMAKE, '"NA"', '"PyTorch"')),
    ("the_modules_are_in_the_repository", replaced(CMAKE, "directory(NNInteractiveWS)", "directory(Other)")),
    ("the_modules_are_in_the_repository", replaced(CMAKE, "add_subdirectory(NNInteractiveWS)", "")),
    ("the_lists_of_a_module_have_all_its_files", added("NNInteractiveWS/NNInteractiveWSLib/new.py", b"")),
    ("the_lists_of_a_module_have_all_its_files", added("NNInteractiveWS/Resources/Icons/new.png", b"")),
    ("the_lists_of_a_module_have_all_its_files", removed("NNInteractiveWS/Resources/requirements.txt")),
    ("the_homepage_names_the_extension", replaced(README, "*NNInteractiveWS* has", "It has")),
    ("the_homepage_has_a_picture", replaced(README, "](Screenshots/segments.png)", "](#install-it)")),
    ("the_links_of_the_homepage_lead_somewhere", removed("Screenshots/preview.png")),
    ("the_links_of_the_homepage_lead_somewhere", replaced(README, f"{REPOSITORY}/blob/main/docs", "../docs")),
    ("the_homepage_has_a_sentence_for_each_module", replaced(README, "*nnInteractive WS*, in the", "It, in the")),
    ("the_homepage_has_a_tutorial", replaced(README, "Sample Data", "our web page")),
    ("the_homepage_has_a_tutorial", replaced(README, "## The first prompt", "## Use")),
    ("the_homepage_names_the_license", replaced(README, "Apache-2.0", "a license")),
    ("the_homepage_names_the_publication", replaced(README, "arxiv.org/abs", "arxiv.org/list")),
    ("the_homepage_promises_consent", replaced(README, "only to a server to which", "to the server which")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change"), VIOLATIONS, ids=[name for name, _ in VIOLATIONS])
def test_a_violation_of_a_rule_is_noticed(name: str, change: Callable[[Files], None], files: Files) -> None:
    changed = dict(files)
    change(changed)
    with pytest.raises((AssertionError, ValueError, KeyError)):
        RULES[name](changed)


def test_every_rule_has_a_violation() -> None:
    assert {name for name, _ in VIOLATIONS} == RULES.keys()


# ---- CMake ------------------------------------------------------------------------------------------------

STUBS = """
set(Slicer_USE_FILE ${CMAKE_CURRENT_LIST_DIR}/Use.cmake)
set(Slicer_EXTENSION_GENERATE_CONFIG ${CMAKE_CURRENT_LIST_DIR}/Empty.cmake)
set(Slicer_EXTENSION_CPACK ${CMAKE_CURRENT_LIST_DIR}/Empty.cmake)
"""
USE = """
set(BUILD_TESTING ON)
macro(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(MY "WITH_GENERIC_TESTS" "NAME" "SCRIPTS;RESOURCES" ${ARGN})
  foreach(file ${MY_SCRIPTS} ${MY_RESOURCES} ${MY_UNPARSED_ARGUMENTS})
    if(NOT EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/${file})
      message(FATAL_ERROR "there is no ${file}")
    endif()
  endforeach()
  message(STATUS "module ${MY_NAME}")
endmacro()
macro(slicer_add_python_unittest)
  cmake_parse_arguments(MY "" "TESTNAME_PREFIX;SCRIPT" "SLICER_ARGS" ${ARGN})
  message(STATUS "test ${MY_SCRIPT}")
endmacro()
"""


def test_cmake_configures_it_with_stubs_for_slicers_macros(tmp_path: Path) -> None:
    cmake = shutil.which("cmake")
    if cmake is None or shutil.which("c++") is None:
        pytest.skip("cmake or a compiler is not installed")
    slicer_extension.write(tmp_path / "extension")
    for name, text in (("SlicerConfig.cmake", STUBS), ("Use.cmake", USE), ("Empty.cmake", "")):
        (tmp_path / name).write_text(text)
    command = [cmake, "-S", "extension", "-B", "build", f"-DSlicer_DIR={tmp_path}", "-Wno-dev"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert "module NNInteractiveWS\n" in done.stdout
    assert "test NNInteractiveWS.py" in done.stdout


# ---- publication ------------------------------------------------------------------------------------------


def steps() -> list[dict[str, Any]]:
    """The steps of the workflow that pushes the extension."""
    found: list[dict[str, Any]] = yaml.safe_load((WORKFLOWS / "slicer-extension.yml").read_text())["jobs"]["push"][
        "steps"
    ]
    return found


def script(name: str) -> str:
    (text,) = (step["run"] for step in steps() if step.get("name") == name)
    assert isinstance(text, str)
    return text


def git(*arguments: str | Path, cwd: Path) -> str:
    done = subprocess.run(["git", *arguments], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """The extension's repository with another content, and a checkout of it in ``work/published``."""
    bare, work = tmp_path / "SlicerNNInteractiveWS.git", tmp_path / "work"
    work.mkdir()
    git("init", "--quiet", "--bare", "--initial-branch=main", bare, cwd=tmp_path)
    git("clone", "--quiet", bare, "published", cwd=work)
    (work / "published" / "old.txt").touch()
    git("add", "old.txt", cwd=work / "published")
    author = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    git(*author, "commit", "--quiet", "--message=First", cwd=work / "published")
    git("push", "--quiet", "origin", "HEAD:main", cwd=work / "published")
    return bare


def push(work: Path, tag: str) -> str:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(work), "RUNNER_TEMP": str(work.parent), "GITHUB_REF_NAME": tag}
    command = ["bash", "-e", "-c", script("Push it")]
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_workflow_replaces_the_content_of_the_extensions_repository(
    published: Path, files: Files, tmp_path: Path
) -> None:
    slicer_extension.write(tmp_path / "extension")
    push(tmp_path / "work", "v0.1.0")
    git("clone", "--quiet", published, "clone", cwd=tmp_path)
    git("checkout", "--quiet", index.entry(files)["scm_revision"], cwd=tmp_path / "clone")
    cloned = {path: content for path, content in read(tmp_path / "clone").items() if not path.startswith(".git/")}
    assert cloned == files
    assert git("log", "--format=%s", cwd=tmp_path / "clone").split("\n") == [
        "Update to nninteractive-ws 0.1.0", "First", "",
    ]  # fmt: skip


def test_the_workflow_adds_no_commit_if_nothing_has_changed(published: Path, tmp_path: Path) -> None:
    slicer_extension.write(tmp_path / "extension")
    push(tmp_path / "work", "v0.1.0")
    before = git("rev-parse", "main", cwd=published)
    assert "has not changed" in push(tmp_path / "work", "v0.1.1")
    assert git("rev-parse", "main", cwd=published) == before


def test_the_workflow_writes_to_the_repository_of_the_entry(files: Files) -> None:
    (checkout,) = (step["with"] for step in steps() if "repository" in step.get("with", {}))
    assert f"https://github.com/{checkout['repository']}.git" == index.entry(files)["scm_url"]
    assert checkout["ref"] == index.entry(files)["scm_revision"]
    assert script("Write the extension") == 'python -m tools.slicer_extension "$RUNNER_TEMP/extension"'


def test_a_tag_publishes_the_extension_after_the_package() -> None:
    publish = yaml.safe_load((WORKFLOWS / "publish.yml").read_text())
    assert publish[True] == {"push": {"tags": ["v*"]}}  # YAML reads the key "on" as true
    job = publish["jobs"]["slicer-extension"]
    assert (job["needs"], job["uses"]) == ("pypi", "./.github/workflows/slicer-extension.yml")
    called = yaml.safe_load((WORKFLOWS / "slicer-extension.yml").read_text())[True]["workflow_call"]
    assert job["secrets"].keys() == called["secrets"].keys()
