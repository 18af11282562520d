"""`refbench build --from hub` against a real server on loopback, through huggingface_hub."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import miniatures as mini
import pytest
import refer_release
from hub_server import COMMIT, Hub, serving

pytestmark = pytest.mark.slow  # servers and downloads

constants = pytest.importorskip("huggingface_hub.constants", reason="downloads need pip install 'refbench[hub]'")

Call = Callable[..., subprocess.CompletedProcess[str]]
REPO = "someone/refcoco-tables"
# huggingface_hub writes to the disk in pieces of this size.
PIECE = constants.DOWNLOAD_CHUNK_SIZE


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """The miniature's tables, served."""
    refs, instances = refer_release.content()
    refer_release.write(tmp_path / "release", refs, instances)
    tables = mini.write_tables(tmp_path / "tables", refs, instances, tmp_path / "release" / "images")
    files = {f"data/{p.name}": p.read_bytes() for p in sorted((tables / "data").glob("*.parquet"))}
    with serving(Hub(files)) as server:
        yield server


def write_sources(path: Path, hub: Hub, hashes: bool = True, revision: str = COMMIT, repo: str = REPO) -> Path:
    lines = ["[hub]", f'repo = "{repo}"', f'revision = "{revision}"', 'licence = "a licence for tests"']
    for name, content in hub.files.items():
        lines += ["[[hub.files]]", f'path = "{name}"', f"bytes = {len(content)}"]
        if hashes:
            lines.append(f'sha256 = "{hashlib.sha256(content).hexdigest()}"')
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def build(tmp_path: Path, hub: Hub, refbench: Call) -> Call:
    """`refbench build refcoco --from hub` with a cache and a home of its own."""

    def call(*arguments: str | Path, sources: Path | None = None, **environment: str) -> Any:
        given = sources or write_sources(tmp_path / "sources.toml", hub)
        settings = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hf"),
            "REFBENCH_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_TOKEN": "hf_secret",
        }
        return refbench("build", "refcoco", "--from", "hub", "--sources", given, *arguments, **settings | environment)

    return call


def gets(hub: Hub) -> list[tuple[str, str, str, bool]]:
    return [r for r in hub.requests if r[0] == "GET"]


def test_a_dataset_from_the_hub(tmp_path: Path, hub: Hub, build: Call) -> None:
    done = build("--json")
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)
    assert {s: v["expressions"] for s, v in manifest["splits"].items()} == {"testA": 1, "val": 3}
    assert f"downloaded from {REPO} at commit {COMMIT}" in manifest["notes"]
    # Told before the first byte: how much, of whom, under what licence.
    assert f"download: 2 files, 0 MB, from {REPO} (commit {COMMIT[:12]}); licence: a licence for tests" in done.stderr
    assert (tmp_path / "home" / "datasets" / "refcoco" / "images" / mini.file_name(1)).is_file()
    # All is in the cache now: no bytes again, and offline works with the server's answers gone.
    hub.requests.clear()
    hub.always = 500
    again = build("--offline", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["fingerprint"] == manifest["fingerprint"]
    assert not hub.requests


def test_the_json_of_a_download_is_alone_on_stdout(build: Call) -> None:
    done = build("--json")
    assert isinstance(json.loads(done.stdout), dict)


@pytest.fixture
def large(hub: Hub) -> str:
    """A file of several pieces beside the tables, which no builder reads; its name."""
    name = "data/large.bin"
    hub.files = {name: os.urandom(PIECE * 4), **hub.files}
    return name


def test_a_cut_download_goes_on_where_it_ended(hub: Hub, build: Call, large: str) -> None:
    hub.cut_next = [0.3]
    done = build()
    assert done.returncode == 0, done.stderr
    # What had come in whole pieces is not asked for again.
    assert [r[2] for r in gets(hub) if r[1].endswith(large)] == ["", f"bytes={PIECE}-"]


def test_a_download_that_ended_at_a_third_is_resumed_by_the_same_command(
    tmp_path: Path, hub: Hub, build: Call, large: str
) -> None:
    hub.cut_next = [0.3]
    hub.refuse_after_cut = True
    failed = build()
    assert failed.returncode == 3
    assert "the same command resumes" in failed.stderr, failed.stderr
    assert [p.stat().st_size for p in (tmp_path / "home" / "cache").rglob("*.part")] == [PIECE]
    hub.always = 0
    hub.requests.clear()
    done = build()
    assert done.returncode == 0, done.stderr
    assert gets(hub)[0][1:3] == (f"/datasets/{REPO}/resolve/{COMMIT}/{large}", f"bytes={PIECE}-")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_recovers(hub: Hub, build: Call, status: int) -> None:
    hub.fail_next = [status, status]
    done = build()
    assert done.returncode == 0, done.stderr
    assert len(gets(hub)) == 4


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "cannot be downloaded"), (403, "cannot be downloaded"), (404, "cannot be downloaded")],
)
def test_a_server_that_refuses(hub: Hub, build: Call, status: int, message: str) -> None:
    hub.always = status
    done = build()
    assert done.returncode == 3
    assert message in done.stderr
    assert str(status) in done.stderr
    assert "Traceback" not in done.stderr
    # A refusal is not asked again and again.
    assert len(hub.requests) == 1


