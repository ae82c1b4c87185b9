"""The server answers its token, its folder and its own address; nothing else."""

import http.client
import threading

import pytest

from osteomorph.errors import InputError
from osteomorph.view import HOST, Server, allowed, first_page


@pytest.fixture
def served(tmp_path):
    folder = tmp_path / "result"
    (folder / "inner").mkdir(parents=True)
    (folder / "report.html").write_text("the report")
    (folder / "inner" / "a b.html").write_text("inner")
    (folder / "moved.nii.gz").write_bytes(b"voxels")
    (folder / ".hidden.html").write_text("hidden")
    (tmp_path / "secret.html").write_text("secret")
    (tmp_path / "result2").mkdir()
    (tmp_path / "result2" / "report.html").write_text("secret")
    (folder / "link.html").symlink_to(tmp_path / "secret.html")
    with Server(folder) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server, path, host=None, method="GET"):
    connection = http.client.HTTPConnection(*server.server_address, timeout=10)
    connection.putrequest(method, path, skip_host=True)
    for one in [host or f"{HOST}:{server.server_address[1]}"] if not isinstance(host, list) else host:
        connection.putheader("Host", one)
    connection.endheaders()
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content, answer


def test_token_opens_the_report(served):
    status, content, answer = ask(served, f"/{served.token}/report.html")
    assert (status, content) == (200, b"the report")
    assert answer.headers["Content-Type"].startswith("text/html")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert ask(served, f"/{served.token}/inner/a%20b.html")[:2] == (200, b"inner")
    assert ask(served, f"/{served.token}/report.html", method="HEAD")[:2] == (200, b"")


def test_server_listens_on_loopback_alone(served):
    assert served.server_address[0] == "127.0.0.1"
    assert served.url("report.html").startswith("http://127.0.0.1:")


@pytest.mark.parametrize(
    "path", ["/report.html", "/", "/wrong/report.html", "//report.html", "/{short}/report.html", "/{token}x/report.html"]
)
def test_without_the_token_nothing_is_there(served, path):
    path = path.format(token=served.token, short=served.token[:-1])
    assert ask(served, path)[:2] == (404, b"Not Found")


@pytest.mark.parametrize(
    "path",
    [
        "../secret.html",
        "%2e%2e/secret.html",
        "..%2fsecret.html",
        "inner/../../secret.html",
        "inner/%2e%2e/%2e%2e/secret.html",
        "..%5csecret.html",
        "../result2/report.html",
        "/{outside}/secret.html",
        "%2f{outside}/secret.html",
        "link.html",
        ".hidden.html",
        "report.html%00.png",
        "%ff.html",
        "moved.nii.gz",
        "inner",
        "",
    ],
)
def test_nothing_outside_the_folder_is_served(served, path):
    path = path.format(outside=str(served.folder.parent))
    status, content, _ = ask(served, f"/{served.token}/{path}")
    assert (status, content) == (404, b"Not Found")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "127.0.0.1.evil.example:{port}"]
)
def test_other_hosts_are_refused(served, host):
    host = host.format(port=served.server_address[1])
    assert ask(served, f"/{served.token}/report.html", host=host)[:2] == (403, b"Forbidden")


def test_two_hosts_or_none_are_refused(served):
    own = f"{HOST}:{served.server_address[1]}"
    assert ask(served, f"/{served.token}/report.html", host=[own, "evil.example"])[0] == 403
    assert ask(served, f"/{served.token}/report.html", host=[])[0] == 403


def test_other_methods_are_refused(served):
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert ask(served, f"/{served.token}/report.html", method=method)[0] == 501


def test_tokens_differ(tmp_path):
    with Server(tmp_path) as one, Server(tmp_path) as other:
        assert one.token != other.token
        assert len(one.token) >= 40


def test_allowed_compares_whole_folders(tmp_path):
    (tmp_path / "report.html").write_text("x")
    assert allowed(tmp_path.resolve(), "t", "/t/report.html?x=1#y") == tmp_path.resolve() / "report.html"
    assert allowed(tmp_path.resolve(), "t", "/ü/report.html") is None


def test_first_page(tmp_path):
    with pytest.raises(InputError, match="osteomorph report"):
        first_page(tmp_path)
    (tmp_path / "report.html").write_text("x")
    assert first_page(tmp_path) == "report.html"
    (tmp_path / "cohort.html").write_text("x")
    assert first_page(tmp_path) == "cohort.html"
    with pytest.raises(InputError, match="no folder"):
        first_page(tmp_path / "absent")
