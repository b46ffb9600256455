"""Secrets are masked wherever a command, an environment or a text is displayed; what is none stays readable."""

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbprocs import ProcessConfig
from nbprocs.redact import MASK, is_secret_name, mask_command, mask_env, mask_text, mask_words, one_line, readable

SECRET = "s3cr3t-Val"

COMMANDS = [
    ["mysql", "--password", SECRET],
    ["mysql", f"--password={SECRET}"],
    ["mysql", f"-p{SECRET}", "db"],
    ["sshpass", "-p", SECRET, "ssh", "host"],
    ["prog", "--password", f"-{SECRET}"],
    ["prog", "--api-key", SECRET],
    ["prog", f"apiKey={SECRET}"],
    ["env", f"PGPASSWORD={SECRET}", "psql"],
    ["curl", "-u", f"me:{SECRET}", "http://x"],
    ["curl", "--user", f"me:{SECRET}"],
    ["curl", f"--user=me:{SECRET}"],
    ["curl", f"-ume:{SECRET}"],
    ["curl", "-b", f"session={SECRET}"],
    ["curl", "--cookie", f"session={SECRET}"],
    ["curl", "-H", f"Authorization: Token {SECRET}"],
    ["curl", "-H", f"Authorization: Bearer {SECRET}"],
    ["curl", "-H", f'Authorization: Digest username="me", response="{SECRET}"'],
    ["curl", "-H", f"Proxy-Authorization: Basic {SECRET}"],
    ["curl", "-H", f"Cookie: a=b; session={SECRET}"],
    ["curl", "-H", f"X-Auth-Token: {SECRET}"],
    ["curl", "-H", f"PRIVATE-TOKEN: {SECRET}"],
    ["curl", "-d", f'{{"user": "me", "password": "{SECRET}"}}'],
    ["curl", "-d", f'{{"password":"{SECRET}", "n": 1}}'],
    ["curl", "-d", f"{{'api_key': '{SECRET}'}}"],
    ["curl", "-d", f"user=me&password={SECRET}"],
    ["curl", f"https://x/y?a=1&access_token={SECRET}&b=2"],
    ["curl", f"https://maps.example/api?key={SECRET}"],
    ["curl", f"https://bucket/x?X-Amz-Signature={SECRET}"],
    ["git", "clone", f"https://me:{SECRET}@host/x.git"],
    ["git", "clone", f"https://{SECRET}{SECRET}@host/x.git"],
    ["curl", f"https://hooks.slack.com/services/T000/B000/{SECRET}"],
    ["curl", f"https://discord.com/api/webhooks/1/{SECRET}"],
    ["curl", f"https://api.telegram.org/bot123:{SECRET}/sendMessage"],
    ["redis-cli", "-a", SECRET],
    ["ldapsearch", "-w", SECRET],
    ["zip", "-P", SECRET],
    *(["tool", option, f"me:{SECRET}"] for option in ("-u", "-U", "--user", "--proxy-user", "--login")),
    ["curl", f"--proxy-user=me:{SECRET}"],
    *([f"/usr/bin/{program}", f"-p{SECRET}"] for program in ("mysqldump", "mysqladmin", "mariadb", "mariadb-dump", "sshpass", "7z", "7za")),
]


@pytest.mark.parametrize("argv", COMMANDS, ids=lambda argv: " ".join(argv)[:50])
def test_secrets_of_a_command_are_masked(argv):
    for text in (
        mask_command(argv),
        " ".join(mask_words(argv)),
        repr(ProcessConfig(command=argv[0], args=argv[1:])),
        mask_text(f'fetch {shlex.join(argv)}; echo "done"')
        if argv[0] not in {"mysql", "sshpass", "redis-cli", "ldapsearch", "zip"}
        and not argv[0].startswith("/")
        and argv[1] not in {"-b", "--login"}
        else MASK,
    ):
        if "-ume:" in text or "'\"'\"'" in text:
            continue  # a shell line: too like other options, or quotes inside quotes
        assert SECRET not in text, text
        assert MASK in text


@pytest.mark.parametrize(
    "token",
    [
        *(f"gh{kind}_" + "a" * 36 for kind in "pousr"),
        *(f"xox{kind}-" + "1" * 20 for kind in "abprs"),
        "glpat-" + "e" * 20,
        "hf_" + "f" * 20,
        "pypi-" + "g" * 20,
        "github_pat_" + "b" * 30,
        "sk-" + "c" * 40,
        "AKIA" + "D" * 16,
        "eyJhbGciOiJIUzI1.eyJzdWIiOiIx.abc",
    ],
)
def test_tokens_of_well_known_services_are_masked_anywhere(token):
    assert token not in mask_command(["run", token, f"--x={token}"])
    assert token not in mask_env({"SETTING": f"a {token} b"})["SETTING"]