def test_a_file_that_is_not_there(tmp_path: Path, hub: Hub, build: Call) -> None:
    sources = write_sources(tmp_path / "mine.toml", hub)
    hub.files = {"data/other.parquet": b"x"}
    done = build(sources=sources)
    assert done.returncode == 3
    assert f"{REPO} holds no data/refcoco_unc_" in done.stderr


def test_a_page_instead_of_a_file(hub: Hub, build: Call) -> None:
    hub.html = True
    done = build()
    assert done.returncode == 3
    assert "the server is not a hub" in done.stderr
    assert "check HF_ENDPOINT and the proxy" in done.stderr


def test_a_wrong_hash_is_refused_and_forgotten(tmp_path: Path, hub: Hub, build: Call) -> None:
    hub.corrupt = True
    done = build()
    assert done.returncode == 3
    assert "has the sha256" in done.stderr
    assert "sources.toml expects" in done.stderr
    assert not (tmp_path / "home" / "datasets" / "refcoco").exists()
    hub.corrupt = False
    assert build().returncode == 0


def test_without_a_published_hash_the_hubs_own_is_checked(tmp_path: Path, hub: Hub, build: Call) -> None:
    sources = write_sources(tmp_path / "mine.toml", hub, hashes=False)
    hub.corrupt = True
    done = build(sources=sources)
    assert done.returncode == 3
    assert "the hub expects" in done.stderr
    hub.corrupt = False
    assert build(sources=sources).returncode == 0


