"""The login of next_steps/web: who comes in, what each may, and what is tried to get around it."""

import argparse
import asyncio
import contextlib
import os
import re
import sqlite3
import ssl
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from conftest import Process, examples, needs_postgres, posix, wait_until
from playwright.sync_api import expect
from postgres import Postgres
from test_web import README, Site, ask, chromium, command, environment, live, needs_browser, user, window  # noqa: F401

from next_steps.history.database import address, connect
from next_steps.security import certificates
from next_steps.web import accounts
from next_steps.web.access import ANYONE, RIGHTS, TRIES
from next_steps.web.accounts import PASSWORD, ROLES, Users
from next_steps.web.app import create_app

PASSWORDS = {"ana": "correct horse battery", "bob": "another long password"}
ROLE = {"ana": "manager", "bob": "viewer"}
ID = "123e4567-e89b-12d3-a456-426614174000"


def manage(folder, *words, password="", status=0):
    """Return what next_steps.web.users prints, with a password through a pipe."""
    managed = Process(sys.executable, "-m", "next_steps.web.users", *words, **environment(folder))
    managed.popen.stdin.write(password + "\n")
    managed.popen.stdin.close()
    assert managed.wait() == status, managed
    return managed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the shared page has its databases."""
    folder = tmp_path_factory.mktemp("login")
    for name, role in ROLE.items():
        manage(folder, "add", name, "--role", role, password=PASSWORDS[name])
    return folder


@pytest.fixture(scope="module")
def site(bootstrap, folder):
    """A page that wants a login. Its address counts no failed logins of others: each test has an address of its own."""
    topic = f"test-{os.urandom(6).hex()}"
    process = Process(*command(bootstrap, topic, "--max-rate", "10000"), **environment(folder))
    try:
        yield Site(process, bootstrap, topic)
        assert process.stop() == 0
    finally:
        process.end()


@pytest.fixture
def visitor(site):
    """A function that returns a client at an address of its own, logged in by that name."""
    with contextlib.ExitStack() as stack:

        def come(name=None, password=None, host=None):
            transport = httpx.HTTPTransport(local_address=host or f"127.{os.urandom(1)[0]}.{os.urandom(1)[0]}.7")
            client = stack.enter_context(httpx.Client(base_url=site.url, transport=transport, timeout=20))
            if name:
                answer = log_in(client, name, password)
                assert (answer.status_code, answer.headers["location"]) == (303, "/"), answer.text
            return client

        yield come


def log_in(client, name, password=None, **fields):
    given = {"name": name, "password": PASSWORDS.get(name, "") if password is None else password} | fields
    return client.post("/login", data=given)


# The table.


def application(users="sqlite:///y.db"):
    """Return the application as it is made, with nothing behind it."""
    own = {"certificate": None, "name": [], "max_rate": 1, "topic": "t", "status_topic": "s", "dead_letters": "d"}
    args = argparse.Namespace(database=address("sqlite:///x.db"), users=address(users), config={}, **own)
    return create_app(args, None, None)


def routes():
    """Return each method and path that the application serves, but for the files of /static."""
    found, left = set(), [*application().router.routes]
    while left:
        route = left.pop()
        left += getattr(getattr(route, "original_router", route), "routes", None) or []
        found |= {(method, route.path) for method in getattr(route, "methods", None) or () if method != "HEAD"}
    return found


def test_each_path_is_in_the_table_and_nothing_else():
    assert routes() == set(RIGHTS)


def test_a_path_that_is_not_in_the_table_is_closed_to_all(tmp_path):
    """Even to a manager: who adds a path has to say who may use it."""
    app = application(f"sqlite:///{tmp_path / 'users.db'}")
    app.add_api_route("/new", lambda: "shown")

    async def asked() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get("/new")

    assert asyncio.run(asked()).status_code == 403


@pytest.mark.parametrize("name", [None, *ROLE])
def test_each_path_for_each_role(site, visitor, name):
    forms = {"/login": {}, "/logout": {}, "/orders": {"user": "x", "item": "y", "quantity": "1"}}
    client, wrong = visitor(name), []
    for (method, path), needed in sorted(RIGHTS.items(), key=lambda right: right[0][1] == "/logout"):  # which is last
        body = {"data": forms.get(path, {"status": "accepted", "place": "0@0"})}
        if path.startswith("/api/"):
            order = {"user": "x", "item": "y", "quantity": 1}
            body = {"json": order if path == "/api/orders" else {"status": "accepted"}}
        if path == "/login" and method == "POST":
            continue  # see test_a_login_leads_where…
        with client.stream(method, path.format(order_id=ID), **(body if method == "POST" else {})) as answer:
            status = answer.status_code
        may = needed == ANYONE or (name and ROLES.index(ROLE[name]) >= ROLES.index(needed))
        if (status in (401, 403)) == may or (not may and status != (403 if name else 401)):
            wrong.append((method, path, status))
    assert wrong == []


def test_a_stranger_is_led_to_the_login_and_sees_nothing(site, visitor):
    client = visitor()
    browser = {"Accept": "text/html"}
    for method, path in [("GET", "/?user=x&item=y"), ("POST", "/orders"), ("GET", f"/orders/{ID}"), ("GET", "/docs")]:
        answer = client.request(method, path, headers=browser)
        assert answer.status_code == 303
        assert answer.headers["location"].startswith("/login?next=%2F")
    for path in ("/no/such/path", "/static/../users.db", "/static/%2e%2e/users.db", "/login", "/api/none"):
        answer = client.get(path, headers=browser)
        assert answer.status_code in (200, 404), path
        for word in ("Orders by status", "placed", "records behind", "SQLite", "ana"):
            assert word not in answer.text, (path, word)


# Coming in and leaving.


def test_a_login_leads_where_one_wanted_to_and_never_to_another_site(site, visitor):
    client = visitor()
    assert 'value="/?user=x"' in client.get("/login?next=/%3Fuser%3Dx").text
    assert log_in(client, "ana", next="/?user=x").headers["location"] == "/?user=x"
    for other in ("//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)", "/\r\nX: y", ""):
        assert log_in(client, "ana", next=other).headers["location"] == "/", other


def test_the_cookie_is_closed_to_scripts_and_a_login_begins_a_new_session(site, visitor):
    client = visitor()
    client.cookies.set("session", "chosen-by-somebody-else")
    first = log_in(client, "ana").headers["set-cookie"]
    token = re.match("session=([^;]*);", first)[1]
    assert len(token) >= 43
    assert "HttpOnly" in first
    assert "SameSite=lax" in first
    assert "chosen" not in token
    client.cookies.clear()
    client.cookies.set("session", token)
    assert client.get("/").status_code == 200
    again = re.match("session=([^;]*);", log_in(client, "ana").headers["set-cookie"])[1]
    assert again != token
    stale = visitor()
    stale.cookies.set("session", token)
    assert stale.get("/api/orders").status_code == 401


@pytest.mark.parametrize(
    "cookie", ["", "x", "chosen-by-somebody-else", "A" * 5000, '"', "%00", "'; DROP TABLE users; --"]
)
def test_a_token_that_is_none_is_nobodys(site, visitor, cookie):
    status, _, text = ask(site, "GET", "/api/orders", {"Cookie": f"session={cookie}"})
    assert status == 401, text


def test_a_logout_ends_the_session_itself(site, visitor):
    client = visitor("ana")
    token = client.cookies["session"]
    assert client.post("/logout").headers["location"] == "/login"
    client.cookies.set("session", token)
    assert client.get("/api/orders").status_code == 401


def test_another_password_or_role_ends_the_sessions_as_does_removal(site, visitor, folder):
    manage(folder, "add", "cleo", "--role", "viewer", password="first long password")
    for words, password in ((["password", "cleo"], "second long password"), (["role", "cleo", "manager"], "")):
        client = visitor("cleo", "first long password" if "password" in words else "second long password")
        assert client.get("/api/orders").status_code == 200
        manage(folder, *words, password=password)
        assert client.get("/api/orders").status_code == 401
    assert log_in(visitor(), "cleo", "first long password").status_code == 401
    client = visitor("cleo", "second long password")
    assert client.post("/dead-letters", data={"place": "0@0"}).status_code != 403
    manage(folder, "remove", "cleo")
    assert client.get("/api/orders").status_code == 401
    assert log_in(visitor(), "cleo", "second long password").status_code == 401


def test_sessions_end_by_themselves(site, visitor, folder):
    for column, hours in (("used_at", 1), ("began_at", 12)):
        client = visitor("bob")
        assert client.get("/api/orders").status_code == 200
        with contextlib.closing(sqlite3.connect(folder / "users.db")) as connection, connection:
            connection.execute(
                f"UPDATE sessions SET {column} = datetime({column}, '-{hours} hours', '-1 minute') || '.000000' "  # noqa: S608
                "WHERE name = 'bob'"
            )
        assert client.get("/api/orders").status_code == 401


def test_a_live_page_ends_with_its_session(site, visitor):
    client = visitor("bob")
    token = client.cookies["session"]
    with client.stream("GET", "/api/events", timeout=30) as stream:
        lines = stream.iter_lines()
        next(lines)
        assert client.post("/logout").status_code == 303
        other, deadline = visitor("ana"), time.monotonic() + 30
        ended = []

        def read():
            ended.extend(lines)
            return True

        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(read)
            while not reading.done() and time.monotonic() < deadline:
                other.post("/api/orders", json={"user": "x", "item": "y", "quantity": 1})
                time.sleep(0.5)
            assert reading.done()
    assert token


# Getting around it.


def test_failed_logins_are_counted_by_name_and_by_address(site, visitor, folder):
    manage(folder, "add", "dan", "--role", "viewer", password="a long password")
    for _ in range(TRIES["name"]):
        assert log_in(visitor(), "dan", "wrong").status_code == 401
    assert log_in(visitor(), "dan", "a long password").status_code == 429
    one = visitor(host="127.9.9.9")
    answers = [log_in(one, f"nobody{n}", "wrong").status_code for n in range(TRIES["address"] + 1)]
    assert answers == [401] * TRIES["address"] + [429]
    assert log_in(one, "ana").status_code == 429
    assert log_in(visitor(), "ana").status_code == 303


def test_who_comes_in_is_not_counted(site, visitor):
    client = visitor(host="127.8.8.8")
    assert [log_in(client, "ana").status_code for _ in range(TRIES["address"] + 2)] == [303] * (TRIES["address"] + 2)


@posix
def test_many_passwords_at_once_take_no_more_memory_than_two(site, visitor):
    """Each takes 64 MiB while it is tried."""
    peak = lambda: int(re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{site.process.popen.pid}/status").read_text())[1])  # noqa: E731
    log_in(visitor(), "nobody", "wrong")
    before = peak()
    clients = [visitor() for _ in range(20)]
    with ThreadPoolExecutor(20) as pool:
        answers = [*pool.map(lambda client: log_in(client, os.urandom(4).hex(), "wrong").status_code, clients)]
    assert answers == [401] * 20
    assert peak() - before < 150 * 1024


def test_an_unknown_name_is_as_much_work_as_a_known_one(tmp_path, monkeypatch):
    users, tried = Users(address(f"sqlite:///{tmp_path / 'users.db'}")), []
    users.create()
    users.put("ana", "viewer", "a long password")
    verify = type(accounts.HASHER).verify
    monkeypatch.setattr(type(accounts.HASHER), "verify", lambda *given: tried.append(given[1][:40]) or verify(*given))
    assert not users.verify("ana", "wrong")
    assert not users.verify("nobody", "wrong")
    known, unknown = tried
    assert known.rpartition("$")[0] == unknown.rpartition("$")[0]  # by the same algorithm, with the same costs


def test_what_comes_from_another_site_neither_logs_in_nor_out(site, visitor):
    client = visitor("ana")
    for path in ("/login", "/logout", "/orders", "/api/orders"):
        for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}):
            assert client.post(path, headers=headers).status_code == 403
    assert client.get("/api/orders").status_code == 200


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "x" * 10_000, "password": "y"},
        {"name": "ana", "password": "y" * 15_000},
        {"name": "\0", "password": "\0"},
        {"name": "ana'--", "password": "x"},
        {"name": "\ud800".encode("utf-8", "surrogatepass"), "password": "x"},
        {"name": "", "password": ""},
        {},
    ],
)
def test_what_is_no_login_is_refused(site, visitor, fields):
    answer = visitor().post("/login", data=fields)
    assert answer.status_code in (400, 401, 413, 422), answer.text
    assert "session" not in answer.headers.get("set-cookie", "")


def test_a_body_that_is_too_large_or_a_foreign_host_comes_to_nothing(site, visitor):
    client = visitor("ana")
    assert client.post("/login", data={"name": "x" * 40_000}).status_code == 413
    for host in ("evil.example", "127.0.0.1.evil.example", ""):
        assert ask(site, "GET", "/login", {"Host": host})[0] == 400


def test_schemathesis_as_a_stranger_and_as_a_viewer(site, visitor, start, tmp_path):
    """As one who may nothing, or only look: it finds the refusals that the description names, and changes nothing."""
    before = visitor("ana").get("/api/orders?limit=200").json()
    description = tmp_path / "openapi.json"
    description.write_text(visitor("bob").get("/openapi.json").text)
    program = Path(sys.executable).with_name("schemathesis")
    flags = ["--exclude-path", "/api/events", "--exclude-checks"]
    flags += ["positive_data_acceptance,allow_header_conformance,negative_data_rejection,ignored_auth"]
    bounds = ["--max-examples", "10", "--generation-database", "none", "--seed", "16", "--phases", "examples,fuzzing"]
    for headers in ([], ["-H", f"Cookie: session={visitor('bob').cookies['session']}"]):
        trying = start(program, "run", description, "-u", site.url, *flags, *bounds, *headers, cwd=tmp_path)
        assert trying.wait(150) == 0, "\n".join(trying.out)
    assert visitor("ana").get("/api/orders?limit=200").json() == before


# Who did what.


def test_the_history_and_the_log_say_who_did_it(site, visitor, folder):
    client = visitor("ana", host="127.7.7.7")
    placed = client.post("/api/orders", json={"user": "x", "item": "soup", "quantity": 2}).json()["order_id"]
    wait_until(lambda: client.get(f"/api/orders/{placed}").status_code == 200, placed)
    assert client.post(f"/api/orders/{placed}/status", json={"status": "accepted"}).status_code == 200
    assert client.post(f"/orders/{placed}/status", data={"status": "preparing"}).status_code == 303
    story = client.get(f"/api/orders/{placed}").json()["story"]
    assert [event["by"] for event in story] == ["x", "ana", "ana"]
    log_in(client, "ana", "wrong")
    lines = [line.split() for line in manage(folder, "log").out if "127.7.7.7" in line]
    assert [line[1:4] for line in lines] == [["ana", "127.7.7.7", what] for what in (
        "login", "placed", "accepted", "preparing", "login")]  # fmt: skip
    assert [line[-1] for line in lines[1:4]] == [placed] * 3
    assert lines[-1][-1] == "failed"


def test_neither_passwords_nor_tokens_are_kept_as_they_are(site, visitor, folder):
    client = visitor("ana")
    content = b"".join(file.read_bytes() for file in folder.glob("users.db*"))
    assert b"$argon2id$" in content
    for secret in (*PASSWORDS.values(), client.cookies["session"]):
        assert secret.encode() not in content
    printed = "\n".join(site.process.out + site.process.err + manage(folder, "list").out)
    assert "argon2" not in printed
    assert not [secret for secret in PASSWORDS.values() if secret in printed]


# Where it is served.


def test_elsewhere_it_is_served_by_tls_and_to_users_only(bootstrap, topic, start, tmp_path, folder):
    certificate, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    ca = certificates.make_ca()
    whole = certificates.make_certificate(ca, "page", ["localhost", "127.0.0.1", "orders.example"]).decode()
    at = whole.index("-----BEGIN CERTIFICATE")
    key.write_text(whole[:at])
    certificate.write_text(whole[at:])
    tls = ["--certificate", str(certificate), "--key", str(key)]
    for flags, status, words in (
        (["--host", "0.0.0.0"], 1, "--certificate and --key"),  # noqa: S104
        (["--host", "0.0.0.0", *tls], 1, "users add"),  # noqa: S104
        (["--certificate", str(certificate)], 2, "need each other"),
        (["--certificate", str(key), "--key", str(key)], 2, "can't be used"),
        (["--certificate", str(tmp_path / "none"), "--key", str(key)], 2, "can't be used"),
        (["--host", "orders.example"], 2, "orders.example"),
    ):
        refused = start(*command(bootstrap, topic, *flags), **environment(tmp_path))
        assert refused.wait() == status, refused
        assert words in refused.err[-1], refused
        assert refused.out == []
    users = ["--users", f"sqlite:///{folder / 'users.db'}"]
    # On loopback: the test serves nobody else. That another address is refused without these was seen above.
    page = start(*command(bootstrap, topic, *tls, *users, "--name", "orders.example"), **environment(tmp_path))
    page.wait_for("Serving https://127.0.0.1:")
    url = next(line for line in page.out if line.startswith("Serving ")).split()[1]
    (tmp_path / "ca.pem").write_bytes(certificates.in_pem(ca.certificate))
    trusted = ssl.create_default_context(cafile=tmp_path / "ca.pem")
    with httpx.Client(base_url=url, verify=trusted, timeout=20) as client:
        wait_until(lambda: client.get("/health/ready").status_code == 200, page)
        answer = log_in(client, "ana")
        assert answer.status_code == 303
        assert answer.headers["strict-transport-security"]
        assert answer.headers["set-cookie"].startswith("__Host-session=")
        assert "Secure" in answer.headers["set-cookie"]
        assert client.get("/").status_code == 200
        assert client.get("/", headers={"Host": "orders.example"}).status_code == 200
        assert client.get("/", headers={"Host": "evil.example"}).status_code == 400
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)  # without the CA
    assert page.stop() == 0
    for name, file in (("chain.pem", certificate), ("key.pem", key)):
        assert file == tmp_path / name
    (served,) = re.findall(r"^python (-m next_steps.web --host .*)$", README, re.MULTILINE)
    far = ["--port", "0", "-b", bootstrap, "-t", topic, *users]
    elsewhere = start(sys.executable, *served.split(), *far, **environment(tmp_path))
    elsewhere.wait_for("Serving https://0.0.0.0:")
    port = next(line for line in elsewhere.out if line.startswith("Serving ")).rpartition(":")[2]
    assert httpx.get(f"https://127.0.0.1:{port}/health", verify=trusted).json()["live"]
    assert elsewhere.stop() == 0


def test_the_first_user_closes_a_page_that_runs(bootstrap, topic, start, tmp_path):
    page = Site(start(*command(bootstrap, topic), **environment(tmp_path)), bootstrap, topic)
    assert page.client.get("/api/orders").status_code == 200
    manage(tmp_path, "add", "ana", "--role", "manager", password=PASSWORDS["ana"])
    wait_until(lambda: page.client.get("/api/orders").status_code == 401, "the login")
    assert page.process.stop() == 0


# The command.


def test_what_users_cannot_do_is_said(tmp_path, folder):
    for words, password, status, said in (
        (["add", "eve", "--role", "viewer"], "short", 1, f"{PASSWORD[0]} to {PASSWORD[1]} characters"),
        (["add", "eve", "--role", "viewer"], "x" * 1001, 1, "characters"),
        (["add", "ana", "--role", "viewer"], PASSWORDS["ana"], 1, "ana is there"),
        (["password", "eve"], PASSWORDS["ana"], 1, "eve is not there"),
        (["remove", "eve"], "", 1, "eve is not there"),
        (["add", "e\x1b[31mve", "--role", "viewer"], PASSWORDS["ana"], 2, "printable"),
        (["add", "eve", "--role", "king"], PASSWORDS["ana"], 2, "invalid choice"),
        (["--users", "sqlite:////no/such/folder/x.db", "list"], "", 1, "can't be used"),
    ):
        assert said in manage(folder, *words, password=password, status=status).err[-1], words
    assert [line.split() for line in manage(folder, "list").out[2:4]] == [["ana", "manager"], ["bob", "viewer"]]
    assert manage(tmp_path, "list").out == ["name    role", "------  ------"]


@posix
@pytest.mark.parametrize(("second", "status"), [("a long password", 0), ("another password", 1)])
def test_the_readmes_login_word_by_word(tmp_path, second, status):
    """The password is asked for on the terminal, and not shown."""
    import pty

    (command, printed), *_ = examples("python -m next_steps.web.users", README)
    leader, follower = pty.openpty()
    ends = {"stdin": follower, "stdout": follower, "stderr": follower, "start_new_session": True}
    adding = Process(sys.executable, *command.split()[1:], **ends, **environment(tmp_path))
    os.close(follower)
    shown = b""
    for prompt, typed in zip(printed, ["a long password", second], strict=False):
        while not shown.rstrip().endswith(prompt.encode()):  # what is typed before it asks is lost
            shown += os.read(leader, 1000)
        os.write(leader, typed.encode() + b"\n")
    with contextlib.suppress(OSError):  # the other end is gone
        while more := os.read(leader, 1000):
            shown += more
    assert adding.wait() == status, shown
    assert b"password" not in shown.lower().replace(b"password:", b"")
    if status == 0:
        assert [line.strip() for line in shown.decode().splitlines()] == printed
    os.close(leader)


def test_an_older_hash_is_made_anew_at_the_next_login(tmp_path):
    from argon2 import PasswordHasher

    users = Users(address(f"sqlite:///{tmp_path / 'users.db'}"))
    users.create()
    users.put("ana", "viewer", "a long password")
    engine = connect(address(f"sqlite:///{tmp_path / 'users.db'}"))
    with engine.begin() as connection:
        weak = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash("a long password")
        connection.exec_driver_sql("UPDATE users SET password_hash = ?", (weak,))
    assert users.verify("ana", "a long password")
    with engine.begin() as connection:
        assert connection.exec_driver_sql("SELECT password_hash FROM users").scalar() != weak
    assert users.verify("ana", "a long password")
    assert not users.verify("ana", "another password")


@needs_postgres
def test_users_on_postgresql():
    with Postgres() as server:
        users = Users(address(server.new_database()))
        assert not users.any()
        users.create()
        users.create()
        assert not users.any()
        users.put("ana", "viewer", "a long password")
        assert (users.any(), users.all(), users.verify("ana", "a long password")) == (True, {"ana": "viewer"}, True)
        token = users.begin("ana")
        assert users.of(token) == ("ana", "viewer", True)
        users.put("ana", "manager")
        assert users.of(token) is None
        users.note("ana", "127.0.0.1", "placed", ID)
        assert [row[2:] for row in users.log(10)] == [("ana", "127.0.0.1", "placed", ID)]


# In a browser.


@needs_browser
def test_a_manager_and_a_viewer_in_a_browser(site, window, user):  # noqa: F811
    from axe_playwright_python.sync_playwright import Axe

    page = window(site.url + "/?user=x", may_fail=True)
    expect(page.get_by_role("heading", name="Log in")).to_be_visible()
    assert Axe().run(page).response["violations"] == []
    page.get_by_label("Name").fill("ana")
    page.get_by_label("Password").fill("wrong")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_contain_text("wrong")
    page.get_by_label("Password").fill(PASSWORDS["ana"])
    page.get_by_role("button", name="Log in").click()
    expect(page).to_have_url(site.url + "/?user=x")
    expect(page.get_by_text("ana, manager")).to_be_visible()
    page.get_by_label("User", exact=True).first.fill(user)
    page.get_by_label("Item", exact=True).first.fill("tea")
    page.get_by_label("Quantity").fill("3")
    page.get_by_role("button", name="Place order").click()
    expect(page.get_by_text("Kafka has confirmed it")).to_be_visible()
    other = live(log_in_by_form(window(site.url, may_fail=True), "bob"))
    expect(other.get_by_role("link", name="3 tea").first).to_be_visible()
    expect(other.get_by_role("button", name="Place order")).to_have_count(0)
    other.get_by_role("link", name="3 tea").first.click()
    expect(other.get_by_role("heading", name=f"3 tea for {user}")).to_be_visible()
    expect(other.get_by_role("button", name="Accept")).to_have_count(0)
    assert Axe().run(other).response["violations"] == []
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("heading", name="Log in")).to_be_visible()


@needs_browser
def test_a_page_whose_session_ends_leads_to_the_login(site, window, folder, user):  # noqa: F811
    name = f"u{user[-8:]}"
    manage(folder, "add", name, "--role", "manager", password="a long password")
    page = live(log_in_by_form(window(site.url, may_fail=True), name, "a long password"))
    manage(folder, "remove", name)
    page.get_by_label("User", exact=True).first.fill(user)
    page.get_by_label("Item", exact=True).first.fill("tea")
    page.get_by_label("Quantity").fill("3")
    page.get_by_role("button", name="Place order").click()
    expect(page.get_by_role("heading", name="Log in")).to_be_visible()


def log_in_by_form(page, name, password=None):
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(password or PASSWORDS[name])
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_text(f"{name}, ")).to_be_visible()
    return page
