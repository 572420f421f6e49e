"""The rules of Slicer's Extensions Index for an extension, as functions of the content of its repository.

They state what the Index (https://github.com/Slicer/ExtensionsIndex) checks in a submission: with its scripts
``check_description_files.py`` and ``check_repository_structure.py``, the hooks of its commits, the schema of its
entries, and the checklist of its pull requests. A rule raises an error for an extension that violates it.

Two checks need GitHub: the addresses can be downloaded, and the repository has the topic ``3d-slicer-extension``.
"""

from collections.abc import Callable, Iterator
import json
from pathlib import PurePosixPath
import re
import struct
from typing import Any
from urllib.parse import urlsplit

#: Path and content of each file of an extension's repository.
Files = dict[str, bytes]
Rule = Callable[[Files], None]

RULES: dict[str, Rule] = {}

#: Categories of the Index that suit a program for segmentation on a server.
CATEGORIES = {"Active Learning", "Remote", "Segmentation"}
LICENSE_NAMES = {"COPYING", "COPYING.txt", "LICENCE", "LICENSE", "LICENSE.txt", "License.txt", "license.txt"}
REPOSITORY_PREFIX = "Slicer"
MAX_BYTES = 100 * 2**20
MAX_ENTRY_BYTES = 2**20
SCHEMAS = re.compile(
    r"https://raw\.githubusercontent\.com/Slicer/Slicer/main/Schemas/"
    r"slicer-extension-catalog-entry-schema-v1\.0\.[0-2]\.json#?"
)
REQUIRED_KEYS = {"$schema", "category", "scm_url"}
#: Keys of the schema and the types of their values. It allows no others.
KEYS: dict[str, type] = {
    **dict.fromkeys(("$schema", "category", "scm_url", "scm_revision", "scm_type", "build_subdirectory"), str),
    "build_dependencies": list,
    "enabled": bool,
    "tier": int,
}


def rule(function: Rule) -> Rule:
    """Add a function to the rules, under its name."""
    RULES[function.__name__] = function
    return function


# ---- the entry: the JSON file that is submitted -----------------------------------------------------------


def entry_name(files: Files) -> str:
    """The name of the entry, which is that of the extension."""
    (name,) = (path for path in files if path.endswith(".json") and "/" not in path)
    return name.removesuffix(".json")


def entry_bytes(files: Files) -> bytes:
    return files[f"{entry_name(files)}.json"]


def entry(files: Files) -> dict[str, Any]:
    content = json.loads(entry_bytes(files))
    assert isinstance(content, dict)
    return content


@rule
def the_entry_is_valid_json(files: Files) -> None:
    entry(files)


@rule
def the_lines_of_the_entry_end_with_lf(files: Files) -> None:
    assert b"\r" not in entry_bytes(files)


@rule
def the_entry_is_formatted(files: Files) -> None:
    """As by prettier: two spaces, no tabs, no trailing spaces, one line end at the end."""
    assert entry_bytes(files).decode() == json.dumps(entry(files), indent=2, ensure_ascii=False) + "\n"


@rule
def the_entry_is_small(files: Files) -> None:
    assert len(entry_bytes(files)) <= MAX_ENTRY_BYTES


@rule
def the_entry_names_its_schema(files: Files) -> None:
    assert SCHEMAS.fullmatch(entry(files)["$schema"])


@rule
def the_entry_has_the_required_keys(files: Files) -> None:
    assert entry(files).keys() >= REQUIRED_KEYS


@rule
def the_entry_has_no_other_keys(files: Files) -> None:
    assert entry(files).keys() <= KEYS.keys()


@rule
def the_values_of_the_entry_have_their_types(files: Files) -> None:
    content = entry(files)
    assert [key for key in content.keys() & KEYS.keys() if type(content[key]) is not KEYS[key]] == []
    assert [name for name in content.get("build_dependencies", []) if not isinstance(name, str)] == []


