"""`tinystory page`: a session file becomes a page, or one line says why not."""

import pytest

from tinystory.cli import main


@pytest.fixture(scope="module")
def session_file(tmp_path_factory):
    """A session that a chat has saved: one story of the shipped model."""

    from tinystory.decoding.plugins import discover
    from tinystory.decoding.spec import parse_spec
    from tinystory.repl.export import export
    from tinystory.studio.backend import ModelBackend
    from tinystory.studio.studio import Studio

    registry = discover(user_folder=None)
    backend = ModelBackend.open(None, dtype="float32", device="cpu")
    backend.wait(lambda: False)
    studio = Studio(
        registry, parse_spec("top-k 5 | sample", registry), backend=backend, open_model=lambda name: backend, seed=7,
        max_tokens=8,
    )  # fmt: skip
    for _ in studio.write((studio.next_turn("Once upon a time"),), lambda: False):
        pass
    path = tmp_path_factory.mktemp("session") / "story.json"
    export(studio, path)
    export(studio, path.with_suffix(".html"))
    return path


def test_the_page_never_replaces_the_session(session_file, tmp_path, capsys):
    session, link = tmp_path / "story.json", tmp_path / "link"
    session.write_bytes(session_file.read_bytes())
    link.symlink_to(session)
    for out in (session, link):
        assert main(["page", str(session), "-o", str(out)]) == 2
        assert "would be replaced, and it is a file that is read here; give another name" in capsys.readouterr().err
    assert session.read_bytes() == session_file.read_bytes()


def test_a_session_becomes_a_page(session_file, tmp_path, capsys):
    out = tmp_path / "story.html"
    assert main(["page", str(session_file), "-o", str(out), "--whatif", "greedy"]) == 0
    assert "is ready" in capsys.readouterr().err
    content = out.read_text(encoding="utf-8")
    assert "top-k 5 | sample 1 · seed 7 · default" in content
    assert main(["page", str(session_file), "-q"]) == 0
    streamed = capsys.readouterr()
    assert streamed.out == session_file.with_suffix(".html").read_text(encoding="utf-8")
    assert not streamed.err


def test_a_model_that_a_file_names_is_not_opened(session_file, tmp_path, capsys):
    other = tmp_path / "other.json"
    other.write_text(session_file.read_text().replace('"model": "default"', '"model": "/elsewhere"'))
    assert main(["page", str(other)]) == 0
    assert "no alternatives" in capsys.readouterr().out
    assert main(["page", str(other), "-m", "default"]) == 0
    assert "no alternatives" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{file}", "--whatif", "nonsense"], 2, "no decoder stage is called"),
        (["{folder}/missing.json"], None, "missing.json"),
        (["{file}", "-o", "{folder}/no/such/folder.html"], 1, "folder.html"),
    ],
)
def test_mistakes_are_told(session_file, tmp_path, capsys, arguments, code, message):
    arguments = [argument.format(file=session_file, folder=tmp_path) for argument in arguments]
    got = main(["page", *arguments])
    err = capsys.readouterr().err
    assert message in err
    assert got == (main(["replay", arguments[0]]) if code is None else code)
    assert len(err.splitlines()) <= 2