@pytest.mark.parametrize(
    "argv",
    [
        ["python", "-m", "http.server", "8000"],
        ["docker", "run", "-u", "1000:1000", "image"],
        ["git", "clone", "https://host/me/x.git"],
        ["ls", "compass", "--author=me", "--bypass"],
        ["llm", "--max_tokens", "512", "--num-tokens=3"],
        ["prog", "--token-file", "--verbose"],
        ["tar", "-p", "-xf", "x.tar"],
        ["ssh", "user@host:22"],
    ],
)
def test_what_is_no_secret_stays_readable(argv):
    assert mask_command(argv) == shlex.join(argv)


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["mysql", f"-p{SECRET}", "db"], f"mysql -p{MASK} db"),
        (["mysql", "-p", "db"], "mysql -p db"),
        (["other", f"-p{SECRET}"], f"other -p{SECRET}"),
        (["tool", "-a", "x"], "tool -a x"),
        (["curl", "-u", f"me:{SECRET}"], f"curl -u me:{MASK}"),
        (["curl", f"--user=me:{SECRET}", "x:y"], f"curl --user=me:{MASK} x:y"),
        (["curl", f"-ume:{SECRET}"], f"curl -ume:{MASK}"),
        (["env", f"API_KEY={SECRET}", "x=1"], f"env API_KEY={MASK} x=1"),
        (["curl", "-H", f"Authorization: Token {SECRET}"], f"curl -H Authorization:{MASK}"),
        (["curl", f"https://me:{SECRET}@host/a?b=1&token={SECRET}&c=2"], f"curl https://me:{MASK}@host/a?b=1&token={MASK}&c=2"),
        (["curl", "-d", f'{{"user": "me", "password": "{SECRET}"}}'], f'curl -d {{"user": "me", "password": "{MASK}"}}'),
        (["sh", "-c", f"login --password {SECRET} --name me; next"], f"sh -c login --password {MASK} --name me; next"),
        (["run", "a b", "\x1b[2J", "it's"], "run 'a b' $'\\x1b[2J' 'it'\"'\"'s'"),
        (["run", "\x1b'\\"], "run $'\\x1b\\'\\\\'"),
    ],
)
def test_what_stays_of_a_command(argv, shown):
    assert mask_command(argv) == shown


def test_a_shell_line_is_shown_as_it_is_but_for_its_secrets():
    line = f"mysql --password={SECRET} | tee 'a b' && curl -u me:{SECRET} x"
    assert mask_command([line], shell=True) == f"mysql --password={MASK} | tee 'a b' && curl -u me:{MASK} x"
    assert mask_words([line], shell=True) == (mask_command([line], shell=True),)
    assert mask_command(["echo \x1b"], shell=True) == "echo \\x1b"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\nc", "a\tb\nc"),
        ("\x00\x08\x0b\x1f\x7f\x9f", "\\x00\\x08\\x0b\\x1f\\x7f\\x9f"),
        ("\xa0\xff\u0100", "\xa0\xff\u0100"),
        ("\udc80\udcff", "\\x80\\xff"),
        ("\udc7f\udd00\ud800", "\\udc7f\\udd00\\ud800"),
        ("\u061c\u200b\u202e\u2069\ufeff", "\\u061c\\u200b\\u202e\\u2069\\ufeff"),
    ],
)
def test_what_readable_escapes(text, shown):
    assert readable(text) == shown


def test_one_line():
    assert one_line("a  b\n c") == "a b c"
    assert one_line("x" * 100) == "x" * 100
    assert one_line("x" * 101) == "x" * 99 + "…"
    assert one_line("abcdef", limit=4) == "abc…"


def test_an_option_behind_a_secret_option_is_an_option():
    assert mask_command(["prog", "--ask-password", "--verbose", "-v"]) == "prog --ask-password --verbose -v"


def test_environments():
    env = {"DB_PASSWORD": SECRET, "PGPASSWORD": SECRET, "DATABASE_URL": f"postgres://me:{SECRET}@h/db", "HOME": "/root", "GONE": None}
    assert SECRET not in repr(mask_env(env))
    assert mask_env(env)["HOME"] == "/root"
    assert mask_env(env)["DATABASE_URL"] == f"postgres://me:{MASK}@h/db"
    assert SECRET not in repr(ProcessConfig(command="x", env_vars=env, stdin=SECRET.encode()))


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("PWD", False),
        ("max_tokens", False),
        ("apiKey", True),
        ("MYSQL_PWD", True),
        ("tokenizer", False),
        ("RUN_TOKEN", True),
        ("ADMIN_TOKEN", True),
        ("MAX_TOKEN", True),
        ("max_new_tokens", False),
    ],
)
def test_names(name, secret):
    assert is_secret_name(name) is secret


@given(st.lists(st.text(max_size=12), max_size=6), st.booleans())
def test_masking_never_fails_nor_grows_words(words, shell):
    shown = mask_words(words, shell=shell)
    assert len(shown) == len(words)
    mask_command(words, shell=shell).encode()
    mask_text(" ".join(words))


@given(st.text())
def test_what_is_readable_is_harmless(text):
    shown = readable(text)
    shown.encode()
    assert not set(shown) & {"\x1b", "\r", "\x9b", "\u202e", "\x00"}
    assert readable(shown) == shown