@rule
def the_tier_is_from_1_to_5(files: Files) -> None:
    assert entry(files).get("tier", 1) in range(1, 6)


@rule
def the_repository_is_of_git(files: Files) -> None:
    assert entry(files).get("scm_type", "git") == "git"


@rule
def the_category_is_known(files: Files) -> None:
    assert entry(files)["category"] in CATEGORIES


@rule
def the_dependencies_are_in_the_index(files: Files) -> None:
    """There are none."""
    assert entry(files).get("build_dependencies", []) == []


@rule
def the_name_does_not_begin_with_slicer(files: Files) -> None:
    assert not entry_name(files).lower().startswith("slicer")


# ---- the repository ---------------------------------------------------------------------------------------


@rule
def the_address_of_the_repository_is_of_git_or_https(files: Files) -> None:
    address = entry(files)["scm_url"]
    assert "://" in address
    assert urlsplit(address).scheme in ("git", "https")


def repository_name(files: Files) -> str:
    return PurePosixPath(urlsplit(entry(files)["scm_url"].strip("/ ")).path).stem


@rule
def the_name_of_the_repository_begins_with_slicer(files: Files) -> None:
    assert repository_name(files).startswith(REPOSITORY_PREFIX)


@rule
def the_name_of_the_repository_ends_with_that_of_the_extension(files: Files) -> None:
    assert repository_name(files) == REPOSITORY_PREFIX + entry_name(files)


@rule
def the_revision_is_a_branch(files: Files) -> None:
    """It is not a hash, so that the Index builds each release without a new submission."""
    assert not re.fullmatch(r"[0-9a-f]{7,40}", entry(files)["scm_revision"])


@rule
def the_repository_is_small(files: Files) -> None:
    """A tenth of the limit, as its history counts too."""
    assert sum(map(len, files.values())) * 10 <= MAX_BYTES


@rule
def a_license_is_at_the_root(files: Files) -> None:
    assert [name for name in LICENSE_NAMES if files.get(name, b"").strip()] != []


@rule
def the_license_has_the_name_of_the_checklist(files: Files) -> None:
    assert "LICENSE.txt" in files


@rule
def the_license_is_permissive(files: Files) -> None:
    assert b"Apache License" in b"".join(files.get(name, b"") for name in LICENSE_NAMES)


@rule
def no_text_has_a_placeholder(files: Files) -> None:
    texts = (content for path, content in files.items() if not path.endswith(".png"))
    assert [found for text in texts if (found := re.search(rb"example\.(com|org|net)|TemplateKey", text))] == []


# ---- CMakeLists.txt at the root ---------------------------------------------------------------------------


def cmake(files: Files) -> str:
    return files["CMakeLists.txt"].decode()


def project(files: Files) -> str:
    found = re.search(r"project\s*\(\s*([^\s)]+)", cmake(files), re.IGNORECASE)
    assert found
    return found[1]


def metadata(files: Files, name: str) -> str:
    """The value of EXTENSION_<name>, in the only form that the Index's script reads: on one line, in quotes."""
    found = re.search(rf'^set\(EXTENSION_{name} "([^"\n]+)"\)$', cmake(files), re.MULTILINE)
    assert found, name
    return found[1]


def modules(files: Files) -> list[str]:
    """The folders of the modules that the extension consists of."""
    return re.findall(r"^add_subdirectory\((\w+)\)$", cmake(files), re.MULTILINE)


def picture(files: Files, address: str) -> bytes:
    """The file to which an address of a picture leads, once the content of the repository is published."""
    owner = urlsplit(entry(files)["scm_url"]).path.strip("/").removesuffix(".git")
    root = f"https://raw.githubusercontent.com/{owner}/{entry(files)['scm_revision']}/"
    assert address.startswith(root), address
    return files[address.removeprefix(root)]


def png_size(content: bytes) -> tuple[int, int]:
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    return width, height


@rule
def the_project_has_the_name_of_the_entry(files: Files) -> None:
    assert project(files) == entry_name(files)