def test_a_file_that_was_damaged_since_is_fetched_again(tmp_path: Path, hub: Hub, build: Call) -> None:
    sources = write_sources(tmp_path / "mine.toml", hub, hashes=False)
    assert build(sources=sources).returncode == 0
    for path in (tmp_path / "home" / "cache").rglob("*.parquet"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    hub.requests.clear()
    assert build(sources=sources).returncode == 0
    assert len(gets(hub)) == len(hub.files)


def test_nothing_is_downloaded_for_a_command_that_cannot_work(tmp_path: Path, hub: Hub, build: Call) -> None:
    for wrong in (("-o", "crowd=use"), ("--images", "hub")):
        done = build(*wrong)
        assert done.returncode in (2, 3), done.stderr
    assert not hub.requests


def test_an_unpinned_revision_is_told_and_recorded(tmp_path: Path, hub: Hub, build: Call) -> None:
    done = build("--json", sources=write_sources(tmp_path / "mine.toml", hub, revision="main"))
    assert done.returncode == 0, done.stderr
    assert "revision main, not pinned" in done.stderr
    assert f"downloaded from {REPO} at commit {COMMIT}" in json.loads(done.stdout)["notes"]
    hub.always = 500
    assert build("--offline", sources=tmp_path / "mine.toml").returncode == 0


def test_a_redirect_to_another_host_gets_no_token(hub: Hub, build: Call) -> None:
    with serving(Hub(hub.files)) as elsewhere:
        # localhost and 127.0.0.1 are two hosts to a client, as hub and storage are.
        hub.redirect_to = elsewhere.url.replace("127.0.0.1", "localhost")
        done = build()
        assert done.returncode == 0, done.stderr
        assert all(token for *_, token in hub.requests)
        assert [r[0] for r in elsewhere.requests] == ["GET", "GET"]
        assert not any(token for *_, token in elsewhere.requests)


def test_a_redirect_to_other_bytes_is_refused(hub: Hub, build: Call) -> None:
    with serving(Hub(hub.files, corrupt=True)) as elsewhere:
        hub.redirect_to = elsewhere.url.replace("127.0.0.1", "localhost")
        done = build()
        assert done.returncode == 3
        assert "has the sha256" in done.stderr


def test_through_a_proxy(tmp_path: Path, hub: Hub, build: Call) -> None:
    with serving(Hub(hub.files)) as proxy:
        # The name resolves nowhere: only the proxy can answer for it.
        done = build(HF_ENDPOINT="http://hub.invalid", HTTP_PROXY=proxy.url, http_proxy=proxy.url, NO_PROXY="")
        assert done.returncode == 0, done.stderr
        assert len(gets(proxy)) == 2
    assert not hub.requests


def test_a_hub_out_of_reach(build: Call) -> None:
    done = build(HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 3
    assert "the hub is out of reach" in done.stderr
    assert "the same command resumes" in done.stderr


def test_what_huggingface_hubs_own_cache_holds_is_not_fetched_again(
    tmp_path: Path, hub: Hub, build: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in hub.files:
        fetched = subprocess.run(
            [sys.executable, "-c", "import sys, huggingface_hub as h; h.hf_hub_download(*sys.argv[1:3],"
             " repo_type='dataset', revision=sys.argv[3])", REPO, name, COMMIT],
            env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}, capture_output=True, text=True,
        )  # fmt: skip
        assert fetched.returncode == 0, fetched.stderr
    hub.requests.clear()
    done = build("--offline")
    assert done.returncode == 0, done.stderr
    assert not hub.requests


def test_offline_without_a_cache(hub: Hub, build: Call) -> None:
    done = build("--offline")
    assert done.returncode == 3
    assert "is not downloaded yet, and --offline forbids downloads" in done.stderr
    assert not hub.requests


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="a small file system needs root and mount")
def test_a_full_disk_then_space(tmp_path: Path, hub: Hub, build: Call) -> None:
    place = tmp_path / "small"
    place.mkdir()
    name = next(iter(hub.files))
    # Content that no file system can shrink, larger than the disk.
    hub.files = {name: hub.files[name], "data/refcoco_unc_zz-0.parquet": os.urandom(2_000_000)}
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        done = build(REFBENCH_HOME=str(place))
        assert done.returncode == 3
        assert "cannot be written: No space left on device" in done.stderr
        assert "free space, or set REFBENCH_HOME" in done.stderr
        assert "Traceback" not in done.stderr
        subprocess.run(["mount", "-o", "remount,size=32m", str(place)], check=True)
        # Now it comes, and is told to be no table.
        later = build(REFBENCH_HOME=str(place))
        assert "is not a readable Parquet file" in later.stderr
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def test_photographs_from_the_hub(tmp_path: Path, hub: Hub, refbench: Call) -> None:
    annotations = mini.write_grefcoco(tmp_path, *mini.grefs())
    sources = write_sources(tmp_path / "mine.toml", hub)
    sources.write_text(sources.read_text().replace("[hub]", "[images]").replace("[[hub.", "[[images."))
    done = refbench(
        "build", "grefcoco", "--annotations", annotations, "--images", "hub", "--sources", sources,
        HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "hf"), REFBENCH_HOME=str(tmp_path / "home"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "home" / "datasets" / "grefcoco" / "images" / mini.file_name(1)).is_file()


def test_what_the_hub_does_not_hold(refbench: Call, tmp_path: Path) -> None:
    done = refbench("build", "reasonseg", "--from", "hub", REFBENCH_HOME=str(tmp_path))
    assert done.returncode == 3
    assert "refbench has no download location for reasonseg" in done.stderr
    both = refbench("build", "refcoco", "--from", "hub", "--annotations", tmp_path)
    assert both.returncode == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('revision = "', 'version = "'), "'revision' is missing or invalid"),
        (('sha256 = "', 'sha256 = "xyz'), "is not a valid sha256"),
        (("[hub]", "[hub"), "is not valid TOML"),
        (("[[hub.files]]", "[[hub.file]]"), r"'files' is missing or invalid"),
    ],
)
def test_broken_sources(tmp_path: Path, hub: Hub, build: Call, change: tuple[str, str], message: str) -> None:
    sources = write_sources(tmp_path / "mine.toml", hub)
    sources.write_text(sources.read_text().replace(*change))
    done = build(sources=sources)
    assert done.returncode == 3
    assert message in done.stderr
