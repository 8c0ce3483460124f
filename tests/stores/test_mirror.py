"""A folder of a store as a directory: what is copied where, and when."""

import json

import pytest

from mvlm_jax.errors import RunError, UserError
from mvlm_jax.files import write_json
from mvlm_jax.stores import mirror, objects
from mvlm_jax.stores.mirror import fetched, local_path, mirror_of, opened, parts_of, shown
from mvlm_jax.stores.objects import Store, StoreError, is_relative, parse


def line(step):
    return json.dumps({"step": step}) + "\n"


def stored(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("text", ["gs://bucket", "gs://", "s3:///run", "gs://bucket/../run", "gs://Bu cket/run"])
def test_an_address_that_names_no_folder_in_a_bucket_is_refused(text):
    with pytest.raises(
        UserError, match=r"^--workdir='.*' names no folder in a bucket; it is written (gs|s3)://BUCKET/F"
    ):
        parse(text, name="--workdir")


def test_an_address_has_one_form():
    assert str(parse("gs://bucket//runs/a/")) == "gs://bucket/runs/a"


@pytest.mark.parametrize(
    "raised, reason",
    [
        ("PERMISSION_DENIED: Forbidden [http_response_code='403']", "no permission (PERMISSION_DENIED: Forbidden)"),
        ("NOT_FOUND: Not Found [x]", "no such bucket (NOT_FOUND: Not Found)"),
        ("ABORTED: All 9 retry attempts failed: CURL error [curl_code='7']",
         "it cannot be reached (ABORTED: All 9 retry attempts failed: CURL error)"),
    ],
)  # fmt: skip
def test_what_the_library_raises_becomes_one_line(raised, reason):
    assert objects._reason(ValueError(raised)) == reason


@pytest.mark.parametrize(
    "name, below",
    [("a", True), ("eval/a b.json", True), ("..a/b..", True), ("../a", False), ("a/../../b", False)]
    + [(name, False) for name in ("/etc/a", "a//b", "./a", "a/.", "a\0b", "")],
)
def test_only_a_name_of_a_file_below_the_folder_becomes_a_file(name, below):
    assert is_relative(name) == below


def test_an_object_whose_name_leads_out_of_the_folder_is_left_alone(bucket, monkeypatch, caplog):
    class Listed:
        KeyRange = None

        def list(self, _):
            return [b"config.json", b"../../escaped", b"/etc/escaped", b"folder/"]

    monkeypatch.setattr(Store, "_open", lambda self: Listed())
    monkeypatch.setattr(Store, "_result", lambda self, listed: listed)
    assert Store(parse("gs://bucket/run")).names() == ["config.json"]
    assert "'../../escaped' is no name of a file" in caplog.text


def test_a_cache_directory_that_is_relative_is_not_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert mirror.cache_directory() == tmp_path / ".cache" / "mvlm-jax" / "stores"


def test_what_changes_in_the_copy_is_written_to_the_store(bucket):
    with opened("gs://bucket/run") as directory:
        copy = mirror_of(directory / "eval")
        write_json(directory / "eval" / "a.json", [1])
        (directory / ".lock").touch()
        (directory / "checkpoints").mkdir()
        (directory / "checkpoints" / "file").touch()  # they go another way
        copy.push()
        assert list(stored(bucket / "run")) == ["eval/a.json"]
        write_json(directory / "eval" / "a.json", [1, 2])
    assert json.loads((bucket / "run" / "eval" / "a.json").read_bytes()) == [1, 2]
    assert not directory.exists()


def test_the_copy_begins_with_what_the_store_holds(bucket):
    with opened("gs://bucket/run") as directory:
        write_json(directory / "config.json", {})
        (directory / "metrics.jsonl").write_text(line(1) + line(2) + '{"st')  # cut short by a kill
        (directory / "events.tfevents.1").touch()
    assert sorted(stored(bucket / "run")) == ["config.json", "events.tfevents.1", "metrics/000000.jsonl"]
    (bucket / "run" / "checkpoints" / "3").mkdir(parents=True)
    (bucket / "run" / "checkpoints" / "3" / "large").touch()
    directory = fetched("gs://bucket/run")
    assert (directory / "metrics.jsonl").read_text() == line(1) + line(2)
    assert sorted(path.name for path in directory.iterdir()) == ["checkpoints", "config.json", "metrics.jsonl"]
    assert not any((directory / "checkpoints").iterdir())


def test_a_file_has_an_address_too(bucket, monkeypatch):
    monkeypatch.setattr(Store, "names", lambda *_: [])  # as a store lists an object; a disk lists no file
    (bucket / "texts").mkdir()
    (bucket / "texts" / "tokenizer.json").write_text("{}")
    assert fetched("gs://bucket/texts/tokenizer.json").read_text() == "{}"


def test_a_log_is_written_in_parts_and_cut_where_it_was_cut(bucket, monkeypatch):
    monkeypatch.setattr(mirror, "PART_BYTES", 30)
    written = []
    write = Store._each

    def noted(self, names, call, **options):
        names = list(names)
        written.extend(names)
        yield from write(self, names, call, **options)

    monkeypatch.setattr(Store, "_each", noted)
    lines = [line(step) for step in range(10, 20)]  # of 13 bytes each, three to a part
    with opened("gs://bucket/run") as directory:
        log, copy = directory / "metrics.jsonl", mirror_of(directory)
        log.write_text("".join(lines[:7]))
        copy.push()
        assert written == [f"metrics/00000{part}.jsonl" for part in range(3)]
        written.clear()
        log.write_text("".join(lines))
        copy.push()
        assert written == ["metrics/000002.jsonl", "metrics/000003.jsonl"]
        written.clear()
        log.write_text("".join(lines[:4]))  # a run that is resumed
        copy.push()
        assert written == ["metrics/000003.jsonl", "metrics/000002.jsonl", "metrics/000001.jsonl"]
        assert "".join(value.decode() for _, value in sorted(stored(bucket / "run").items())) == "".join(lines[:4])


def test_parts_are_the_log_but_for_an_unfinished_line():
    assert parts_of(b"") == parts_of(b"ab") == []
    assert parts_of(b"a\nb\nc") == [b"a\nb\n"]


def test_the_file_that_shows_that_a_folder_is_whole_is_written_last(bucket, monkeypatch):
    written = []
    write_all = Store.write_all

    def noted(self, contents, **options):
        written.append(sorted(contents))
        write_all(self, contents, **options)

    monkeypatch.setattr(Store, "write_all", noted)
    with opened("gs://bucket/export") as directory:
        for name in ("config.json", "a.json", "z.json"):
            write_json(directory / name, {})
    assert written == [["a.json", "z.json"], ["config.json"]]


def test_a_page_is_written_beside_what_others_left_there(bucket):
    (bucket / "pages").mkdir()
    (bucket / "pages" / "old.html").write_text("old")
    file = local_path("gs://bucket/pages/new.html", as_file=True)
    file.write_text("new")
    mirror.close_all(failed=False)
    assert stored(bucket / "pages") == {"old.html": b"old", "new.html": b"new"}


def test_messages_name_the_address_and_not_its_copy(bucket):
    directory = local_path("s3://bucket/runs/a")
    assert shown(f"--workdir={directory}/x") == "--workdir=s3://bucket/runs/a/x"


def test_a_store_that_fails_ends_the_work_in_one_line(bucket, monkeypatch):
    def refused(self, contents, **options):
        raise StoreError("no permission (PERMISSION_DENIED: Forbidden)", str(self.address))

    monkeypatch.setattr(Store, "write_all", refused)
    monkeypatch.setattr(mirror, "PUSH_SECONDS", 0.01)
    with pytest.raises(RunError, match=r"^gs://bucket/run cannot be written to any more: no permission .*; once that"):
        with opened("gs://bucket/run") as directory, mirror_of(directory).kept():
            write_json(directory / "a.json", {})
            while True:
                mirror_of(directory).check()
