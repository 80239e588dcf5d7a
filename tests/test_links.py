"""`make links`: which addresses count as dead."""

import http.server
import threading

import made_up
import pytest

from tools import links


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers ``/404`` with 404."""

    def do_GET(self):
        self.send_response(int(self.path.strip("/")))
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


@pytest.fixture
def base():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_links(tmp_path, base, capsys):
    root = made_up.book(tmp_path / "a")
    (root / "book" / "references.md").write_text("# References\n")  # no other addresses
    addresses = [*(f"{base}{k}" for k in (200, 403, 404, 503)), "http://127.0.0.1:1/"]
    page = "# Welcome\n\n" + "\n".join(f"<{x}>" for x in addresses)
    (root / "book" / "index.md").write_text(page)
    assert links.main(["--root", str(root)]) == 1
    said, complaints = capsys.readouterr()
    assert "2 of 5 addresses do not answer" in said
    dead = {x.partition(": ")[2].partition(": ")[0] for x in complaints.splitlines()}
    assert dead == {addresses[2], addresses[4]}
    (root / "book" / "index.md").write_text(f"# Welcome\n\n<{base}200>")
    assert links.main(["--root", str(root)]) == 0


def test_a_book_that_cannot_be_read(tmp_path):
    root = made_up.book(tmp_path / "a")
    (root / "_toc.yml").write_text("nonsense")
    with pytest.raises(RuntimeError, match="no address was asked"):
        links.asked(root)
