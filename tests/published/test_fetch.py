"""Downloads: once, whole or not at all, gone on with, looked over, by several processes at once."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest

from songbloom.distributed import World
from songbloom.errors import UserError
from songbloom.published import fetch as downloads
from songbloom.published.fetch import REMOTE_PREFIX, fetch
from tests.published.server import Server

ROOT = Path(__file__).parents[2]
CONTENT = bytes(range(256)) * 40
ADDRESS = f"{REMOTE_PREFIX}some/x.tar"


def kept(tmp_path: Path) -> list[str]:
    """What the cache folder shows."""
    return sorted(path.name for path in (tmp_path / "cache" / "some").glob("[!.]*"))


def beginnings(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "some").glob(".*.partial"))


def again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a new process: nothing has been looked over yet."""
    monkeypatch.setattr(downloads, "_checked", {})


def break_off() -> None:
    """Fetch in vain, without a second attempt."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(downloads, "_worth_another", lambda error: False)
        with pytest.raises(UserError, match="download failed"):
            fetch(ADDRESS)


class TestWhole:
    def test_once_and_then_from_the_cache(
        self, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server.content = CONTENT
        for _ in range(2):
            path = fetch(ADDRESS)
            assert path == tmp_path / "cache" / "some" / "x.tar"
            assert path.read_bytes() == CONTENT
            assert downloads.was_checked(path)
            again(monkeypatch)
        assert server.requests == ["/some/x.tar None"]
        assert kept(tmp_path) == ["x.tar", "x.tar.sha256"]
        assert beginnings(tmp_path) == []
        line, comment = (tmp_path / "cache" / "some" / "x.tar.sha256").read_text().splitlines()
        assert line == f"{hashlib.sha256(CONTENT).hexdigest()}  x.tar"
        changed = path.stat().st_mtime_ns
        assert comment == f"# right when it had {len(CONTENT)} bytes and was changed at {changed} ns"

    def test_a_file_that_was_right_is_not_read_for_its_checksum(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server.content = CONTENT
        path = fetch(ADDRESS)
        digest = hashlib.sha256(CONTENT).hexdigest()
        again(monkeypatch)
        with monkeypatch.context() as patch:
            patch.setattr(downloads, "_hash", lambda *given: pytest.fail("it was read"))
            assert downloads.sha256_of(path) == digest
        path.write_bytes(CONTENT[:-1] + b"!")
        assert downloads.sha256_of(path) == hashlib.sha256(CONTENT[:-1] + b"!").hexdigest()
        path.write_bytes(CONTENT)
        downloads.look_over(path)  # right again, at another time
        again(monkeypatch)
        monkeypatch.setattr(downloads, "_hash", lambda *given: pytest.fail("it was read"))
        assert downloads.sha256_of(path) == digest

    @pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
    def test_sha256sum_reads_what_lies_beside(self, server: Server) -> None:
        server.content = CONTENT
        path = fetch(ADDRESS)
        command = ["sha256sum", "--strict", "-c", f"{path.name}.sha256"]
        subprocess.run(command, cwd=path.parent, check=True, capture_output=True, timeout=60)

    def test_a_folder_may_be_chosen(self, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        server.content = CONTENT
        monkeypatch.setattr(downloads, "_folder", [])
        downloads.use_cache_folder("")
        assert downloads.cache_folder() == tmp_path / "cache"
        downloads.use_cache_folder(tmp_path / "mine")
        assert fetch(ADDRESS) == tmp_path / "mine" / "some" / "x.tar"

    def test_files_are_themselves(self) -> None:
        assert fetch("logs/x.tar") == Path("logs/x.tar")

    def test_a_file_put_there_by_hand_is_taken(self, server: Server, tmp_path: Path) -> None:
        path = tmp_path / "cache" / "some" / "x.tar"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"by hand")
        assert fetch(ADDRESS).read_bytes() == b"by hand"
        assert server.requests == []
        assert not downloads.was_checked(path)  # so loading has to look it over

    def test_later_damage_is_noticed(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        server.content = CONTENT
        path = fetch(ADDRESS)
        path.write_bytes(CONTENT[:-1] + b"!")
        for forget in (lambda: None, lambda: again(monkeypatch)):
            forget()
            with pytest.raises(UserError, match=r"x\.tar: is damaged .* delete the file to download it again"):
                fetch(ADDRESS)
        path.unlink()
        assert fetch(ADDRESS).read_bytes() == CONTENT


class TestBreakingOff:
    @pytest.mark.parametrize("tagged", [True, False])
    def test_it_goes_on_by_itself(self, server: Server, tagged: bool) -> None:
        server.content, server.broken_off_at, server.tagged = CONTENT, 4000, tagged
        assert fetch(ADDRESS).read_bytes() == CONTENT
        assert server.requests == ["/some/x.tar None", "/some/x.tar bytes=4000-", "/some/x.tar bytes=8000-"]

    def test_it_is_not_trusted_and_a_later_process_goes_on(self, server: Server, tmp_path: Path) -> None:
        server.content, server.broken_off_at = CONTENT, 4000
        program = f"from songbloom.published import fetch; fetch.fetch({ADDRESS!r})"
        shorter = f"from songbloom.published import fetch; fetch._worth_another = lambda error: False\n{program}"
        for code, status in ((shorter, 1), (program, 0)):
            done = subprocess.run(
                [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
            )
            assert done.returncode == status, done.stderr
            if status:
                assert "x.tar: download failed (got 4000 of 10240 bytes); try again, or put the file at" in done.stderr
                assert kept(tmp_path) == []
                server.broken_off_at = None
        assert (tmp_path / "cache" / "some" / "x.tar").read_bytes() == CONTENT
        assert server.requests == ["/some/x.tar None", "/some/x.tar bytes=4000-"]

    def test_a_server_that_sends_nothing_more_is_given_up(self, server: Server) -> None:
        server.content, server.broken_off_at = CONTENT, 0
        with pytest.raises(UserError, match=r"download failed \(got 0 of 10240 bytes\)"):
            fetch(ADDRESS)
        assert len(server.requests) == downloads.ATTEMPTS

    def test_a_server_that_is_busy_is_asked_again(self, server: Server) -> None:
        server.content, server.failing = CONTENT, 2
        assert fetch(ADDRESS).read_bytes() == CONTENT

    def test_a_server_without_ranges_is_heard_from_the_beginning(self, server: Server) -> None:
        server.content, server.broken_off_at, server.ranges = CONTENT, 4000, False
        with pytest.raises(UserError, match="got 4000 of 10240"):
            fetch(ADDRESS)
        server.broken_off_at = None
        assert fetch(ADDRESS).read_bytes() == CONTENT

    @pytest.mark.parametrize("tagged", [True, False])
    def test_another_file_under_the_same_name_begins_anew(self, server: Server, tagged: bool) -> None:
        server.content, server.broken_off_at, server.tagged = CONTENT, 4000, tagged
        break_off()
        server.content, server.broken_off_at = CONTENT[::-1] + b"longer", None
        assert fetch(ADDRESS).read_bytes() == server.content

    def test_a_beginning_that_is_whole_already(self, server: Server, tmp_path: Path) -> None:
        server.content, server.broken_off_at = CONTENT, 4000
        break_off()
        (partial,) = beginnings(tmp_path)
        partial.write_bytes(CONTENT)  # as a process leaves it that is killed before it renames
        assert fetch(ADDRESS).read_bytes() == CONTENT

    def test_a_beginning_that_is_whole_already_and_wrong(self, server: Server, tmp_path: Path) -> None:
        server.content, server.broken_off_at, server.md5 = CONTENT, 4000, "right"
        break_off()
        (partial,) = beginnings(tmp_path)
        partial.write_bytes(CONTENT[:-1] + b"!")
        with pytest.raises(UserError, match="not what it should be: its MD5 is not"):
            fetch(ADDRESS)
        assert beginnings(tmp_path) == []
        server.broken_off_at = None
        assert fetch(ADDRESS).read_bytes() == CONTENT

    def test_a_beginning_that_is_too_long(self, server: Server, tmp_path: Path) -> None:
        server.content, server.broken_off_at = CONTENT, 4000
        break_off()
        (partial,) = beginnings(tmp_path)
        partial.write_bytes(CONTENT + b"more")
        server.broken_off_at = None
        assert fetch(ADDRESS).read_bytes() == CONTENT


class TestWrong:
    def test_a_wrong_md5(self, server: Server, tmp_path: Path) -> None:
        server.content, server.md5 = CONTENT, "AAAAAAAAAAAAAAAAAAAAAA=="
        with pytest.raises(UserError, match=r"not what it should be: its MD5 is not 0{32}, as the server says"):
            fetch(ADDRESS)
        assert kept(tmp_path) == [] and beginnings(tmp_path) == []
        server.md5 = "right"
        assert fetch(ADDRESS).read_bytes() == CONTENT

    def test_a_checksum_that_a_person_put_beside(self, server: Server, tmp_path: Path) -> None:
        server.content = CONTENT
        beside = tmp_path / "cache" / "some" / "x.tar.sha256"
        beside.parent.mkdir(parents=True)
        beside.write_text(f"{'0' * 64}  x.tar\n")
        with pytest.raises(UserError, match=r"its SHA-256 is [0-9a-f]{64}, and .*x\.tar\.sha256 says 0{64}"):
            fetch(ADDRESS)
        assert kept(tmp_path) == ["x.tar.sha256"] and beginnings(tmp_path) == []
        beside.write_text(f"{hashlib.sha256(CONTENT).hexdigest()}  x.tar\n")
        assert fetch(ADDRESS).read_bytes() == CONTENT
        beside.write_text("not a checksum")
        (beside.parent / "x.tar").unlink()
        with pytest.raises(UserError, match="is no SHA-256 of 64 digits"):
            fetch(ADDRESS)

    def test_less_than_the_weights_take(self, server: Server) -> None:
        server.content = CONTENT
        with pytest.raises(UserError, match="it has 10,240 bytes, and the weights alone are 7,515,916"):
            fetch(f"{REMOTE_PREFIX}jukebox/models/5b/vqvae.pth.tar")

    def test_addresses_that_cannot_be(self, server: Server) -> None:
        with pytest.raises(UserError, match=r"download failed \(Not Found\)"):
            fetch(f"{REMOTE_PREFIX}missing")
        assert len(server.requests) == 1  # asking again would not help
        with pytest.raises(UserError, match="only addresses under"):
            fetch("https://example.org/x.tar")
        with pytest.raises(UserError, match="not the address of a file"):
            fetch(f"{REMOTE_PREFIX}../x.tar")
        server.shutdown()
        server.server_close()
        with pytest.raises(UserError, match=r"download failed \(.*refused"):
            fetch(f"{REMOTE_PREFIX}x.tar")


class TestDisk:
    def test_a_disk_without_room_is_not_filled(
        self, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server.content = CONTENT
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
        with pytest.raises(UserError, match=r"x\.tar needs 0\.0 GB more, .*; free space or choose another --cache_dir"):
            fetch(ADDRESS)
        assert len(server.requests) == 1
        assert kept(tmp_path) == []

    def test_a_disk_that_fills_up_meanwhile(self, server: Server, tmp_path: Path) -> None:
        """The system lets a process write no more than 5000 bytes into a file; what came is kept, and gone on from."""
        server.content = CONTENT
        program = (
            "import resource, sys\nfrom songbloom.published import fetch\n"
            "if len(sys.argv) > 1: resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
            f"fetch.fetch({ADDRESS!r})"
        )
        for limit, status in ((["limit"], 1), ([], 0)):
            command = [sys.executable, "-B", "-c", program, *limit]  # -B: the limit would cut bytecode short
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
            assert done.returncode == status, done.stderr
            if limit:
                assert (
                    "x.tar: download failed (File too large); free space or choose another --cache_dir" in done.stderr
                )
                assert kept(tmp_path) == []
        assert server.requests[1:] == ["/some/x.tar bytes=5000-"]
        assert (tmp_path / "cache" / "some" / "x.tar").read_bytes() == CONTENT

    def test_a_folder_that_cannot_be_written(self, server: Server, tmp_path: Path) -> None:
        (tmp_path / "cache").write_text("a file where the folder should be")
        with pytest.raises(UserError, match=r"x\.tar: download failed"):
            fetch(ADDRESS)


class TestTogether:
    def test_two_processes_fetch_one_file_once(self, server: Server, tmp_path: Path) -> None:
        server.content = CONTENT * 400
        program = f"from songbloom.published import fetch; print(fetch.fetch({ADDRESS!r}).stat().st_size)"
        both = [
            subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        for process in both:
            assert process.communicate(timeout=600)[0].split()[-1] == str(len(server.content))
        assert server.requests == ["/some/x.tar None"]

    def test_one_rank_of_a_host_downloads_and_a_failure_ends_all(self, server: Server, tmp_path: Path) -> None:
        server.content = CONTENT
        program = tmp_path / "program.py"
        program.write_text(
            "import sys\n"
            "from songbloom import distributed\n"
            "from songbloom.published.fetch import REMOTE_PREFIX, fetch, was_checked\n"
            "def main():\n"
            "    distributed.start('cpu')\n"
            "    path = fetch(REMOTE_PREFIX + sys.argv[1])\n"
            "    sizes = distributed.gather_objects((path.stat().st_size, was_checked(path)))\n"
            "    distributed.say('sizes', sizes)\n"
            "distributed.run(main)\n"
        )
        mpiexec = Path(sysconfig.get_path("scripts")) / "mpiexec"

        def ranks(name: str) -> subprocess.CompletedProcess[str]:
            command = [str(mpiexec), "-n", "2", sys.executable, str(program), name]
            return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)

        done = ranks("x.tar")
        assert done.returncode == 0, done.stderr
        assert "sizes [(10240, True), (10240, True)]" in done.stdout
        assert server.requests == ["/x.tar None"]
        failed = ranks("missing")
        assert failed.returncode == 2
        assert (failed.stdout + failed.stderr).count("download failed (Not Found)") == 1


def test_one_rank_of_a_host_looks_files_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, seen = [tmp_path / name for name in ("a.tar", "b.tar")], []
    for path in paths:
        path.write_bytes(b"x")
    downloads.check_together(paths, seen.append)
    downloads.check_together(paths, seen.append)
    assert seen == paths and all(map(downloads.was_checked, paths))
    paths[1].write_bytes(b"xy")
    monkeypatch.setattr(downloads, "world", lambda: World(rank=1, size=1, local_rank=1, local_size=2))
    downloads.check_together(paths, seen.append)  # another rank has looked
    assert seen == paths and downloads.was_checked(paths[1])
    monkeypatch.undo()
    paths[0].write_bytes(b"xyz")

    def damaged(path: Path) -> None:
        raise UserError(f"{path}: damaged")

    with pytest.raises(UserError, match=r"a\.tar: damaged"):
        downloads.check_together(paths, damaged)
    assert not downloads.was_checked(paths[0])