@rule
def the_icon_is_a_square_picture(files: Files) -> None:
    width, height = png_size(picture(files, metadata(files, "ICONURL")))
    assert width == height >= 64


@rule
def the_screenshots_are_pictures(files: Files) -> None:
    for address in metadata(files, "SCREENSHOTURLS").split():
        assert min(png_size(picture(files, address))) >= 64


@rule
def the_homepage_is_that_of_the_repository(files: Files) -> None:
    assert metadata(files, "HOMEPAGE") == entry(files)["scm_url"].removesuffix(".git")


@rule
def the_description_is_one_or_two_sentences(files: Files) -> None:
    assert 1 <= len(re.findall(r"\.(?:\s|$)", metadata(files, "DESCRIPTION"))) <= 2


@rule
def the_contributors_are_named(files: Files) -> None:
    assert metadata(files, "CONTRIBUTORS").strip()


@rule
def the_category_is_that_of_the_entry(files: Files) -> None:
    assert metadata(files, "CATEGORY") == entry(files)["category"]


@rule
def the_dependencies_are_those_of_the_entry(files: Files) -> None:
    names = metadata(files, "DEPENDS")
    assert ([] if names == "NA" else names.split()) == entry(files).get("build_dependencies", [])


@rule
def the_modules_are_in_the_repository(files: Files) -> None:
    assert modules(files)
    assert [name for name in modules(files) if f"{name}/CMakeLists.txt" not in files] == []


@rule
def the_lists_of_a_module_have_all_its_files(files: Files) -> None:
    for name in modules(files):
        text = files[f"{name}/CMakeLists.txt"].decode().replace("${MODULE_NAME}", name)
        listed = set(re.findall(r"^  ([\w/]+\.\w+)$", text, re.MULTILINE))
        found = {path.removeprefix(f"{name}/") for path in files if path.startswith(f"{name}/")}
        assert listed == found - {"CMakeLists.txt"}


# ---- README.md, the homepage ------------------------------------------------------------------------------


def readme(files: Files) -> str:
    return files["README.md"].decode()


def section(files: Files, title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", readme(files), re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def relative_links(files: Files) -> Iterator[str]:
    """The links and pictures that lead to files of the repository."""
    yield from re.findall(r"\]\((?!https?:|#)([^)\s#]+)", readme(files))


@rule
def the_homepage_names_the_extension(files: Files) -> None:
    assert entry_name(files) in readme(files).partition("\n## ")[0]


@rule
def the_homepage_has_a_picture(files: Files) -> None:
    assert re.search(r"!\[[^]]+\]\(Screenshots/", readme(files).partition("\n## ")[0])


@rule
def the_links_of_the_homepage_lead_somewhere(files: Files) -> None:
    assert [link for link in relative_links(files) if link not in files] == []


@rule
def the_homepage_has_a_sentence_for_each_module(files: Files) -> None:
    for name in modules(files):
        found = re.search(r'parent\.title = _\("(.+)"\)', files[f"{name}/{name}.py"].decode())
        assert found
        assert re.search(rf"\*{found[1]}\*[^.]{{40,}}\.", readme(files).partition("\n## ")[0])


@rule
def the_homepage_has_a_tutorial(files: Files) -> None:
    """Steps with pictures, and sample data."""
    text = section(files, "The first prompt")
    assert re.search(r"^1\. .*^2\. .*^3\. .*!\[", text, re.MULTILINE | re.DOTALL)
    assert "Sample Data" in text


@rule
def the_homepage_names_the_license(files: Files) -> None:
    assert "[Apache-2.0](LICENSE.txt)" in section(files, "License and citation")


@rule
def the_homepage_names_the_publication(files: Files) -> None:
    assert "https://arxiv.org/abs/" in section(files, "License and citation")


@rule
def the_homepage_promises_consent(files: Files) -> None:
    assert "only to a server to which you have agreed" in section(files, "Privacy")
